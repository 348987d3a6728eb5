"""The one polite way to ask a provider: within its limits, again after faults, and never for what is on disk.

Enters: a ``Question``. Leaves: its answer, parsed, with the time it was retrieved. Repeated after a pause that doubles
(or that the server names): time-outs, lost connections, cut or unreadable answers, answers of another form, 429 and
5xx. The key is added in the transport, below everything that logs or raises, so that no message can hold it.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt

from fintune.schema.errors import ProviderError, RecipeError
from fintune.schema.network import is_offline, offline_reason
from fintune.sources.collect.keys import Key
from fintune.sources.collect.limits import Limit, Pace
from fintune.sources.collect.stored import AnswerStore, Question, StoredAnswer
from fintune.sources.text import without_lone_surrogates

LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 522, 524})
_CHUNK_BYTES = 1 << 16


@dataclass(frozen=True)
class Endpoint:
    """Where a provider is, and how it wants to be asked.

    Attributes:
        provider: its name.
        base_url: without a slash at its end.
        limits: how often it may be asked.
        key: the user's; None where it asks for none.
        key_header: header that the key goes into, or
        key_parameter: the parameter of the query.
        headers: sent with every request.
        transport: how requests reach it; httpx2's own when None.
        hint: a sentence on what may help where it does not answer.
    """

    provider: str
    base_url: str
    limits: tuple[Limit, ...] = ()
    key: Key | None = None
    key_header: str = ""
    key_parameter: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    transport: httpx2.BaseTransport | None = None
    hint: str = ""

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise RecipeError(f"The address of {self.provider} is no URL.", "Write it as https://host/path.")
        if parts.username or parts.password:
            raise RecipeError(
                f"The address of {self.provider} holds a user name or password, which would be written down.",
                "Leave them out, and let a local proxy add them.",
            )

    @property
    def host(self) -> str:
        """Its name, for messages."""
        return urlsplit(self.base_url).hostname or ""


@dataclass(frozen=True)
class Patience:
    """How long to wait for a provider.

    Attributes:
        timeout_s: for a connection, and for the next bytes.
        deadline_s: for a whole answer.
        tries: requests for one answer before it is given up.
        first_wait_s: pause before the second try; each further one doubles it, with up to as much again at random.
        longest_wait_s: no pause of ours is longer.
        longest_obeyed_s: a server that asks for a longer pause than this ends the run.
    """

    timeout_s: float = 30.0
    deadline_s: float = 120.0
    tries: int = 8
    first_wait_s: float = 1.0
    longest_wait_s: float = 60.0
    longest_obeyed_s: float = 900.0


class Refused(ProviderError):
    """This one answer is not to be had: unknown ticker, not in the user's plan, or faulty after every try.

    Args:
        message: which answer, and why not.
        unanswered: the provider did not say no; it did not answer.
    """

    def __init__(self, message: str, *, unanswered: bool = False) -> None:
        super().__init__(message)
        self.unanswered = unanswered


class _Fault(Exception):
    """A request that is worth repeating.

    Args:
        why: in a few words, without what the server wrote.
        wait_s: the pause that the server asked for, if any.
    """

    def __init__(self, why: str, wait_s: float | None = None) -> None:
        super().__init__(why)
        self.why = why
        self.wait_s = wait_s


@dataclass(frozen=True)
class Answer:
    """What a provider said: parsed JSON, or text, and when."""

    value: Any
    retrieved_at: str


@dataclass(frozen=True)
class Clock:
    """Time, so that tests need not wait."""

    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    now: Callable[[], datetime] = lambda: datetime.now(UTC)


class Requester:
    """Asks one provider; use it in a ``with`` block.

    Args:
        endpoint: the provider.
        store: where answers are kept, and looked for first.
        patience: how long to wait.
        clock: real time unless a test says otherwise.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        store: AnswerStore,
        *,
        patience: Patience | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.requests = 0
        self._store = store
        self._patience = patience or Patience()
        self._clock = clock or Clock()
        self._pace = Pace(endpoint.limits)
        self._spread = random.Random()
        self._client: httpx2.Client | None = None

    def __enter__(self) -> Requester:
        return self

    def __exit__(self, *details: object) -> None:
        if self._client is not None:
            self._client.close()

    def get(self, question: Question, *, is_right: Callable[[Any], bool], text: bool = False) -> Answer:
        """The answer to a question, from disk or from the provider.

        Args:
            question: what to ask.
            is_right: whether a parsed answer has the documented form; anything else is a fault, and never kept.
            text: the answer is no JSON.

        Raises:
            Refused: the provider has no such answer for us.
            ProviderError: it refuses the key, wants a long pause, cannot be reached, or the network is forbidden.
        """
        parse = _as_text if text else _as_json
        stored = self._store.find(question, self._clock.now().date())
        if stored is not None:
            value = _parsed(stored.body, parse)
            if value is not None and is_right(value):
                return Answer(value, stored.retrieved_at)
        self._require_network()
        answer = self._fetched(question, is_right, parse)
        return Answer(parse(answer.body), answer.retrieved_at)

    def _fetched(
        self, question: Question, is_right: Callable[[Any], bool], parse: Callable[[str], Any]
    ) -> StoredAnswer:
        retrying = Retrying(
            stop=stop_after_attempt(self._patience.tries),
            wait=self._pause_s,
            retry=retry_if_exception_type(_Fault),
            sleep=self._clock.sleep,
            reraise=True,
        )
        try:
            return retrying(self._fetch_once, question, is_right, parse)
        except _Fault as fault:
            why = fault.why
        # Outside of the except clause: what is raised here must not carry the frames of the request with it.
        raise Refused(f"{self.endpoint.provider} did not answer {_shown(question)} ({why}).", unanswered=True)

    def _fetch_once(
        self, question: Question, is_right: Callable[[Any], bool], parse: Callable[[str], Any]
    ) -> StoredAnswer:
        self._clock.sleep(self._pace.wait_s(self._clock.monotonic()))
        self._pace.note(self._clock.monotonic())
        self.requests += 1
        status, headers, body = self._exchange(question)
        if status != 200:
            self._raise_for(status, headers, question)
        value = _parsed(body, parse)
        if value is None:
            raise _Fault("cut or unreadable answer")
        if not is_right(value):
            raise _Fault("answer of another form")
        return self._store.keep(question, body, self._clock.now())

    def _exchange(self, question: Question) -> tuple[int, httpx2.Headers, str]:
        """Status, headers and body of one answer; servers quote what they were asked, so the key is masked in it."""
        url = f"{self.endpoint.base_url}/{question.path}"
        why = ""
        try:
            with self._opened().stream("GET", url, params=dict(question.parameters)) as response:
                return response.status_code, response.headers, self._hidden(self._whole(response))
        except httpx2.TimeoutException:
            why = "too slow"
        except httpx2.TransportError as error:
            why = type(error).__name__
        except httpx2.DecodingError:
            why = "cut or unreadable answer"
        raise _Fault(why)

    def _whole(self, response: httpx2.Response) -> str:
        until = self._clock.monotonic() + self._patience.deadline_s
        parts = []
        for part in response.iter_bytes(_CHUNK_BYTES):
            parts.append(part)
            if self._clock.monotonic() > until:
                raise _Fault("too slow")
        return b"".join(parts).decode("utf-8", errors="replace")

    def _raise_for(self, status: int, headers: httpx2.Headers, question: Question) -> None:
        provider, key = self.endpoint.provider, self.endpoint.key
        wait_s = _retry_after_s(headers.get("Retry-After", ""), self._clock.now())
        if wait_s is not None and wait_s > self._patience.longest_obeyed_s:
            raise ProviderError(
                f"{provider} asks for a pause of {wait_s / 60:.0f} minutes.",
                "Give the same command again after it; what was collected is kept.",
            )
        if status in _AGAIN:
            raise _Fault(f"status {status}", wait_s)
        if status == 401 or (status == 402 and key is not None):
            why = "refuses the key" if status == 401 else "says that the plan's requests are used up"
            raise ProviderError(
                f"{provider} {why} (status {status}).",
                "Check the key and the plan, then give the same command again; what was collected is kept.",
            )
        meaning = {403: "not in your plan", 404: "unknown"}.get(status, "refused")
        raise Refused(f"{provider} does not give {_shown(question)}: {meaning} (status {status}).")

    def _pause_s(self, state: RetryCallState) -> float:
        fault = state.outcome.exception() if state.outcome is not None else None
        if isinstance(fault, _Fault) and fault.wait_s:  # a pause of 0 would be eight requests at once
            return fault.wait_s
        wait_s = min(self._patience.first_wait_s * 2.0 ** (state.attempt_number - 1), self._patience.longest_wait_s)
        return wait_s * (1.0 + self._spread.random())

    def _opened(self) -> httpx2.Client:
        if self._client is None:
            transport = self.endpoint.transport or httpx2.HTTPTransport(proxy=_proxy_for(self.endpoint))
            self._client = httpx2.Client(
                transport=_KeyedTransport(transport, self.endpoint),
                headers=dict(self.endpoint.headers),
                timeout=self._patience.timeout_s,
            )
        return self._client

    def _require_network(self) -> None:
        if is_offline() and self.endpoint.host not in LOCAL:
            raise ProviderError(
                f"{self.endpoint.provider} cannot be asked: {offline_reason()}.",
                "Unset it; only what was collected before is there without a network.",
            )

    def _hidden(self, text: str) -> str:
        return text if self.endpoint.key is None else self.endpoint.key.hidden(text)


