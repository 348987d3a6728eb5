"""Prompts become tokens one at a time: short ones first, none for nothing, and whoever waits is counted."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from tests.serving.server.conftest import chat
from tests.serving.server.test_engine import until
from tests.serving.server.test_hostile import open_answers
from tests.serving.server.test_limits import PATH, code

from fintune.serving.server.reading import Reader


def test_the_shortest_is_read_first_and_what_nobody_waits_for_never():
    async def main():
        reader, begun, go_on, read = Reader(), threading.Event(), threading.Event(), []
        later = time.monotonic() + 20
        first = asyncio.ensure_future(reader.read(9, lambda: begun.set() or go_on.wait(), later))
        await asyncio.to_thread(begun.wait)
        lengths = (500, 3, 70, 8)
        rest = [asyncio.ensure_future(reader.read(n, lambda n=n: read.append(n), later)) for n in lengths]
        with pytest.raises(TimeoutError):
            await reader.read(1, lambda: read.append("late"), time.monotonic() + 0.05)
        rest[2].cancel()
        await asyncio.sleep(0)
        go_on.set()
        await asyncio.gather(first, *rest, return_exceptions=True)
        with pytest.raises(ZeroDivisionError):
            await reader.read(1, lambda: 1 / 0, later)
        reader.stop()
        return read

    assert asyncio.run(main()) == [3, 8, 500]


def busy_reader(server, go_on):
    """Lets the server's reader wait for ``go_on``, as with a prompt that takes long."""
    read = server.service.routes.reader.read(0, go_on.wait, time.monotonic() + 60)
    return asyncio.run_coroutine_threadsafe(read, server.running._loop)


def test_requests_that_are_read_are_counted_and_timed_and_forgotten_with_their_client(another):
    go_on = threading.Event()
    with another(max_waiting=1, slots=1, request_timeout_s=1.5) as server, server.client() as client:
        assert client.post(PATH, json=chat(max_tokens=1)).status_code == 200
        reading = busy_reader(server, go_on)
        try:
            with pytest.raises(httpx.TimeoutException):
                client.post(PATH, json=chat(n=2), timeout=0.2)
            assert until(lambda: open_answers(server) == 0, 1), "its client has gone"
            with ThreadPoolExecutor(2) as pool:
                began = time.monotonic()
                asked = [pool.submit(client.post, PATH, json=chat(stream=stream)) for stream in (False, True)]
                assert until(lambda: open_answers(server) == 2)
                for path, body in ((PATH, chat()), ("/v1/classify", {"model": "one", "input": "Sales rose"})):
                    assert code(client.post(path, json=body)) == (429, "overloaded")
                assert [code(answer.result()) for answer in asked] == [(504, "timeout")] * 2
                assert time.monotonic() - began < 4
        finally:
            go_on.set()
        reading.result(10)
        assert open_answers(server) == 0


def test_a_text_that_cannot_fit_is_not_tokenised(live, monkeypatch):
    model = live.service.models.get("one")
    monkeypatch.setattr(model.predictor.scorer.chat, "_shown", lambda *given: pytest.fail("it was tokenised"))
    long = "dividend " * 20_000
    assert len(long) > 1024 * model.longest_token
    with live.client() as client:
        for path, body in (
            (PATH, chat(text=long)),
            ("/v1/completions", {"model": "one", "prompt": long}),
            ("/v1/classify", {"model": "one", "input": long, "choices": ["up", "down"]}),
        ):
            assert code(client.post(path, json=body)) == (400, "context_length_exceeded")
