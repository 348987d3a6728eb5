"""The polite client: what it repeats, how long it waits, what it never asks twice, and what it never says."""

import contextlib
import json
import logging
import sys
import traceback
from datetime import date, timedelta
from email.utils import format_datetime
from types import SimpleNamespace

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.sources.collect.provider_server import EODHD_KEY, FINNHUB_KEY

from fintune.schema.errors import ProviderError, RecipeError
from fintune.schema.network import offline_mode
from fintune.sources.collect import eodhd, finnhub, keys
from fintune.sources.collect.limits import Limit, Pace
from fintune.sources.collect.requesting import Clock, Endpoint, Patience, Refused, Requester
from fintune.sources.collect.rows import are_objects
from fintune.sources.collect.stored import AnswerStore, Question

NEWS = Question(
    "finnhub", "company-news", {"symbol": "AAPL", "from": "2024-01-02", "to": "2024-01-04"}, until=date(2024, 1, 4)
)
FAULTS = ["cut", "slow", "close", "truncated", "empty", "html", "other", "text", "bytes", "deep", "null"]


@pytest.fixture
def asking(server, tmp_path, time_passes, patience):
    """A requester of Finnhub at the local server."""

    def opened(**options):
        endpoint = finnhub.endpoint(f"{server.url}/finnhub")
        store = AnswerStore(tmp_path / "raw")
        return Requester(endpoint, store, clock=time_passes.clock(), **{"patience": patience, **options})

    return opened


@pytest.fixture
def online(monkeypatch):
    """The suite forbids the network; these tests reach no further than a stand-in for it."""
    monkeypatch.delenv("HF_HUB_OFFLINE")


def news(requester, question=NEWS):
    return requester.get(question, is_right=are_objects)


def scripted(*faults):
    """The faults of the first requests for each URL; none after them."""
    return lambda url, attempt: faults[attempt - 1] if attempt <= len(faults) else None


@pytest.mark.parametrize("fault", [*FAULTS, 429, 500, 502, 503, 504, (429, "7"), (503, "0")])
def test_a_fault_is_repeated_until_the_answer_is_right(server, asking, fault):
    server.fault = scripted(fault, fault)
    with asking() as requester:
        found = news(requester)
    assert requester.requests == 3 and sum(server.delivered.values()) == 1
    assert found.value == json.loads(json.dumps(found.value)) and len(found.value) == 9
    assert found.retrieved_at.startswith("2024-06-03T12:")


def test_pauses_double_with_a_random_part_and_obey_the_server(server, asking, time_passes):
    server.fault = scripted(500, 429, (429, "37"), "html", 500)
    with asking() as requester:
        news(requester)
    first, second, third, fourth, fifth = time_passes.slept
    assert 1 <= first <= 2 and 2 <= second <= 4 and third == 37 and 8 <= fourth <= 16 and 16 <= fifth <= 32


def test_a_server_may_name_a_date_to_wait_for(server, asking, time_passes):
    at = format_datetime(time_passes.start + timedelta(seconds=90), usegmt=True)
    server.fault = scripted((429, at))
    with asking() as requester:
        news(requester)
    assert time_passes.slept == [90.0]


@pytest.mark.parametrize("value", ["soon", "", "-5", "nan"])
def test_an_unreadable_pause_is_no_reason_to_fail(server, asking, value):
    server.fault = scripted((429, value))
    with asking() as requester:
        assert len(news(requester).value) == 9


@pytest.mark.parametrize("value", ["86400", "inf"])
def test_a_pause_of_hours_ends_the_run(server, asking, value):
    server.fault = scripted((429, value))
    with asking() as requester, pytest.raises(ProviderError, match="asks for a pause of .* minutes"):
        news(requester)
    assert requester.requests == 1


def test_after_every_try_it_is_given_up_and_nothing_is_kept(server, asking, tmp_path):
    server.fault = lambda url, attempt: "truncated"
    with asking() as requester, pytest.raises(Refused, match="did not answer company-news .*unreadable") as caught:
        news(requester)
    assert requester.requests == 8 and caught.value.unanswered
    assert not list((tmp_path / "raw").rglob("*.json"))


@pytest.mark.parametrize(("status", "kind"), [(403, Refused), (404, Refused), (418, Refused), (401, ProviderError)])
def test_a_no_is_not_repeated(server, asking, status, kind):
    server.fault = scripted(status)
    with asking() as requester, pytest.raises(ProviderError, match=str(status)) as caught:
        news(requester)
    assert type(caught.value) is kind and requester.requests == 1


def test_an_answer_that_drips_has_a_deadline(server, tmp_path, patience):
    moments = iter(range(0, 10_000, 200))
    endpoint = finnhub.endpoint(f"{server.url}/finnhub")
    clock = Clock(monotonic=lambda: float(next(moments)), sleep=lambda seconds: None)
    requester = Requester(endpoint, AnswerStore(tmp_path), patience=Patience(tries=2), clock=clock)
    with requester, pytest.raises(Refused, match="too slow"):
        news(requester)


