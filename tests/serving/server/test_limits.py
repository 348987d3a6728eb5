"""Keys, sizes, rates and times: each refusal has its status code and says what to do."""

from __future__ import annotations

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.serving.server.conftest import chat

from fintune.cli import main
from fintune.schema.errors import DataError, RunError
from fintune.serving.server.constraints import Constraint
from fintune.serving.server.keys import ApiKey, KeyRing, add_key, digest, read_keys, remove_key
from fintune.serving.server.limits import Bucket, Limiter
from fintune.serving.server.problems import HttpProblem
from fintune.serving.server.running import is_loopback, listen
from fintune.serving.server.settings import KeyLimits

PATH = "/v1/chat/completions"


def code(response):
    return response.status_code, response.json()["error"]["code"]


def test_who_has_no_key_gets_nothing_but_health(live):
    with live.client(key="sk-fintune-wrong") as client:
        for path in ("/v1/models", "/metrics", "/openapi.json", "/nothing"):
            assert code(client.get(path)) == (401, "invalid_api_key")
        assert code(client.post(PATH, json=chat())) == (401, "invalid_api_key")
        assert client.get("/health").json()["status"] == "ok"
        assert code(client.get("/v1/models", headers={"authorization": "Basic abc"})) == (401, "invalid_api_key")
        assert client.get("/v1/models", headers={"authorization": b"Bearer \xff\xfe"}).status_code == 401


def test_keys_come_and_go_while_the_server_runs(live):
    file = live.service.keys.file
    fresh = add_key(file, "fresh")
    assert fresh not in file.read_text() and file.stat().st_mode & 0o077 == 0
    with live.client(key=fresh) as client:

        def until(status):
            deadline = time.monotonic() + 10
            while client.get("/v1/models").status_code != status and time.monotonic() < deadline:
                time.sleep(0.05)
            return client.get("/v1/models").status_code

        assert until(200) == 200
        remove_key(file, "fresh")
        assert until(401) == 401


def test_a_damaged_key_file_changes_nothing_and_is_one_sentence(tmp_path, caplog):
    file = tmp_path / "keys.json"
    secret = add_key(file, "a", KeyLimits(tokens_per_minute=5))
    ring = KeyRing(file, KeyLimits(10, 20, 3))
    assert ring.find(secret).limits == KeyLimits(10, 5, 3) and ring.find("x") is None and ring.find(None) is None
    whole = json.loads(file.read_text())
    entry = whole["keys"][0]
    assert entry["sha256"] == digest(secret)
    for bad in ("{", "[]", {"keys": [1]}, {"keys": [{**entry, "name": "../x"}]}, {"keys": [entry, entry]},
                {"keys": [{**entry, "max_concurrent": True}]}, {"keys": [{**entry, "other": 1}]}):  # fmt: skip
        file.write_text(bad if isinstance(bad, str) else json.dumps(bad))
        with pytest.raises(DataError, match=r"keys\.json"):
            read_keys(file)
        ring.refresh()
        assert ring.find(secret) is not None
    assert "stay as they were" in caplog.text
    file.write_text(json.dumps({"keys": []}))
    ring.refresh()
    assert ring.find(secret) is None


