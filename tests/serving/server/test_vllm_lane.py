"""The contract with vLLM's step-by-step engine, kept by a stand-in."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from tests.serving.server.conftest import SETTINGS, chat, serving
from tests.serving.server.test_engine import until
from tests.serving.server.test_limits import PATH
from tests.vllm_stand_in import install

from fintune.schema.errors import DependencyError, ModelError
from fintune.serving.server.opening import Served, open_service
from fintune.serving.server.vllm_lane import VllmLane

CPU = torch.device("cpu")


@pytest.fixture
def vllm(places, monkeypatch):
    engines = install(monkeypatch)
    named = {name: str(place) for name, place in places.adapters.items()}
    with serving(Served(str(places.base), named, engine="vllm"), SETTINGS, None, "none") as live:
        yield live, engines[-1]


def test_requests_reach_vllm_with_their_adapter_and_manner(vllm, places):
    live, engine = vllm
    assert engine.options["enable_lora"] and engine.options["gpu_memory_utilization"] == 0.5
    with live.client() as client:
        asked = {"temperature": 0.5, "top_p": 0.9, "seed": 3, "presence_penalty": 1, "logit_bias": {"7": 2}}
        got = client.post(PATH, json=chat("two", **asked, max_tokens=6))
        assert got.status_code == 200 and got.json()["usage"]["completion_tokens"] == 6
        streamed = client.post(PATH, json=chat("tiny", max_tokens=6, stream=True)).text
        schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
        form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
        client.post(PATH, json=chat("one", response_format=form))
        client.post(PATH, json=chat("one", choices=["a", "b"]))
        labels = client.post("/v1/classify", json={"model": "one", "input": "Sales rose"}).json()
    tuned, base, formed, chosen = engine.llm_engine.requests
    assert tuned.lora.lora_path == str(places.adapters["two"]) and base.lora is None
    assert formed.lora.lora_int_id == 1 and tuned.lora.lora_int_id == 2
    params = tuned.params
    assert (params.temperature, params.top_p, params.seed, params.presence_penalty) == (0.5, 0.9, 3, 1)
    assert params.logit_bias == {7: 2} and params.ignore_eos and not params.detokenize and params.max_tokens == 6
    assert formed.params.structured_outputs.json == schema and chosen.params.structured_outputs.choice == ["a", "b"]
    assert got.json()["choices"][0]["finish_reason"] == "length" and streamed.endswith("data: [DONE]\n\n")
    assert set(labels["data"][0]["probabilities"]) == {"negative", "neutral", "positive"}


def test_an_adapter_that_goes_leaves_vllm_and_its_number_is_not_used_again(vllm, places):
    live, engine = vllm
    models = live.service.models
    loop = live.running._loop

    def in_engine(function):
        return asyncio.run_coroutine_threadsafe(live.service.engine.call(function), loop).result(10)

    with live.client() as client:
        for name in ("one", "two"):
            assert client.post(PATH, json=chat(name, max_tokens=1)).status_code == 200
        gone = in_engine(lambda: models.unlist("one"))
        live.service.engine.retire(gone, lambda: models.forget(gone))
        assert until(lambda: engine.llm_engine.loras == {2})
        in_engine(lambda: models.add("third", places.adapters["one"]))
        assert len(gone.lane._adapters) == 2
        client.post(PATH, json=chat("third", max_tokens=1))
    assert engine.llm_engine.requests[-1].lora.lora_int_id == 3


def test_answers_that_end_here_are_taken_out_there(vllm, monkeypatch):
    live, engine = vllm
    with live.client() as client:
        first = client.post(PATH, json=chat("tiny", max_tokens=40)).json()["choices"][0]["message"]["content"]
        stopped = client.post(PATH, json=chat("tiny", max_tokens=40, stop=first[3:5])).json()["choices"][0]
        assert stopped["finish_reason"] == "stop" and stopped["message"]["content"] == first[: first.index(first[3:5])]
        whole = engine.llm_engine.step
        monkeypatch.setattr(engine.llm_engine, "step", lambda: time.sleep(0.01) or whole())
        with client.stream("POST", PATH, json=chat("tiny", max_tokens=500, stream=True)) as stream:
            next(stream.iter_lines())
    deadline = time.monotonic() + 10
    while live.service.engine._lanes and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not engine.llm_engine.open and len(engine.llm_engine.aborted) == 2


@pytest.mark.parametrize(("error", "status"), [(ValueError("too long a prompt"), 400), (RuntimeError("broken"), 500)])
def test_what_vllm_refuses_leaves_nothing_behind(vllm, monkeypatch, error, status):
    live, engine = vllm

    def refuse(*given, **more):
        raise error

    with live.client() as client:
        with monkeypatch.context() as patch:
            patch.setattr(engine.llm_engine, "add_request", refuse)
            got = client.post(PATH, json=chat("one"))
        assert got.status_code == status and ("too long a prompt" in got.text) == (status == 400)
        one = live.service.models.get("one")
        assert one.lane.is_idle and not one.lane.uses(one)
        assert client.post(PATH, json=chat("one", max_tokens=1)).status_code == 200


def test_what_vllm_cannot_do_is_said_at_the_start(places, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(DependencyError, match="Install vllm"):
        open_service(Served(str(places.base), engine="vllm"), SETTINGS, None, device=CPU, server_log=None)
    install(monkeypatch)
    with pytest.raises(ModelError, match="held as int8"):
        VllmLane(2).open(SimpleNamespace(quantization="int8"))
    large = tmp_path / "large"
    large.mkdir()
    for file in places.adapters["one"].iterdir():
        (large / file.name).write_bytes(file.read_bytes())
    config = json.loads((large / "adapter_config.json").read_text())
    (large / "adapter_config.json").write_text(json.dumps({**config, "rank_pattern": {"nothing": 65}}))
    with pytest.raises(ModelError, match="room for 64"):
        VllmLane(2).of(SimpleNamespace(adapter=large))
