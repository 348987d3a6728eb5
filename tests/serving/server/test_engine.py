"""The parts between a request and its tokens: text, lanes, adapters that come and go, memory that runs out."""

from __future__ import annotations

import json
import shutil
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft.tuners.lora.layer import LoraLayer
from tests.inference.test_equality import with_random_adapter
from tests.serving.server.conftest import chat
from tests.serving.server.test_hostile import settled
from tests.serving.server.test_limits import PATH, code

import fintune
from fintune.inference.continuous import SlotWriter
from fintune.models.tiny import tiny_tokenizer, write_tiny_model
from fintune.schema.errors import AdapterError, ModelError
from fintune.serving.server.lanes import SlotLane
from fintune.serving.server.models import open_models
from fintune.serving.server.text import AnswerText
from fintune.serving.server.watching import AdapterFolder
from fintune.serving.switching import AdapterHost, base_section

TOKENIZER = tiny_tokenizer()
CPU = torch.device("cpu")


@given(st.lists(st.integers(0, 499), max_size=40))
def test_pieces_of_text_make_the_whole(tokens):
    text = AnswerText(TOKENIZER.backend_tokenizer)
    pieces = [text.add(token) for token in tokens]
    assert "".join([*pieces, text.rest()]) == TOKENIZER.decode(tokens, skip_special_tokens=True)


@given(st.text("abc é€", max_size=30), st.lists(st.text("abc é€", min_size=1, max_size=4), min_size=1, max_size=3))
def test_no_part_of_a_stop_string_is_ever_shown(whole, stops):
    text, shown = AnswerText(TOKENIZER.backend_tokenizer, stops), ""
    for token in TOKENIZER(whole, add_special_tokens=False)["input_ids"]:
        shown += text.add(token)
        if text.stopped:
            break
    shown += text.rest()
    first = min((start for stop in stops if (start := whole.find(stop)) >= 0), default=None)
    # Of several that overlap, the one complete first counts, so the answer may go on to the start of that one.
    assert text.stopped == (first is not None) and whole.startswith(shown)
    assert not any(stop in shown for stop in stops)
    if first is None:
        assert shown == whole


def until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def test_adapters_come_change_and_go_while_requests_run(live, places, tmp_path):
    folder = live.service.folder.folder
    made = {name: tmp_path / name for name in ("third", "changed", "broken")}
    for spread, name in ((0.4, "third"), (0.9, "changed")):
        with_random_adapter(places.base, spread).save_pretrained(made[name])
    other = write_tiny_model(tmp_path / "tiny", seed=3, layers=3)
    with_random_adapter(other).save_pretrained(made["broken"])
    expected = {
        name: fintune.load(made[name], device="cpu").predict(["Sales rose"])[0] for name in ("third", "changed")
    }

    def label(model):
        got = client.post("/v1/classify", json={"model": model, "input": "Sales rose"})
        return got.json()["data"][0]["probabilities"] if got.status_code == 200 else None

    def answers_as(name):
        found = label("third")
        return found is not None and np.allclose([*found.values()], [*expected[name].probabilities.values()], atol=1e-5)

    with live.client() as client, live.client() as streaming:
        assert code(client.post(PATH, json=chat("third"))) == (404, "model_not_found")
        shutil.copytree(made["broken"], folder / "broken")
        shutil.copytree(made["third"], folder / "third")
        assert until(lambda: answers_as("third"))
        with streaming.stream(
            "POST", PATH, json=chat("third", max_tokens=300, stream=True, logit_bias={"2": -100})
        ) as r:
            lines = r.iter_lines()
            next(lines)
            shutil.copytree(made["changed"], folder / "third", dirs_exist_ok=True)
            assert until(lambda: answers_as("changed"))
            assert [line for line in lines if line][-1] == "data: [DONE]", "an answer under way ends with its adapter"
        shutil.rmtree(folder / "third")
        assert until(lambda: label("third") is None)
        assert label("one") is not None and settled(live)
        assert until(lambda: not live.service.engine._retired)
        assert code(client.post(PATH, json=chat("broken"))) == (404, "model_not_found")
        shutil.rmtree(folder / "broken")
    told = [(event["model"], event["result"]) for event in live.events() if event["event"] == "adapter"]
    assert told.count(("third", "loaded")) == 2 and ("third", "removed") in told and ("broken", "failed") in told
    assert len(live.service.models.host.edge_model.model.peft_config) == 2, "what is gone is gone from memory too"


def test_a_folder_that_is_being_copied_is_not_read(places, tmp_path):
    folder = AdapterFolder(tmp_path / "watched")
    (tmp_path / "watched").mkdir()
    assert folder.begin() == folder.changes() == []
    one = tmp_path / "watched" / "one"
    one.mkdir()
    shutil.copy(places.adapters["one"] / "adapter_config.json", one)
    assert folder.changes() == []
    shutil.copy(places.adapters["one"] / "adapter_model.safetensors", one)
    assert folder.changes() == []
    assert [(change.name, change.gone) for change in folder.changes()] == [("one", False)] and folder.changes() == []
    shutil.copytree(one, tmp_path / "watched" / ".hidden")
    (tmp_path / "watched" / "no adapter").mkdir()
    assert folder.changes() == folder.changes() == []
    shutil.rmtree(one)
    assert [(change.name, change.gone) for change in folder.changes()] == [("one", True)] and folder.changes() == []