class _KeyedTransport(httpx2.BaseTransport):
    """Adds the key to a copy of the request: the client logs the original's URL, and errors carry it."""

    def __init__(self, inner: httpx2.BaseTransport, endpoint: Endpoint) -> None:
        self._inner = inner
        self._endpoint = endpoint

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Sends the request with the key."""
        endpoint = self._endpoint
        if endpoint.key is None:
            return self._inner.handle_request(request)
        url, headers = request.url, request.headers.copy()
        if endpoint.key_parameter:
            url = url.copy_merge_params({endpoint.key_parameter: endpoint.key.reveal()})
        if endpoint.key_header:
            headers[endpoint.key_header] = endpoint.key.reveal()
        keyed = httpx2.Request(request.method, url, headers=headers, extensions=request.extensions)
        try:
            return self._inner.handle_request(keyed)
        except httpx2.TransportError as error:
            kind, said = type(error), endpoint.key.hidden(str(error))
        raise kind(said, request=request)

    def close(self) -> None:
        """Ends its connections."""
        self._inner.close()


def _proxy_for(endpoint: Endpoint) -> str | None:
    """The proxy that the environment names; httpx2 looks for one only where no transport is given."""
    proxies, scheme = getproxies(), urlsplit(endpoint.base_url).scheme
    return None if proxy_bypass(endpoint.host) else proxies.get(scheme) or proxies.get("all")


def _parsed(body: str, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(body)
    except (ValueError, RecursionError):
        return None


def _as_json(body: str) -> Any:
    """JSON may hold halves of an emoji as escapes, which no file can."""
    return without_lone_surrogates(json.loads(body))


def _as_text(body: str) -> str:
    return body


def _retry_after_s(value: str, now: datetime) -> float | None:
    """Seconds of a ``Retry-After`` header, which names seconds or a date; None where it says neither."""
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - now).total_seconds())
    except (ValueError, TypeError):
        return None


def _shown(question: Question) -> str:
    words = ", ".join(f"{name}={value}" for name, value in question.parameters.items())
    return f"{question.path} ({words})" if words else question.path
