"""What stands before every route: keys, sizes, rates, time to send, request ids, metrics and the log.

Enters: ASGI calls of a server. Leaves: requests that may be answered, with their body in memory; everything else ends
here with a status code. Written as plain ASGI, so that a route still hears when its client goes.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any

from fintune.serving.server.keys import ApiKey, KeyRing
from fintune.serving.server.limits import Account, Limiter
from fintune.serving.server.logs import ServerLog
from fintune.serving.server.metrics import Metrics
from fintune.serving.server.problems import HttpProblem
from fintune.serving.server.settings import ServerSettings
from fintune.serving.server.streams import ClientGone, Receive, Send, SlowReader

log = logging.getLogger(__name__)
ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/classify", "/v1/models", "/health", "/metrics")
OPEN = frozenset({"/health"})  # needs no key, and is answered while the server drains
UNCOUNTED = frozenset({"/health", "/metrics"})
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
CLOSED = 499  # nginx's number for a client that went first; it stands in the log and the metrics alone


@dataclass
class Facts:
    """What is known of a request, for its line in the log; routes add to it.

    Attributes:
        request_id: given by the client, or made up.
        key: whose request it is.
        account: what its key has taken.
        arrived: when it came, on ``time.monotonic``.
        told: further facts.
    """

    request_id: str
    key: ApiKey
    account: Account = field(default_factory=Account)
    arrived: float = field(default_factory=time.monotonic)
    told: dict[str, Any] = field(default_factory=dict)


class Guard:
    """An ASGI application around another.

    Args:
        app: the routes.
        settings: sizes and times.
        keys: the keys in force.
        limiter: their accounts.
        metrics: where requests are counted.
        server_log: where they are noted.

    Attributes:
        draining: no new requests are taken.
        open: requests that are being answered.
    """

    def __init__(
        self,
        app: Any,
        settings: ServerSettings,
        keys: KeyRing,
        limiter: Limiter,
        metrics: Metrics,
        server_log: ServerLog,
    ) -> None:
        self.app, self.settings, self.keys = app, settings, keys
        self.limiter, self.metrics, self.server_log = limiter, metrics, server_log
        self.draining = False
        self.open = 0

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Answers one request, or passes on what is none."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # a WebSocket: there are none here
            await send({"type": "websocket.close", "code": 1000})
            return
        await _Visit(self, scope, receive, send).run()


class _Visit:
    """One request on its way through the guard."""

    def __init__(self, guard: Guard, scope: Any, receive: Receive, send: Send) -> None:
        self._guard, self._scope, self._receive, self._send = guard, scope, receive, send
        self._headers = {name.lower(): value for name, value in scope["headers"]}
        given = self._header(b"x-request-id")
        self._facts = Facts(given if _ID.fullmatch(given) else secrets.token_hex(8), ApiKey("", "", ""))
        self._status = 0
        self._sent_all = False
        self._path: str = scope["path"]

    def _header(self, name: bytes) -> str:
        return str(self._headers.get(name, b"").decode("latin-1"))

    async def run(self) -> None:
        guard = self._guard
        guard.open += 1
        dropped = False
        try:
            await self._admit()
        except HttpProblem as problem:
            if problem.status in (401, 408, 413, 429, 503):
                guard.metrics.rejected.labels(problem.code).inc()
            await self._refuse(problem)
        except (ClientGone, SlowReader):
            dropped = True
        except Exception:
            log.exception("A request failed.")
            await self._refuse(HttpProblem(500, "The server failed; its log says why.", "failed"))
        finally:
            guard.open -= 1
            self._note(dropped or not self._sent_all)
        if dropped:
            raise ClientGone  # the server closes the connection of a response that is not complete

    async def _admit(self) -> None:
        guard = self._guard
        if guard.draining and self._path not in OPEN:
            raise HttpProblem(503, "The server is shutting down.", "draining", {"retry-after": "5"})
        self._facts.key = self._known_key()
        self._scope["state"] = {**self._scope.get("state", {}), "facts": self._facts}
        if self._path in UNCOUNTED or self._scope["method"] != "POST":
            await self._guard.app(self._scope, self._receive, self._answer)
            return
        with guard.limiter.request(self._facts.key) as self._facts.account:
            body = await self._body()
            await guard.app(self._scope, _replayed(body, self._receive), self._answer)

    def _known_key(self) -> ApiKey:
        scheme, _, secret = self._header(b"authorization").partition(" ")
        key = self._guard.keys.find(secret.strip() if scheme.lower() == "bearer" else None)
        if key is None and self._path not in OPEN:
            raise HttpProblem(
                401, "The API key is missing or unknown.", "invalid_api_key", {"www-authenticate": "Bearer"}
            )
        return key or ApiKey("", "", "")

    async def _body(self) -> bytes:
        """The whole body.

        Raises:
            HttpProblem: 413 where it is too large, 408 where it takes too long.
            ClientGone: the client went before it was sent.
        """
        most = self._guard.settings.max_body_bytes
        length = self._header(b"content-length")
        body, left = bytearray(), True
        try:
            async with asyncio.timeout(self._guard.settings.body_timeout_s):
                while left and len(body) <= most and not (length.isdecimal() and int(length) > most):
                    message = await self._received()
                    body += message.get("body", b"")
                    left = message.get("more_body", False)
        except TimeoutError:
            raise HttpProblem(408, "The request's body did not arrive in time.", "body_timeout", _CLOSE) from None
        if left or len(body) > most:
            await self._read_away(left)
            raise HttpProblem(413, f"The request's body may have {most:,} bytes.", "body_too_large", _CLOSE)
        return bytes(body)

    async def _received(self) -> MutableMapping[str, Any]:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        return message

    async def _read_away(self, left: bool) -> None:
        """Reads the rest of a body that is too large: a connection closed on unread data would tear the answer away."""
        try:
            async with asyncio.timeout(self._guard.settings.body_timeout_s):
                while left:
                    left = (await self._received()).get("more_body", False)
        except TimeoutError:
            self._facts.told["unread"] = True

    async def _refuse(self, problem: HttpProblem) -> None:
        if self._status:  # something was sent already; dropping the connection says that it is not whole
            return
        headers = [(name.encode(), value.encode()) for name, value in problem.headers.items()]
        headers.append((b"content-type", b"application/json"))
        body = problem.encoded()
        headers.append((b"content-length", str(len(body)).encode()))
        await self._answer({"type": "http.response.start", "status": problem.status, "headers": headers})
        await self._answer({"type": "http.response.body", "body": body, "more_body": False})

    async def _answer(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            own = [(b"x-request-id", self._facts.request_id.encode())]
            message = {**message, "headers": [*message.get("headers", []), *own]}
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            self._sent_all = True
        await self._send(message)

    def _note(self, cut_off: bool) -> None:
        guard, elapsed_s = self._guard, time.monotonic() - self._facts.arrived
        status = CLOSED if cut_off or self._facts.told.get("client_gone") else self._status
        route = next((route for route in ROUTES if self._path == route), "/v1/models")
        route = route if self._path in ROUTES or self._path.startswith("/v1/models/") else "other"
        guard.metrics.requests.labels(route, str(status)).inc()
        if self._path in UNCOUNTED and status == 200:
            return
        guard.metrics.seconds.labels(route).observe(elapsed_s)
        client = (self._scope.get("client") or ("",))[0]
        guard.server_log.event(
            "request",
            request_id=self._facts.request_id,
            key=self._facts.key.name or None,
            client=client or None,
            method=self._scope["method"],
            route=route,
            status=status,
            elapsed_s=elapsed_s,
            **self._facts.told,
        )


_CLOSE = {"connection": "close"}


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Gives the body once, and then what really comes: the end of the connection."""
    left = [body]

    async def again() -> MutableMapping[str, Any]:
        if left:
            return {"type": "http.request", "body": left.pop(), "more_body": False}
        return await receive()

    return again
