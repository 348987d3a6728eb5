"""Who says why a run has failed, and when a process counts as lost."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from fintune.schema.errors import RunError
from fintune.schema.processes import Processes
from fintune.training.ranks import Ranks, _buckets, step_seed
from fintune.training.watch import Watch


@pytest.fixture
def store():
    return dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=10))


def watches(store, lost_after_s=120.0):
    return [Watch(store.clone(), Processes(rank, rank, 2), lost_after_s) for rank in range(2)]


def test_the_first_that_fails_speaks_and_the_others_are_silent(store):
    first, second = watches(store)
    assert second.fail("the cause", wait_for_cause=False)
    assert not first.fail("the connection was closed", wait_for_cause=True)


def test_who_waits_for_a_cause_that_never_comes_speaks(store):
    first, _ = watches(store)
    assert first.fail("the connection was closed", wait_for_cause=True)


def test_silence_counts_as_loss_after_its_time(store):
    first, second = watches(store, lost_after_s=0.5)
    for count in range(1, 4):
        assert first._lost(count) is None and second._lost(count) is None
        time.sleep(0.3)
    assert first._lost(4) is None
    time.sleep(0.6)
    assert first._lost(5) == 1
    assert second._lost(4) is None  # the first has just been heard of


def test_gradients_travel_in_few_pieces_of_one_type_in_order(monkeypatch):
    from fintune.training import ranks

    monkeypatch.setattr(ranks, "BUCKET_NUMBERS", 10)
    tensors = [torch.zeros(4), torch.zeros(6), torch.zeros(1), torch.zeros(20), torch.zeros(2).double()]
    found = list(_buckets(tensors))
    assert [[tensor.numel() for tensor in bucket] for bucket in found] == [[4, 6], [1], [20], [2]]


def test_a_process_by_itself_waits_for_nobody():
    ranks = Ranks()
    ranks.wait()
    with ranks.first_goes_first():
        assert ranks.from_first({"a": float("inf")}) == {"a": float("inf")}
    ranks.require_same("thing", 1.5)
    gradient = torch.ones(2)
    ranks.add_up([gradient])
    assert gradient.tolist() == [1, 1]


def test_dropout_differs_between_steps_and_ranks_only():
    seeds = {step_seed(seed, step, rank) for seed in (1, 2) for step in range(20) for rank in range(8)}
    assert len(seeds) == 2 * 20 * 8 and all(0 <= seed < 2**63 for seed in seeds)
    assert step_seed(1, 2, 3) == step_seed(1, 2, 3)


def test_the_process_that_failed_first_is_named_although_one_of_a_lower_number_follows(monkeypatch):
    from fintune import launch

    own = "import os, signal, time; os.environ['RANK'] == '1' and os.kill(os.getpid(), signal.SIGKILL); "
    monkeypatch.setattr(launch, "_PROGRAM", ("-c", own + "time.sleep(1); os.abort()"))  # as NCCL ends who waits
    with pytest.raises(RunError, match="Process 1 of 2 ended with SIGKILL"):
        launch.launch(2, [], gpus=False)


def test_a_fault_of_this_process_is_not_taken_for_the_loss_of_another(monkeypatch):
    def fail(what):
        def all_reduce(tensor):
            raise RuntimeError(what)

        monkeypatch.setattr(dist, "all_reduce", all_reduce)

    ranks = Ranks(Processes(0, 0, 2))
    fail("CUDA error: an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="illegal memory access"):
        ranks.add_up([torch.zeros(1)])
    fail("NCCL error in: ProcessGroupNCCL.cpp, unhandled cuda error")
    with pytest.raises(RunError, match="Another of the 2 processes has gone"):
        ranks.add_up([torch.zeros(1)])
