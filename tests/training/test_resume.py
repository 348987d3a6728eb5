"""Going on under other numerics: same rows in the same order, a warning, and a note of what changed."""

from __future__ import annotations

import pytest
import torch

from fintune.models.tiny import write_tiny_model
from fintune.schema.errors import RunError
from fintune.training import trainer as trainer_module
from fintune.training.checkpoints import list_checkpoints
from fintune.training.numerics import changed_numerics
from tests.runs import killed_at_step, losses, metrics, run

QUICK = ("evaluation.base=false", "evaluation.limit=3")


@pytest.fixture
def base(tmp_path, monkeypatch):
    monkeypatch.setenv("FINTUNE_CACHE", str(tmp_path / "cache"))
    return write_tiny_model(tmp_path / "tiny")


def killed_at_four(base, place, monkeypatch):
    with killed_at_step(4, monkeypatch):
        run(base, place, *QUICK)


def test_a_run_goes_on_in_another_precision(base, tmp_path, monkeypatch, caplog):
    straight = run(base, tmp_path / "straight", *QUICK)
    killed_at_four(base, tmp_path / "run", monkeypatch)
    drawn = []
    train_step = trainer_module.TreeTrainer.training_step

    def watched(self, model, inputs, num_items_in_batch=None):
        drawn.append([batch.tokens.tolist() for batch in inputs.batches])
        return train_step(self, model, inputs, num_items_in_batch)

    with monkeypatch.context() as patched:
        patched.setattr(trainer_module.TreeTrainer, "training_step", watched)
        resumed = run(base, tmp_path / "run", *QUICK, "model.dtype=bfloat16")
        there, drawn = drawn, []
        run(base, tmp_path / "again", *QUICK)
    assert "not bit-equal" in caplog.text and "dtype float32 -> bfloat16" in caplog.text
    assert there == drawn[4:]  # the same rows
    assert [row["step"] for row in metrics(resumed)] == [row["step"] for row in metrics(straight)]
    assert losses(resumed)[:4] == losses(straight)[:4]
    assert losses(resumed)[4:] != losses(straight)[4:]  # bf16 it is
    assert losses(resumed)[4:] == pytest.approx(losses(straight)[4:], rel=0.05)
    assert [row["resumed_on"] for row in metrics(resumed) if "resumed_on" in row] == ["dtype float32 -> bfloat16"]
    manifest = list_checkpoints(tmp_path / "run" / "checkpoints")[-1].manifest()
    assert manifest["resumed_on"] == ["step 4: dtype float32 -> bfloat16"]


def test_other_packing_and_budget_may_go_on_but_another_learning_rate_may_not(base, tmp_path, monkeypatch, caplog):
    straight = run(base, tmp_path / "straight", *QUICK)
    killed_at_four(base, tmp_path / "run", monkeypatch)
    with pytest.raises(RunError, match=r"training\.learning_rate"):
        run(base, tmp_path / "run", *QUICK, "training.learning_rate=5e-4")
    resumed = run(base, tmp_path / "run", *QUICK, "training.packing=none", "training.tokens_per_batch=100")
    assert "packing tree -> none, tokens_per_batch 2048 -> 100" in caplog.text
    assert losses(resumed) == pytest.approx(losses(straight), abs=2e-4)


def test_an_unchanged_machine_is_not_warned_about(base, tmp_path, monkeypatch, caplog):
    killed_at_four(base, tmp_path / "run", monkeypatch)
    outcome = run(base, tmp_path / "run", *QUICK)
    assert "not bit-equal" not in caplog.text and not any("resumed_on" in row for row in metrics(outcome))


def test_a_loss_scale_that_this_run_has_no_use_for_is_left_alone(base, tmp_path, monkeypatch):
    killed_at_four(base, tmp_path / "run", monkeypatch)
    newest = list_checkpoints(tmp_path / "run" / "checkpoints")[-1]
    torch.save(torch.amp.GradScaler("cpu").state_dict(), newest.path / "scaler.pt")  # as a run in fp16 leaves it
    assert run(base, tmp_path / "run", *QUICK).facts["resumed_from_step"] == 4


def test_a_foreign_loss_scale_starts_afresh(base, tmp_path, caplog):
    class Trainer(trainer_module.TreeTrainer):
        def __init__(self):
            self.accelerator = type("Accelerator", (), {"scaler": torch.amp.GradScaler("cpu", init_scale=8.0)})()

    torch.save({}, tmp_path / "scaler.pt")
    trainer = Trainer()
    trainer._load_scaler(str(tmp_path))
    assert trainer.accelerator.scaler.get_scale() == 8.0 and "starts afresh" in caplog.text
    torch.save(torch.amp.GradScaler("cpu", init_scale=32.0).state_dict() | {"scale": 32.0}, tmp_path / "scaler.pt")
    trainer._load_scaler(str(tmp_path))
    assert trainer.accelerator.scaler.get_scale() == 32.0


def test_only_what_was_noted_before_is_compared():
    assert changed_numerics({}, {"dtype": "float32"}) == ""
    assert changed_numerics({"dtype": "float16", "torch": "2"}, {"dtype": "float32", "torch": "2"}) == (
        "dtype float16 -> float32"
    )
