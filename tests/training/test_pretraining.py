"""Pretraining by recipe: Muon, warm-up with plateau and decay, compiled blocks; resumed to the same bits."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from fintune.models.gpt import optimised, write_untrained
from fintune.models.tiny import tiny_tokenizer
from fintune.schema.errors import RecipeError
from fintune.schema.loading import load_recipe
from fintune.training.arguments import _decay
from tests.runs import killed_at_step, losses, metrics, run, weights

MUON = (
    "adapter.kind=none",
    "evaluation.base=false",
    "evaluation.limit=3",
    "training.packing=sequence",
    "training.optimizer=muon",
    "training.learning_rate=0.02",
    "training.adam_beta2=0.999",  # the default again: quickstart has one of its own
    "training.schedule=wsd",
    "training.decay_ratio=0.5",
    "training.weight_decay=0.1",
)


@pytest.fixture(scope="module")
def gpt(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt") / "untrained"
    return write_untrained(folder, optimised("tiny", 512), tiny_tokenizer(512))


def test_a_resumed_run_with_muon_ends_in_the_same_bits(gpt, tmp_path, monkeypatch):
    straight = run(gpt, tmp_path / "straight", *MUON)
    with killed_at_step(3, monkeypatch):
        run(gpt, tmp_path / "run", *MUON)
    resumed = run(gpt, tmp_path / "run", *MUON)
    assert resumed.facts["resumed_from_step"] == 2
    assert losses(resumed) == losses(straight) and weights(resumed) == weights(straight)
    assert losses(straight)[-1] < losses(straight)[0]
    rates = [row["learning_rate"] for row in metrics(straight) if "loss" in row]
    assert rates == pytest.approx([0.0, 0.02, 0.02, 0.02, 0.04 / 3, 0.02 / 3])  # a step of warm-up, three of decay


# Dynamo looks at every tensor's gradient and hides the warning by a filter that pytest's own stands before.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_blocks_learn_what_plain_ones_do(gpt, base, tmp_path, monkeypatch, caplog):
    plain = run(gpt, tmp_path / "plain", *MUON, "data.train_limit=16")
    torch.compiler.reset()
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    compiled = run(gpt, tmp_path / "compiled", *MUON, "data.train_limit=16", "training.compile=true")
    assert losses(compiled) == pytest.approx(losses(plain), abs=1e-5)
    assert counter.frame_count > 0 and "training.compile does nothing" not in caplog.text
    run(base, tmp_path / "llama", *MUON, "data.train_limit=16", "training.compile=true")
    assert "training.compile does nothing for LlamaForCausalLM" in caplog.text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("training.optimizer=muon",), "adapter.kind=lora trains thin ones"),
        (("adapter.kind=none", "training.optimizer=muon", "training.adam_beta2=0.95"), "would be ignored"),
        (("adapter.kind=none", *MUON, "distributed.strategy=fsdp2"), "Muon looks at whole matrices"),
        (("training.compile=true",), "trained as a whole"),
        (("adapter.kind=none", "training.compile=true", "distributed.strategy=zero3"), "whole weights"),
        (("training.schedule=wsd", "training.warmup_steps=null", "training.warmup_ratio=0.7"), "no steps between"),
    ],
)
def test_what_cannot_be_combined_is_said(changes, words):
    with pytest.raises(RecipeError, match=words):
        load_recipe("quickstart", overrides=["model.quantization=none", *changes])


def test_a_long_warm_up_shortens_the_decay():
    training = load_recipe("gpt-scratch").training
    assert _decay(training, 10, 100) == {"num_decay_steps": 40, "decay_type": "linear"}
    assert _decay(training, 90, 100)["num_decay_steps"] == 10 and _decay(training, 120, 100)["num_decay_steps"] == 0
