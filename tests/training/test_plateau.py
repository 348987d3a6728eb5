"""The learning rate lowered on a plateau: when, by how much, not below what, and the same after a resume."""

from __future__ import annotations

import pytest
import torch

from fintune.models.tiny import write_tiny_model
from fintune.schema.errors import RecipeError
from fintune.schema.loading import load_recipe
from fintune.schema.recipe import TrainingSection
from fintune.training.plateau import plateau_schedule
from tests.runs import killed_at_step, losses, metrics, run, weights

PLATEAU = (
    "evaluation.base=false",
    "evaluation.limit=3",
    "data.train_limit=64",
    "data.validation_limit=6",
    "training.samples_per_step=8",
    "training.warmup_steps=null",
    "training.warmup_ratio=null",
    "training.learning_rate=1e-3",
    "training.schedule=plateau",
    "training.best_metric=loss",
    "training.eval_steps=2",
    "training.plateau_patience=0",
    "training.plateau_threshold=100",  # no loss is better by that much: each validation after the first is a plateau
    "training.plateau_factor=0.25",
    "training.plateau_minimum=1e-4",
)
# Validations after steps 2, 4, 6, 8: the first sets the standard, the second and third lower the rate to the minimum.
EXPECTED = [1e-3] * 4 + [2.5e-4] * 2 + [1e-4] * 2


@pytest.fixture
def base(tmp_path, monkeypatch):
    monkeypatch.setenv("FINTUNE_CACHE", str(tmp_path / "cache"))
    return write_tiny_model(tmp_path / "tiny")


def rates(outcome):
    return [row["learning_rate"] for row in metrics(outcome) if "loss" in row]


@pytest.mark.parametrize("killed_at", [4, 5])
def test_the_rate_falls_on_plateaus_and_a_resumed_run_ends_in_the_same_bits(base, tmp_path, monkeypatch, killed_at):
    straight = run(base, tmp_path / "straight", *PLATEAU)
    assert rates(straight) == pytest.approx(EXPECTED)
    with killed_at_step(killed_at, monkeypatch):
        run(base, tmp_path / "run", *PLATEAU)
    resumed = run(base, tmp_path / "run", *PLATEAU)
    assert resumed.facts["resumed_from_step"] == 4
    assert rates(resumed) == rates(straight) and losses(resumed) == losses(straight)
    assert weights(resumed) == weights(straight)


@pytest.mark.parametrize(
    ("metric", "values", "lowered_after"),
    [
        ("loss", [1.0, 0.9, 0.95, 0.9, 0.85, 0.86, 0.87], [3, 6]),  # two in a row that are no better
        ("accuracy", [0.5, 0.6, 0.6, 0.59, 0.7, 0.7, float("nan")], [3, 6]),
        ("macro_f1", [0.1, 0.2, 0.3, 0.4], []),
    ],
)
def test_when_the_rate_falls(metric, values, lowered_after):
    training = TrainingSection(
        schedule="plateau", best_metric=metric, eval_steps=50, plateau_patience=1, plateau_factor=0.5
    )
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule, rate, found = plateau_schedule(optimizer, training), 1.0, []
    for index, value in enumerate(values):
        schedule.step(value)
        now = optimizer.param_groups[0]["lr"]
        if now < rate:
            assert now == rate / 2
            found.append(index)
        rate = now
    assert found == lowered_after


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["training.best_metric=null"], "needs a metric to watch and validations"),
        (["training.eval_steps=null"], "needs a metric to watch and validations"),
        (["training.warmup_steps=2"], "has no warm-up"),
        (["training.plateau_minimum=1e-3"], "never be lowered"),
    ],
)
def test_what_plateau_needs(changes, words):
    with pytest.raises(RecipeError, match=words):
        load_recipe("quickstart", [*PLATEAU, "training.save_steps=2", *changes])


def test_older_checkpoints_are_still_those_of_their_recipe():
    from fintune.training.identity import _training_identity

    assert not [key for key in _training_identity(load_recipe("quickstart"))["training"] if key.startswith("plateau")]
    changed = _training_identity(load_recipe("quickstart", [*PLATEAU, "training.save_steps=2"]))["training"]
    assert changed["plateau_factor"] == 0.25
