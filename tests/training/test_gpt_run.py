"""A GPT from scratch through the whole of a run: trained, scored, stored, read again and asked."""

from __future__ import annotations

import pytest

import fintune
from fintune.models.gpt import optimised, write_untrained
from fintune.models.tiny import tiny_tokenizer
from tests.runs import losses, run


@pytest.mark.slow
def test_a_run_trains_every_weight_of_a_gpt_that_has_read_nothing(tmp_path):
    folder = write_untrained(tmp_path / "untrained", optimised("tiny", 512), tiny_tokenizer(512))
    options = ("adapter.kind=none", "training.packing=sequence", "training.learning_rate=1e-2", "data.train_limit=32")
    outcome = run(folder, tmp_path / "run", *options, "evaluation.limit=8")
    assert losses(outcome)[-1] < losses(outcome)[0] - 0.5
    assert fintune.load(outcome.adapter_dir).predict(["Profit rose."])[0].label in {"negative", "neutral", "positive"}