def test_an_answer_on_disk_is_not_asked_for_again(server, asking):
    with asking() as requester:
        first = news(requester)
    with asking() as requester, offline_mode():
        assert news(requester) == first and requester.requests == 0
    assert sum(server.asked.values()) == 1


def test_days_that_were_not_over_are_asked_for_again_on_another_day(server, asking, time_passes):
    today = Question("finnhub", "company-news", {"symbol": "AAPL", "from": "2024-06-01", "to": "2024-06-03"},
                     until=date(2024, 6, 3))  # fmt: skip
    with asking() as requester:
        news(requester, today)
        news(requester, today)
        assert requester.requests == 1
        time_passes.moment += 86400
        news(requester, today)
        time_passes.moment += 30 * 86400
        news(requester, today)
    assert requester.requests == 2


@pytest.mark.parametrize("damage", [b"", b"{", b'{"body": 1}', b"[]", b"\xff\xfe"])
def test_a_damaged_file_counts_as_none(server, asking, tmp_path, damage):
    with asking() as requester:
        first = news(requester)
        (kept,) = (tmp_path / "raw").rglob("*.json")
        kept.write_bytes(damage)
        assert news(requester).value == first.value
    assert requester.requests == 2


@given(
    st.lists(st.floats(0.0, 5.0), min_size=1, max_size=60),
    st.lists(st.tuples(st.integers(1, 8), st.floats(0.1, 20.0)), min_size=1, max_size=3),
)
def test_no_window_has_more_requests_than_allowed(gaps, limits):
    limits = [Limit(calls, seconds) for calls, seconds in limits]
    pace, now, sent = Pace(limits), 0.0, []
    for gap in gaps:
        now += gap
        now += pace.wait_s(now)
        pace.note(now)
        sent.append(now)
    for limit in limits:
        for earlier, later in zip(sent, sent[limit.calls :], strict=False):
            assert later - earlier >= limit.seconds - 1e-9


def test_a_client_keeps_finnhubs_pace(server, asking, time_passes):
    moments = []
    server.before = lambda number, stage: moments.append(time_passes.moment) if stage == "asked" else None
    with asking(patience=Patience()) as requester:
        for day in range(130):
            first = str(date(2023, 1, 1) + timedelta(days=day))
            news(requester, Question("finnhub", "company-news", {"symbol": "AAPL", "from": first, "to": first}))
    assert len(moments) == 130 and 120 <= moments[-1] < 125  # two minutes' worth, then ten more
    assert all(sum(start <= one < start + 60 for one in moments) <= 60 for start in moments)
    assert all(sum(start <= one < start + 1 for one in moments) <= 30 for start in moments)


# -- keys -------------------------------------------------------------------------------------------------------------


