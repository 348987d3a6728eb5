"""On a GPU: the guard under a real loss scale, and runs that go on in another precision and on another device."""

from __future__ import annotations

import math

import pytest
import torch

from fintune import session
from tests.runs import losses, metrics, run, weights
from tests.training.test_guard import Killed, plant

pytestmark = [
    pytest.mark.usefixtures("own_cache"),
    pytest.mark.gpu,
    pytest.mark.filterwarnings("default"),  # compilers and drivers warn as they please
]
QUICK = ("evaluation.base=false", "evaluation.limit=3", "evaluation.abstention=false", "training.epochs=2")


def interrupted(base, place, *changes):
    with pytest.MonkeyPatch.context() as patched, pytest.raises(Killed):
        plant(patched, {}, dies_at=6)
        run(base, place, *QUICK, *changes)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_planted_faults_are_skipped_and_the_rest_is_learnt(base, tmp_path, dtype):
    with pytest.MonkeyPatch.context() as patched:
        plant(patched, {4: math.nan, 8: math.inf})
        outcome = run(base, tmp_path / "run", *QUICK, f"model.dtype={dtype}")
    skipped = {row["step"] for row in metrics(outcome) if row.get("skipped")}
    assert {4, 8} <= skipped
    assert outcome.facts["skipped_steps"] >= 2 and outcome.facts["rollbacks"] == 0
    finite = [loss for loss in losses(outcome) if loss is not None]
    assert len(finite) == len(losses(outcome)) - 2 and finite[-1] < finite[0]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_killed_run_repeats_its_losses(base, tmp_path, dtype):
    straight = run(base, tmp_path / "straight", *QUICK, f"model.dtype={dtype}")
    interrupted(base, tmp_path / "run", f"model.dtype={dtype}")
    resumed = run(base, tmp_path / "run", *QUICK, f"model.dtype={dtype}")
    assert resumed.facts["resumed_from_step"] == 4 and not resumed.facts["resumed_on"]
    # Atomic additions in some backward kernels may change the last bits from run to run.
    assert losses(resumed) == pytest.approx(losses(straight), rel=1e-3)
    print(dtype, "bit-equal:", weights(resumed) == weights(straight))


@pytest.mark.parametrize(
    ("first", "then"),
    [("float32", "bfloat16"), ("bfloat16", "float16"), ("float16", "float32"), ("float16", "bfloat16")],
)
def test_a_run_goes_on_in_another_precision(base, tmp_path, caplog, first, then):
    straight = run(base, tmp_path / "straight", *QUICK, "model.dtype=float32")
    interrupted(base, tmp_path / "run", f"model.dtype={first}")
    resumed = run(base, tmp_path / "run", *QUICK, f"model.dtype={then}")
    assert "not bit-equal" in caplog.text and f"dtype {first} -> {then}" in caplog.text
    assert losses(resumed) == pytest.approx(losses(straight), rel=0.1)


@pytest.mark.parametrize(("first", "then"), [("cpu", "cuda"), ("cuda", "cpu")])
def test_a_run_goes_on_on_another_device(base, tmp_path, monkeypatch, caplog, first, then):
    straight = run(base, tmp_path / "straight", *QUICK, "model.dtype=float32")
    monkeypatch.setattr(session, "default_device", lambda: torch.device(first))
    interrupted(base, tmp_path / "run", "model.dtype=float32")
    monkeypatch.setattr(session, "default_device", lambda: torch.device(then))
    resumed = run(base, tmp_path / "run", *QUICK, "model.dtype=float32")
    assert "not bit-equal" in caplog.text and "device" in caplog.text
    assert losses(resumed) == pytest.approx(losses(straight), rel=1e-3)
