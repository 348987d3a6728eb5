"""The guard: what is skipped, when weights are restored, and that a resumed run decides as the straight one."""

from __future__ import annotations

import copy
import dataclasses
import json
import math

import pytest
import torch

from fintune.schema.errors import RunError
from fintune.training import trainer as trainer_module
from fintune.training.checkpoints import list_checkpoints
from fintune.training.guard import LossGuard
from tests.runs import losses, metrics, run, weights

pytestmark = pytest.mark.usefixtures("own_cache")


def fed(guard: LossGuard, values: list[float]) -> LossGuard:
    for step, value in enumerate(values, start=1):
        assert guard.fault(value, 1.0) is None
        guard.accept(step, value)
    return guard


def test_what_is_not_finite_is_skipped_from_the_first_step():
    guard = LossGuard(None, 3)
    assert guard.fault(math.nan, 1.0) == "loss is nan"
    assert guard.fault(1.0, math.inf) == "gradient norm is infinite"
    assert guard.fault(1e9, 1e9) is None


def test_a_spike_needs_ten_losses_and_to_be_above_the_early_ones():
    assert fed(LossGuard(5.0, 3), [1.0] * 9).fault(100.0, 1.0) is None
    guard = fed(LossGuard(5.0, 3), [8.0, *[1.0] * 9])
    assert guard.fault(8.0, 1.0) is None and guard.fault(8.1, 1.0) is not None
    assert fed(LossGuard(5.0, 3), [1.0] * 10).fault(5.0, 1.0) is None
    assert fed(LossGuard(None, 3), [1.0] * 10).fault(500.0, 1.0) is None
    # The median is of recent losses: what was usual long ago no longer is.
    assert fed(LossGuard(5.0, 3), [*[2.0] * 40, *[0.3] * 50]).fault(2.1, 1.0) is not None


def test_a_rollback_is_due_after_skips_in_a_row_and_goes_further_back_when_it_did_not_help():
    guard = fed(LossGuard(5.0, 2), [1.0] * 4)
    assert not guard.skip(5, "loss is nan") and guard.skip(6, "loss is nan")
    assert guard.state.trusted_step == 4
    guard.rolled_back(4)
    assert guard.state.trusted_step == 3
    guard.accept(7, 1.0)
    assert guard.state.trusted_step == 7 and not guard.skip(8, "loss is nan")


def test_a_third_rollback_is_refused_with_a_remedy():
    guard = LossGuard(5.0, 1)
    for _ in range(2):
        guard.require_rollback(9)
        guard.rolled_back(2)
    with pytest.raises(RunError, match=r"third time.*Lower training\.learning_rate"):
        guard.require_rollback(9)


def test_a_skipped_update_leaves_weights_and_moments_alone_also_under_a_loss_scale():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.5, fused=True)
    scaler = torch.amp.GradScaler("cpu")
    for _ in range(2):
        scaler.scale(weight.square().sum()).backward()
        scaler.unscale_(optimizer)
        before, moments = weight.detach().clone(), copy.deepcopy(optimizer.state_dict()["state"])
        optimizer.zero_grad(set_to_none=True)
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(weight, before) and str(optimizer.state_dict()["state"]) == str(moments)
        scaler.scale(weight.square().sum()).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        assert not torch.equal(weight, before)


class Killed(Exception):
    pass


def plant(monkeypatch, planted: dict[int, float], dies_at: int | None = None) -> None:
    """Multiplies the loss of given steps, through what it is divided by; ``dies_at`` ends the process there."""
    train_step = trainer_module.TreeTrainer.training_step

    def step(self, model, inputs, num_items_in_batch=None):
        number = self.state.global_step + 1
        if number == dies_at:
            raise Killed
        factor = min(planted.get(number, 1.0), 1e300)  # more would divide by zero, which is taken for an empty step
        inputs = dataclasses.replace(inputs, total_weight=inputs.total_weight / factor)
        return train_step(self, model, inputs, num_items_in_batch)

    monkeypatch.setattr(trainer_module.TreeTrainer, "training_step", step)


QUICK = (
    "training.epochs=3",
    "evaluation.base=false",
    "evaluation.limit=3",
    "adapter.dropout=0.1",
    "training.weight_decay=0.1",
)
NAN = {3: math.nan, 13: 1e4, 15: math.nan, 16: math.inf, 17: math.nan}  # one, a spike, and three in a row