def test_a_first_adapter_that_does_not_fit_leaves_the_base_as_it_was(places, tmp_path):
    other = write_tiny_model(tmp_path / "tiny", seed=3, layers=3)
    with_random_adapter(other).save_pretrained(tmp_path / "misfit")
    host = AdapterHost(base_section(str(places.base), {}, None), device=CPU)
    expected = host.base.predict(["Sales rose"])[0].probabilities
    for _ in range(2):
        with pytest.raises(AdapterError, match="misfit"):
            host.add(tmp_path / "misfit")
    assert host.base.predict(["Sales rose"])[0].probabilities == expected
    added = host.add(places.adapters["one"])
    alone = fintune.load(places.adapters["one"], device="cpu")
    assert added.predict(["Sales rose"])[0].probabilities == alone.predict(["Sales rose"])[0].probabilities
    host.remove(added)
    assert host.base.predict(["Sales rose"])[0].probabilities == expected
    again = host.add(places.adapters["one"])
    assert again.predict(["Sales rose"])[0].probabilities == alone.predict(["Sales rose"])[0].probabilities


def test_an_adapter_that_ran_out_of_memory_halfway_keeps_no_later_one_out(places, monkeypatch):
    host = AdapterHost(base_section(str(places.base), {}, None), device=CPU)
    first = host.add(places.adapters["one"])
    expected = [predictor.predict(["Sales rose"])[0].probabilities for predictor in (host.base, first)]
    whole, calls = LoraLayer.reset_lora_parameters, []

    def out_of_memory(layer, *given, **more):
        calls.append(layer)
        if len(calls) == 2:
            raise torch.OutOfMemoryError
        return whole(layer, *given, **more)

    with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
        patch.setattr(LoraLayer, "reset_lora_parameters", out_of_memory)
        host.add(places.adapters["two"])
    assert [predictor.predict(["Sales rose"])[0].probabilities for predictor in (host.base, first)] == expected
    alone = fintune.load(places.adapters["two"], device="cpu").predict(["Sales rose"])[0].probabilities
    assert host.add(places.adapters["two"]).predict(["Sales rose"])[0].probabilities == alone


def test_names_and_bases_that_do_not_go_together(places):
    def opened(place, adapters, **options):
        return open_models(
            str(place), adapters, device=CPU, make_lane=lambda predictor: SlotLane(predictor, 2), **options
        )

    models = opened(places.adapters["one"], {"two": places.adapters["two"]})
    assert list(models.by_name) == ["tiny", "one", "two"] and models.get("one").parent == "tiny"
    with pytest.raises(AdapterError, match="called tiny already"):
        opened(places.base, {"tiny": places.adapters["two"]})
    with pytest.raises(ModelError, match="does not exist"):
        opened(places.base.parent / "nothing/here/at/all", {})


def test_little_memory_makes_it_slower_and_not_fail(live, monkeypatch):
    whole, most = SlotWriter._write_token, []

    def with_little_memory(writer):
        if len(writer.active) > 2:
            raise torch.OutOfMemoryError
        most.append(len(writer.active))
        whole(writer)

    monkeypatch.setattr(SlotWriter, "_write_token", with_little_memory)
    with live.client() as client:
        body = chat("two", n=4, seed=5, max_tokens=12, temperature=1.0)
        got = client.post(PATH, json=body).json()
        assert max(most) == 2
        monkeypatch.setattr(SlotWriter, "_write_token", whole)
        live.service.models.get("two").lane._slots = 4
        again = client.post(PATH, json=body).json()
    assert [choice["message"] for choice in got["choices"]] == [choice["message"] for choice in again["choices"]]


def test_a_step_that_fails_ends_its_answers_and_nothing_else(live, monkeypatch):
    with live.client() as client:
        with monkeypatch.context() as patch:
            patch.setattr(SlotWriter, "_read_tree", lambda *given: 1 / 0)
            assert code(client.post(PATH, json=chat())) == (500, "failed")
            events = client.post(PATH, json=chat(stream=True)).text.split("\n\n")
            assert json.loads(events[-3][6:])["error"]["code"] == "failed"
        assert client.post(PATH, json=chat()).status_code == 200
        with monkeypatch.context() as patch:
            patch.setattr(SlotLane, "add", lambda *given: 1 / 0)
            assert code(client.post(PATH, json=chat())) == (500, "failed")
        assert client.post(PATH, json=chat()).status_code == 200
        with monkeypatch.context() as patch:
            patch.setattr("fintune.serving.server.classifying.choice_log_likelihoods", lambda *given, **more: 1 / 0)
            assert code(client.post("/v1/classify", json={"model": "one", "input": "x"})) == (500, "failed")
        assert client.post("/v1/classify", json={"model": "one", "input": "x"}).status_code == 200
    assert settled(live)


def test_metrics_count_what_was_asked_and_written(live):
    def value(page, start):
        return next((float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith(start)), 0.0)

    written = 'fintune_tokens_total{kind="completion",model="tiny"}'
    with live.client() as client:
        before = client.get("/metrics").text
        usage = client.post(PATH, json=chat("tiny", max_tokens=20)).json()["usage"]
        after = client.get("/metrics").text
    assert value(after, written) - value(before, written) == usage["completion_tokens"]
    ok = 'fintune_requests_total{route="/v1/chat/completions",status="200"}'
    assert value(after, ok) - value(before, ok) == 1
    assert value(after, "process_resident_memory_bytes") > 1e7 and value(after, "fintune_models") >= 3
    assert value(after, 'fintune_first_token_seconds_count{model="tiny"}') >= 1
