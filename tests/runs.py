"""Short whole runs on a tiny random model and the shipped sample."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import fintune
from fintune.schema.outcomes import TrainingOutcome
from fintune.training import trainer

QUICK = (
    "model.quantization=none",
    "adapter.rank=4",
    "adapter.alpha=8",
    "data.train_limit=48",
    "data.validation_limit=24",
    "training.save_steps=2",
    "training.warmup_steps=1",
    "training.tracking=[]",
    "evaluation.limit=40",
    "evaluation.bootstrap_samples=100",
    "evaluation.baselines=[majority]",
    "report.enabled=false",
)


def run(base: Path, place: Path, *changes: str, recipe: str | Path = "quickstart", **options) -> TrainingOutcome:
    overrides = [f"model.base={base}", *QUICK, *changes]
    return fintune.train(recipe, overrides=overrides, output_dir=place, progress=False, **options)


def metrics(outcome: TrainingOutcome) -> list[dict]:
    return [json.loads(line) for line in (outcome.run_dir / "metrics.jsonl").read_text().splitlines()]


def losses(outcome: TrainingOutcome) -> list[float]:
    return [row["loss"] for row in metrics(outcome) if "loss" in row]


def weights(outcome: TrainingOutcome) -> bytes:
    (file,) = outcome.adapter_dir.glob("*model.safetensors")
    return file.read_bytes()


class Killed(Exception):
    """Stands for a kill in the middle of training."""


@contextmanager
def killed_at_step(step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The training in the block dies before its update number ``step``, counted from 0."""
    train_step = trainer.TreeTrainer.training_step

    def dies(self, model, inputs, num_items_in_batch=None):
        if self.state.global_step == step:
            raise Killed
        return train_step(self, model, inputs, num_items_in_batch)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(trainer.TreeTrainer, "training_step", dies)
        yield