@pytest.mark.parametrize("killed_at", [4, 14, 17, 18])
def test_a_killed_run_with_planted_losses_resumes_to_the_same_bits(base, straight_planted, tmp_path, killed_at):
    straight, rows = straight_planted
    with pytest.MonkeyPatch.context() as patched, pytest.raises(Killed):
        plant(patched, NAN, dies_at=killed_at)
        run(base, tmp_path / "run", *QUICK)
    with pytest.MonkeyPatch.context() as patched:
        plant(patched, NAN)
        resumed = run(base, tmp_path / "run", *QUICK)
    assert resumed.facts["resumed_from_step"] == (killed_at - 1) // 2 * 2
    assert weights(resumed) == weights(straight)
    assert [(row["step"], row["loss"], row.get("skipped")) for row in metrics(resumed)] == rows


@pytest.fixture(scope="module")
def straight_planted(base, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("FINTUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        plant(patched, NAN)
        outcome = run(base, tmp_path_factory.mktemp("planted") / "run", *QUICK)
    return outcome, [(row["step"], row["loss"], row.get("skipped")) for row in metrics(outcome)]


def test_skipped_updates_are_told_and_json_stays_json(straight_planted):
    outcome, rows = straight_planted
    assert [step for step, _, skipped in rows if skipped] == sorted(NAN)
    assert [step for step, loss, _ in rows if loss is None] == [3, 15, 16, 17]
    assert "spike" not in rows[12][2] and "times the recent median" in rows[12][2]
    for line in (outcome.run_dir / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert outcome.facts["final_loss"] == [loss for _, loss, _ in rows if loss is not None][-1]
    rates = [row["learning_rate"] for row in metrics(outcome)]
    assert rates[1:] == sorted(rates[1:], reverse=True) and len(set(rates[1:])) == 17  # the schedule goes on


def test_the_skipped_updates_really_are_not_made(base, tmp_path):
    """With all updates after the second skipped, the weights are those of the second step."""
    planted = {step: math.nan for step in (3, 4)}
    with pytest.MonkeyPatch.context() as patched:
        plant(patched, planted)
        run(base, tmp_path / "run", *QUICK, "training.max_steps=4", "training.weight_decay=0.5")
    second, fourth = list_checkpoints(tmp_path / "run" / "checkpoints")
    name = "weights/adapter_model.safetensors"
    assert (second.path / name).read_bytes() == (fourth.path / name).read_bytes()


def test_three_skips_in_a_row_restore_the_last_checkpoint(base, tmp_path, caplog):
    with pytest.MonkeyPatch.context() as patched:
        plant(patched, {step: math.nan for step in (6, 7, 8)})
        run(base, tmp_path / "run", *QUICK, "training.max_steps=8", "training.keep_checkpoints=9")
    assert "Weights and optimiser of step 4 are restored" in caplog.text
    at = {
        c.step: (c.path / "weights/adapter_model.safetensors").read_bytes()
        for c in list_checkpoints(tmp_path / "run" / "checkpoints")
    }
    assert at[8] == at[4] != at[6]


def test_no_checkpoint_to_go_back_to_is_one_sentence_with_a_remedy(base, tmp_path):
    with pytest.MonkeyPatch.context() as patched, pytest.raises(RunError, match=r"Lower training\.learning_rate"):
        plant(patched, {1: math.nan, 2: math.nan, 3: math.nan})
        run(base, tmp_path / "run", *QUICK)


def test_rarely_logged_losses_are_means_of_the_steps_between_also_after_a_kill(base, tmp_path):
    changes = (*QUICK, "training.max_steps=6", "training.log_steps=4")
    each = losses(run(base, tmp_path / "each", *QUICK, "training.max_steps=6"))
    with pytest.MonkeyPatch.context() as patched, pytest.raises(Killed):
        plant(patched, {}, dies_at=4)
        run(base, tmp_path / "run", *changes)
    resumed = run(base, tmp_path / "run", *changes)
    assert [row["step"] for row in metrics(resumed)] == [4, 6]
    assert losses(resumed) == pytest.approx([sum(each[:4]) / 4, sum(each[4:]) / 2], rel=1e-6)
