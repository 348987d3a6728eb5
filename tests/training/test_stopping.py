"""Early stopping: what counts as better, and a run that stops, also when it is killed just then."""

from __future__ import annotations

import math

import pytest

from fintune import learning
from fintune.models.tiny import write_tiny_model
from fintune.schema.recipe import TrainingSection
from fintune.schema.run_directory import RunDirectory
from fintune.training import trainer as trainer_module
from fintune.training.stopping import should_stop
from tests.runs import metrics, run, weights


def stops_at(values: list[float], **keys) -> int | None:
    """How many validations it takes until training is stopped."""
    training = TrainingSection(eval_steps=50, **{"best_metric": "macro_f1", "early_stopping_patience": 2, **keys})
    history = [{"loss": 1.0}]
    for number, value in enumerate(values, start=1):
        history += [{f"eval_{training.best_metric}": value, "step": number}, {"loss": 1.0}]
        if should_stop(history, training):
            return number
    return None


def test_patience_counts_validations_in_a_row():
    assert stops_at([0.5, 0.6, 0.6, 0.6]) == 4
    assert stops_at([0.5, 0.4, 0.6, 0.5, 0.7, 0.6]) is None
    assert stops_at([0.5, 0.4], early_stopping_patience=1) == 2
    assert stops_at([0.5] * 9, early_stopping_patience=None) is None


def test_a_loss_is_better_when_lower():
    assert stops_at([1.0, 0.9, 0.8, 0.7], best_metric="loss") is None
    assert stops_at([0.7, 0.8, 0.9], best_metric="loss") == 3


def test_the_threshold_is_absolute_or_relative():
    slow = [0.50, 0.51, 0.52, 0.53]  # two steps gain 0.02, which counts against the first
    assert stops_at(slow, early_stopping_threshold=0.015) is None
    assert stops_at(slow, early_stopping_threshold=0.025) == 3
    relative = {"best_metric": "loss", "early_stopping_mode": "relative", "early_stopping_threshold": 0.1}
    assert stops_at([100.0, 95.0, 91.0], **relative) == 3
    assert stops_at([100.0, 95.0, 89.0], **relative) is None
    assert stops_at([100.0, 95.0, 91.0], **(relative | {"early_stopping_mode": "absolute"})) is None


def test_a_validation_that_is_not_a_number_is_never_better():
    assert stops_at([math.nan, math.nan]) == 2
    assert stops_at([0.5, math.nan, 0.6, math.nan, 0.7]) is None


CHANGES = (
    "training.epochs=3",
    "training.eval_steps=2",
    "training.best_metric=loss",
    "training.early_stopping_patience=2",
    "training.early_stopping_threshold=1000",  # so that no validation after the first counts as better
    "data.validation_limit=9",
    "evaluation.base=false",
)


class Killed(Exception):
    pass


def dies(*_, **__):
    raise Killed


def test_a_run_that_stopped_early_does_not_train_on_when_it_is_resumed(tmp_path, monkeypatch):
    monkeypatch.setenv("FINTUNE_CACHE", str(tmp_path / "cache"))
    base = write_tiny_model(tmp_path / "tiny")
    straight = run(base, tmp_path / "straight", *CHANGES)
    assert straight.facts["steps"] == 6
    assert [row["step"] for row in metrics(straight) if "eval_loss" in row] == [2, 4, 6]
    planned = [row["learning_rate"] for row in metrics(straight) if "loss" in row]
    assert min(planned[1:]) > max(planned) * 12 / 18  # of the planned 18 steps, not falling to 0 at the sixth
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(learning, "_save_result", dies)
        run(base, tmp_path / "run", *CHANGES)
    with monkeypatch.context() as patched:
        patched.setattr(trainer_module.TreeTrainer, "training_step", dies)
        resumed = run(base, tmp_path / "run", *CHANGES)
    assert resumed.facts["steps"] == resumed.facts["resumed_from_step"] == 6
    assert resumed.facts["best_step"] == straight.facts["best_step"]
    assert weights(resumed) == weights(straight)
    assert len(list(RunDirectory(resumed.run_dir).read_history())) == len(metrics(straight))