def test_the_keys_command(tmp_path, capsys):
    file = str(tmp_path / "keys.json")
    assert main(["--json", "keys", "add", file, "desk", "--requests-per-minute", "5"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert read_keys(Path(file))[0].sha256 == digest(made["key"])
    assert main(["keys", "add", file, "desk"]) == 2
    assert main(["keys", "list", file]) == 0
    out = capsys.readouterr().out
    assert "requests_per_minute 5" in out and made["key"] not in out
    assert main(["keys", "remove", file, "nobody"]) == 2 and main(["keys", "remove", file, "desk"]) == 0
    assert read_keys(Path(file)) == []


def test_requests_a_minute_of_one_key_leave_others_alone(live):
    other = next(key for key in live.service.keys._by_hash.values() if key.name == "other")
    assert other.limits.requests_per_minute == 3
    remove_key(live.service.keys.file, "other")
    secret = add_key(live.service.keys.file, "other", KeyLimits(requests_per_minute=3))
    live.on_loop(live.service.keys.refresh)
    with live.client(key=secret) as client:
        got = [client.post(PATH, json=chat(max_tokens=1)) for _ in range(4)]
        assert [response.status_code for response in got] == [200, 200, 200, 429]
        assert 1 <= int(got[-1].headers["retry-after"]) <= 20 and code(got[-1])[1] == "rate_limit"
        assert client.get("/v1/models").status_code == 200
    with live.client() as client:
        assert client.post(PATH, json=chat(max_tokens=1)).status_code == 200


def test_sizes_and_slow_bodies(live):
    with live.client() as client:
        assert code(client.post(PATH, content=b" " * 300_000)) == (413, "body_too_large")
        assert code(client.post(PATH, content=(b" " * 50_000 for _ in range(20)))) == (413, "body_too_large")
        assert client.post(PATH, json=chat(max_tokens=1)).status_code == 200
        assert code(client.post(PATH, content=b" " * 40_000_000)) == (413, "body_too_large")
        began = time.monotonic()
        assert code(client.post(PATH, content=iter([b" " * 250_000]))) == (413, "body_too_large")
        assert time.monotonic() - began < 2, "a body that has ended is not waited for"
    with raw(live, "Content-Length: 100\r\n\r\n{") as sent:
        began = time.monotonic()
        answer = b"".join(iter(lambda: sent.recv(10_000), b""))  # to the end: the connection is closed
        assert b" 408 " in answer and b"body_timeout" in answer and 2 < time.monotonic() - began < 20


def raw(live, rest, method=f"POST {PATH}"):
    opened = socket.create_connection(live.running._socket.getsockname(), timeout=30)
    head = f"{method} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {live.key}\r\nContent-Type: application/json\r\n"
    opened.sendall((head + rest).encode())
    return opened


def test_open_requests_tokens_and_waiting_answers_are_limited(another):
    limits = KeyLimits(tokens_per_minute=2000, max_concurrent=6)
    with another(limits=limits, max_waiting=2, slots=2, request_timeout_s=60) as server, server.client() as client:
        assert code(client.post(PATH, json=chat(max_tokens=500, n=4))) == (400, "tokens_never_allowed")
        assert code(client.post(PATH, json=chat(n=5, max_tokens=1))) == (400, "too_many_answers"), "it never fits"
        with ThreadPoolExecutor(12) as pool:
            asked = [chat(max_tokens=200, logit_bias={"2": -100}) for _ in range(12)]
            got = list(pool.map(lambda body: client.post(PATH, json=body), asked))
        codes = [response.status_code for response in got]
        assert set(codes) == {200, 429} and codes.count(200) >= 4
        refused = [response for response in got if response.status_code == 429]
        assert {code(response)[1] for response in refused} <= {"overloaded", "too_many_open_requests"}
        assert all(int(response.headers["retry-after"]) >= 1 for response in refused)
        assert server.on_loop(lambda: server.service.waiting.open) == 0
        spent = client.post(PATH, json=chat(max_tokens=500, n=3))
        assert code(spent) == (429, "token_limit") and int(spent.headers["retry-after"]) > 1


def test_a_request_that_takes_too_long_ends_and_frees_its_slot(another):
    with another(request_timeout_s=0.3, slots=1) as server, server.client() as client:
        body = chat(max_tokens=512, logit_bias={"2": -100})
        assert code(client.post(PATH, json=body)) == (504, "timeout")
        with client.stream("POST", PATH, json={**body, "stream": True}) as stream:
            events = [line for line in stream.iter_lines() if line]
        assert json.loads(events[-2][6:])["error"]["code"] == "timeout" and events[-1] == "data: [DONE]"
        assert client.post(PATH, json=chat(max_tokens=1)).status_code == 200


@given(st.integers(1, 100), st.lists(st.tuples(st.floats(0, 30), st.integers(1, 120)), max_size=30))
def test_a_bucket_never_gives_more_than_its_rate(rate, asked):
    now = [0.0]
    bucket, taken = Bucket(rate, lambda: now[0]), 0
    for pause, amount in asked:
        now[0] += pause
        wait_s = bucket.take(amount)
        taken += amount if wait_s == 0 else 0
        assert taken <= rate + now[0] * rate / 60 + 1e-6
        if wait_s and amount <= rate:
            now[0] += wait_s + 1e-6
            assert bucket.take(amount) == 0
            taken += amount


def test_a_limit_that_goes_down_and_up_again_gives_nothing_back():
    now = [0.0]
    bucket = Bucket(100, lambda: now[0])
    assert bucket.take(100) == 0
    bucket.resize(1)
    assert bucket.take(1) == pytest.approx(60), "the smaller limit holds, and shuts nobody out for longer"
    bucket.resize(100)
    assert bucket.take(99) == pytest.approx(59.4)
    bucket.resize(10)
    bucket.resize(1)
    now[0] += 30
    bucket.resize(100)
    assert bucket.take(51) > 0 and bucket.take(49) == 0, "as much as if it had been 100 throughout"


def test_new_limits_of_a_key_forget_neither_what_is_spent_nor_what_is_open():
    now = [0.0]
    limiter = Limiter(lambda: now[0])
    few, more = (
        ApiKey("desk", "", "", limits)
        for limits in (KeyLimits(2, 100, 3), KeyLimits(requests_per_minute=4, tokens_per_minute=150, max_concurrent=3))
    )
    with limiter.request(few) as older, older.tokens(90) as reserved:
        with limiter.request(more) as newer, pytest.raises(HttpProblem) as refused, newer.tokens(70):
            pass
        assert refused.value.code == "token_limit"
        for _ in range(3):  # the older request goes on under its limits, newer ones come under theirs
            with pytest.raises(HttpProblem), older.tokens(61):
                pass
            with pytest.raises(HttpProblem), newer.tokens(61):
                pass
        with newer.tokens(60):
            pass
        reserved.used = 90
    assert newer is older and newer.open == 0
    for _ in range(2):
        with limiter.request(more):
            pass
    for key in (more, more, few):
        with pytest.raises(HttpProblem) as refused, limiter.request(key):
            pass
        assert refused.value.code == "rate_limit"
    now[0] += 60
    with limiter.request(few), limiter.request(few), pytest.raises(HttpProblem), limiter.request(few):
        pass


def test_listening(tmp_path):
    assert is_loopback("127.0.0.1") and is_loopback("localhost") and is_loopback("::1") and not is_loopback("0.0.0.0")
    with listen("127.0.0.1", 0) as opened, pytest.raises(RunError, match="cannot listen at 127.0.0.1"):
        listen("127.0.0.1", opened.getsockname()[1])
    assert main(["serve", str(tmp_path), "--host", "0.0.0.0"]) == 2


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "multipleOf": 199_999},
        {"allOf": [{"type": "integer", "multipleOf": 997}, {"type": "integer", "multipleOf": 991}]},
        {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(1100)}},
        {"type": "object", "patternProperties": {f"^p{i}x": {"type": "string"} for i in range(300)}},
    ],
    ids=["multiple", "multiples", "names", "patterns"],
)
def test_a_schema_that_takes_long_to_read_is_refused_before_anything_waits(live, schema):
    wanted = {"type": "json_schema", "json_schema": {"name": "m", "schema": schema}}
    with live.client() as client:
        answer = client.post(PATH, json=chat(response_format=wanted, max_tokens=1))
        assert code(answer) == (400, "invalid_schema") and "too long to read" in answer.text


def test_the_engine_reads_no_form(live, monkeypatch):
    """Answers share what the reader's thread has read; common multiples are not refused."""
    threads, read = [], Constraint.__init__

    def noted(constraint, *given):
        threads.append(threading.current_thread().name)
        read(constraint, *given)

    monkeypatch.setattr(Constraint, "__init__", noted)
    schema = {"type": "array", "items": {"type": "number", "multipleOf": 0.25}, "minItems": 1, "maxItems": 2}
    wanted = {"type": "json_schema", "json_schema": {"name": "m", "schema": schema}}
    with live.client() as client:
        got = client.post(PATH, json=chat(response_format=wanted, n=3, max_tokens=40, temperature=1.0, seed=4)).json()
    assert threads == ["fintune-reader"] and len(got["choices"]) == 3
    for choice in got["choices"]:
        text = choice["message"]["content"]
        assert text.startswith("[") and (choice["finish_reason"] == "length" or json.loads(text)[0] % 0.25 == 0)
