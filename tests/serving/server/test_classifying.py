"""Classifications in turns: the same probabilities, short turns, and nothing computed for who has gone."""

from __future__ import annotations

import contextlib
import threading
import time

import httpx
import numpy as np
import pytest
import torch
from tests.serving.server.conftest import chat
from tests.serving.server.test_engine import until
from tests.serving.server.test_hostile import open_answers, settled
from tests.serving.server.test_limits import PATH, code

from fintune.serving.server import classifying

CHOICES = [f"{word} number {number} of them" for number in range(24) for word in ("rise", "fall")]
BIG = {"model": "one", "input": [f"Is it text {number}?" for number in range(16)], "choices": CHOICES}
ask = classifying.choice_log_likelihoods


def recorded(monkeypatch, pause_s=0.0):
    """The tokens of every batch that is asked from now on, each of which takes ``pause_s`` longer."""
    tokens = []

    def slow(model, examples, **options):
        tokens.append(sum(classifying.computed_tokens(example, options["packing"]) for example in examples))
        time.sleep(pause_s)
        return ask(model, examples, **options)

    monkeypatch.setattr(classifying, "choice_log_likelihoods", slow)
    return tokens


def test_choices_spread_over_turns_have_the_probabilities_of_one_turn(live, monkeypatch):
    queue = live.service.engine._classifying
    asked = {**BIG, "input": BIG["input"][:3]}
    found = []
    tokens = recorded(monkeypatch)
    with live.client() as client:
        for budget, turn_s in ((1 << 20, 60), (classifying.LEAST, 0)):  # the device is never too slow, or always
            monkeypatch.setattr(queue, "_budget", budget)
            monkeypatch.setattr(classifying, "TURN_S", turn_s)
            tokens.clear()
            rows = client.post("/v1/classify", json=asked).json()["data"]
            found.append([list(row["probabilities"].values()) for row in rows])
    assert len(tokens) > 6 and max(tokens) <= classifying.LEAST + 40
    assert len(found[0][0]) == len(CHOICES) and np.allclose(*found, atol=1e-6)


def test_a_large_classification_is_slow_alone_and_ends_with_its_client(live, monkeypatch):
    monkeypatch.setattr(live.service.engine._classifying, "_budget", classifying.LEAST)
    monkeypatch.setattr(classifying, "TURN_S", 0)
    tokens = recorded(monkeypatch, 0.3)
    gone = threading.Event()

    def give_up():
        with contextlib.suppress(httpx.TimeoutException), live.client() as leaving:
            leaving.post("/v1/classify", json=BIG, timeout=0.7)
        gone.set()

    with live.client() as client:
        leaving = threading.Thread(target=give_up)
        leaving.start()
        assert until(lambda: tokens)
        began = time.monotonic()
        assert client.post(PATH, json=chat(max_tokens=1)).status_code == 200
        small = {"model": "two", "input": "Sales rose", "choices": ["up", "down"]}
        assert client.post("/v1/classify", json=small).status_code == 200
        assert time.monotonic() - began < 4, "the large one takes more than 10 seconds"
        assert gone.wait(10)
        n_then = len(tokens)
        assert settled(live) and time.monotonic() - began < 8
        leaving.join()
    assert len(tokens) <= n_then + 1 and max(tokens) < 500


def test_places_are_taken_until_the_engine_lets_go(live):
    go_on = threading.Event()
    blocked = live.on_loop(lambda: live.service.engine._inbox.put(go_on.wait))
    assert blocked is None
    try:
        with live.client() as client:
            for path, body in ((PATH, chat()), ("/v1/classify", {"model": "one", "input": "x"})):
                with pytest.raises(httpx.TimeoutException):
                    client.post(path, json=body, timeout=0.3)
        time.sleep(0.2)
        assert live.service.guard.open == 0 and open_answers(live) == 2
    finally:
        go_on.set()
    assert settled(live)


def test_a_classification_has_a_limit_of_tokens_and_health_tells_of_a_stuck_engine(another):
    with another(max_classify_tokens=2000, stuck_s=0.3) as server, server.client() as client:
        assert code(client.post("/v1/classify", json=BIG)) == (400, "too_many_tokens")
        assert client.post("/v1/classify", json={**BIG, "input": BIG["input"][:1]}).status_code == 200
        time.sleep(0.5)
        assert client.get("/health").json()["status"] == "ok", "an engine without work is not stuck"
        go_on = threading.Event()
        server.service.engine._inbox.put(go_on.wait)
        time.sleep(0.5)
        stuck = client.get("/health")
        go_on.set()
        assert (stuck.status_code, stuck.json()["status"]) == (503, "stuck")
        assert client.post(PATH, json=chat(max_tokens=1)).status_code == 200
        assert client.get("/health").status_code == 200


def test_little_memory_makes_turns_smaller_and_ends_only_what_never_fits(live, monkeypatch):
    def with_little_memory(model, examples, **options):
        if sum(classifying.computed_tokens(example, options["packing"]) for example in examples) > 150:
            raise torch.OutOfMemoryError
        return ask(model, examples, **options)

    fits = {"model": "one", "input": [f"Is it text {number}?" for number in range(8)], "choices": ["rise", "fall"]}
    with live.client() as client:
        whole = client.post("/v1/classify", json=fits).json()["data"]
        monkeypatch.setattr(classifying, "choice_log_likelihoods", with_little_memory)
        never = client.post("/v1/classify", json={**fits, "input": ["Is it this one? " * 60]})
        assert code(never) == (503, "out_of_memory")
        parts = client.post("/v1/classify", json=fits).json()["data"]
    for one, other in zip(whole, parts, strict=True):
        assert list(one["probabilities"].values()) == pytest.approx(list(other["probabilities"].values()), abs=1e-5)