def nowhere(*texts):
    for key in (FINNHUB_KEY, EODHD_KEY, EODHD_KEY.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D")):
        assert not any(key in text for text in texts)


def chain(error):
    """A failure as Python shows it, with everything it came from and the variables of all its frames."""
    found, seen = [], set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        shown = traceback.TracebackException.from_exception(error, capture_locals=True)
        found.append("".join(shown.format()))
        error = error.__cause__ or error.__context__
    return "".join(found)


@pytest.mark.parametrize("fault", [401, 403, 500, "close", "slow", "html", "cut"])
@pytest.mark.parametrize("provider", [finnhub, eodhd])
def test_no_failure_shows_the_key(server, tmp_path, patience, time_passes, caplog, capsys, fault, provider):
    server.fault = lambda url, attempt: fault
    caplog.set_level(logging.DEBUG)
    endpoint = provider.endpoint(f"{server.url}/{provider.NAME}")
    requester = Requester(endpoint, AnswerStore(tmp_path), patience=patience, clock=time_passes.clock())
    place = "company-news" if provider is finnhub else "news"
    query = {"symbol": "AAPL", "s": "AAPL.US", "from": "2024-01-02", "to": "2024-01-03", "limit": "9", "offset": "0"}
    with requester, pytest.raises(ProviderError) as caught:
        requester.get(Question(provider.NAME, place, query), is_right=are_objects)
    nowhere(chain(caught.value), caplog.text, repr(endpoint), str(vars(requester)), *capsys.readouterr())
    assert sum(server.asked.values()) == requester.requests >= 1
    assert "127.0.0.1" in caplog.text or fault in ("close", "slow")  # the log was on: it names the requests


def test_a_key_that_comes_back_in_an_answer_is_masked_before_it_is_kept(server, tmp_path, time_passes, online):
    body = json.dumps(
        [{"headline": f"see ?api_token={EODHD_KEY}", "next": "/news?api_token=planted%2Beodhd%2Fkey%3D0815"}]
    )
    transport = httpx2.MockTransport(lambda request: httpx2.Response(200, text=body))
    endpoint = Endpoint("eodhd", "https://eodhd.example/api", key=eodhd.endpoint(server.url).key,
                        key_parameter="api_token", transport=transport)  # fmt: skip
    with Requester(endpoint, AnswerStore(tmp_path), clock=time_passes.clock()) as requester:
        found = requester.get(Question("eodhd", "news", {}), is_right=are_objects)
    (kept,) = tmp_path.rglob("*.json")
    nowhere(kept.read_text(), str(found))
    assert found.value == [{"headline": "see ?api_token=<key>", "next": "/news?api_token=<key>"}]


def test_half_an_emoji_can_be_kept_and_written(server, tmp_path, time_passes, online):
    transport = httpx2.MockTransport(lambda request: httpx2.Response(200, text='[{"title": "cut \\ud83d"}]'))
    endpoint = Endpoint("eodhd", "https://eodhd.example/api", transport=transport)
    for _ in range(2):  # from the provider, then from disk
        with Requester(endpoint, AnswerStore(tmp_path), clock=time_passes.clock()) as requester:
            found = requester.get(Question("eodhd", "news", {}), is_right=are_objects)
        assert found.value == [{"title": "cut \ufffd"}]


def test_the_key_reaches_its_provider_and_nobody_else(server, tmp_path, time_passes, online):
    seen = []

    def handle(request):
        seen.append((str(request.url), request.headers.get("x-finnhub-token")))
        return httpx2.Response(302, headers={"Location": "https://elsewhere.example/"})

    transport = httpx2.MockTransport(handle)
    endpoint = Endpoint("finnhub", "https://finnhub.example", key=finnhub.endpoint(server.url).key,
                        key_header="X-Finnhub-Token", transport=transport)  # fmt: skip
    with Requester(endpoint, AnswerStore(tmp_path), clock=time_passes.clock()) as requester, pytest.raises(Refused):
        news(requester)
    assert (
        len(seen) == 1 and seen[0][0].startswith("https://finnhub.example/company-news?") and seen[0][1] == FINNHUB_KEY
    )


def test_a_missing_key_is_one_sentence_with_the_variable_and_the_place(monkeypatch):
    monkeypatch.delenv("EODHD_API_KEY")
    monkeypatch.setitem(sys.modules, "keyring", None)
    with pytest.raises(ProviderError, match=r"EODHD_API_KEY is not set.*https://eodhd.com/register"):
        eodhd.endpoint("https://eodhd.com/api")


@pytest.mark.parametrize("key", ["two words", "línea", "line\nbreak", "null\0byte"])
def test_what_cannot_be_a_key_is_refused_without_being_shown(monkeypatch, key):
    monkeypatch.setattr(keys, "os", SimpleNamespace(environ={"FINNHUB_API_KEY": key}))  # the real one takes no null
    with pytest.raises(ProviderError, match="FINNHUB_API_KEY holds") as caught:
        finnhub.endpoint("https://finnhub.io/api/v1")
    assert key not in str(caught.value)
    frame = caught.traceback[-1].frame
    assert frame.code.name == "find_key" and key not in str(frame.f_locals)


class StandInKeyring:
    """The two names of keyring that are used."""

    class errors:
        class KeyringError(Exception):
            pass

    def __init__(self, stored):
        self.stored = stored

    def get_password(self, service, name):
        if self.stored is None:
            raise self.errors.KeyringError("No recommended backend was available.")
        return self.stored.get((service, name))


def test_the_keyring_is_asked_where_the_variable_is_not_set(monkeypatch):
    monkeypatch.delenv("FINNHUB_API_KEY")
    stored = StandInKeyring({("fintune", "FINNHUB_API_KEY"): "from-the-keyring"})
    monkeypatch.setitem(sys.modules, "keyring", stored)
    assert finnhub.endpoint("https://finnhub.io").key.reveal() == "from-the-keyring"
    for none in (StandInKeyring({}), StandInKeyring(None)):
        monkeypatch.setitem(sys.modules, "keyring", none)
        with pytest.raises(ProviderError, match="FINNHUB_API_KEY is not set"):
            finnhub.endpoint("https://finnhub.io")


@pytest.mark.parametrize("url", ["finnhub.io", "ftp://finnhub.io", "https://user:secret@finnhub.io"])
def test_an_address_is_a_url_without_a_password(url):
    with pytest.raises(RecipeError) as caught:
        finnhub.endpoint(url)
    assert "secret" not in str(caught.value)


def test_offline_only_this_machine_is_asked(tmp_path):
    requester = Requester(finnhub.endpoint("https://finnhub.io/api/v1"), AnswerStore(tmp_path))
    with offline_mode(), requester, pytest.raises(ProviderError, match="cannot be asked: offline is set"):
        news(requester)


def test_a_proxy_of_the_environment_is_used(server, tmp_path, monkeypatch, time_passes, online):
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.setenv("no_proxy", "")
    requester = Requester(finnhub.endpoint("http://finnhub.example/finnhub"), AnswerStore(tmp_path),
                          patience=Patience(tries=1), clock=time_passes.clock())  # fmt: skip
    with requester, contextlib.suppress(Refused):
        news(requester)
    assert sum(server.asked.values()) == 1
