"""Weights, gradients and states shared out over two processes: losses of one, checkpoints that fit any number."""

from __future__ import annotations

import importlib.util

import pytest

from tests.training.rank_runs import adapter, losses, train
from tests.training.test_several_processes import TEN, require_equal

pytestmark = pytest.mark.slow

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is an extra that is not installed"
)
BATCHES = "training.tokens_per_batch=150"


@pytest.fixture(scope="module")
def one(base, tmp_path_factory):
    """Ten steps of one process by the weights' storage."""
    places = {}
    for storage in ("none", "nf4"):
        places[storage] = tmp_path_factory.mktemp("one") / storage
        ended = train(base, places[storage], *TEN, BATCHES, f"model.quantization={storage}", processes=1)
        assert ended.code == 0, ended.error
    return places


@pytest.mark.parametrize(
    ("strategy", "offloads", "storage"),
    [
        ("fsdp2", (), "none"),
        ("fsdp2", (), "nf4"),
        ("fsdp2", ("param",), "none"),
        pytest.param("zero2", (), "none", marks=needs_deepspeed),
        pytest.param("zero2", ("optimizer",), "nf4", marks=needs_deepspeed),
        pytest.param("zero3", (), "none", marks=needs_deepspeed),
        pytest.param("zero3", ("optimizer", "param"), "none", marks=needs_deepspeed),
    ],
)
def test_a_strategy_follows_one_process(base, one, tmp_path, strategy, offloads, storage):
    changes = [f"distributed.strategy={strategy}", f"model.quantization={storage}"]
    changes += [f"distributed.offload_{what}=true" for what in offloads]
    ended = train(base, tmp_path / "run", *TEN, BATCHES, *changes)
    assert ended.code == 0, ended.error
    assert losses(tmp_path / "run") == pytest.approx(losses(one[storage]), abs=1e-5)
    require_equal(adapter(tmp_path / "run"), adapter(one[storage]), atol=1e-5)


@pytest.mark.parametrize("strategy", ["fsdp2", *(pytest.param(f"zero{n}", marks=needs_deepspeed) for n in (2, 3))])
def test_its_checkpoints_fit_any_number_of_processes_and_any_strategy(base, one, tmp_path, strategy):
    """One of two processes under the strategy is killed, one goes on and is stopped, two under it end the run."""
    shared = (*TEN, BATCHES, f"distributed.strategy={strategy}", "training.eval_steps=2", "training.best_metric=loss")
    ended = train(base, tmp_path / "run", *shared, mishap="1:5:kill")
    assert ended.code == 2 and ended.error.count("error:") == 1
    ended = train(base, tmp_path / "run", *shared, processes=1, mishap="0:7:interrupt")
    assert ended.code == 130, ended.error
    ended = train(base, tmp_path / "run", *shared)
    assert ended.code == 0, ended.error
    assert losses(tmp_path / "run") == pytest.approx(losses(one["none"]), abs=1e-5)
