"""Steps packed ahead: the steps of the data set, whatever happens to the processes that pack them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from fintune.schema.errors import DataError
from fintune.training import ahead as ahead_module
from fintune.training.ahead import StepsAhead
from fintune.training.flat_step import flatten, unflatten
from fintune.training.steps import StepDataset
from fintune.trees.plan import StepPlan
from fintune.trees.prefix_tree import TokenSample
from fintune.trees.stored import store_samples

CPU = torch.device("cpu")


def data_set(packing="tree", samples=None, **options) -> StepDataset:
    draw = np.random.default_rng(4)
    samples = samples or [random_sample(draw, i) for i in range(60)]
    tasks = [i % 2 for i in range(len(samples))]
    plan = StepPlan(tuple(range(len(samples))), 8, 3)
    return StepDataset(samples, plan, 20, packing, 60, tasks=tasks, n_tasks=2, **options)


def random_sample(draw, index):
    tokens = draw.integers(1, 4, draw.integers(2, 30))
    weight = np.zeros(len(tokens))
    weight[-1] = 0.7
    return TokenSample(tokens, weight, index)


def assert_same(one, other):
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other)
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype and one.tolist() == other.tolist()
    elif isinstance(one, tuple):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    elif hasattr(one, "__dataclass_fields__"):
        for name in one.__dataclass_fields__:
            assert_same(getattr(one, name), getattr(other, name))
    else:
        assert one == other


@pytest.fixture
def ahead_of():
    opened = []

    def start(steps, workers=2):
        opened.append(StepsAhead(steps, CPU, workers))
        opened[-1].take(0)  # starts them
        wait_for(lambda: all(worker.is_ready() for worker in opened[-1]._workers))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def wait_for(condition):
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def spied(steps, monkeypatch):
    """The numbers of the steps that this process packs itself."""
    packed, pack = [], StepDataset.__getitem__
    monkeypatch.setattr(StepDataset, "__getitem__", lambda self, number: (packed.append(number), pack(self, number))[1])
    return packed


@pytest.mark.parametrize("packing", ["tree", "sequence", "none"])
@pytest.mark.parametrize("buckets", [False, True])
def test_a_flat_step_is_the_step(packing, buckets):
    steps = data_set(packing, buckets=buckets)
    for step in (
        steps[0],
        replace(steps[1], by_task=()),
        replace(steps[2], batches=(steps[2].batches[0].as_filler(),)),
    ):
        assert_same(unflatten(flatten(step), CPU), step)


def test_tensors_of_a_flat_step_lie_where_kernels_want_them():
    step = unflatten(flatten(data_set()[0]), CPU)
    base = step.batches[0].tokens.untyped_storage().data_ptr()
    places = [
        value.data_ptr() - base for batch in step.batches for value in vars(batch).values() if torch.is_tensor(value)
    ]
    assert all(place % 64 == 0 for place in places) and len(set(places)) == len(places)


@pytest.mark.parametrize("packing", ["tree", "none"])
def test_workers_give_the_steps_of_the_data_set_in_any_order(ahead_of, monkeypatch, packing):
    steps = data_set(packing)
    expected = {number: steps[number] for number in range(len(steps))}
    ahead = ahead_of(steps)
    packed = spied(steps, monkeypatch)
    order = [*range(1, 8), 8, 9, 3, 4, 5, 15, 16, 17, 18, 19, 0, 1]
    for number in order:
        assert_same(ahead.take(number), expected[number])
    # What nobody had asked for when it came: the first step, the jumps back and ahead, and the first after the end.
    assert packed == [1, 3, 15, 0]


def test_a_smaller_budget_holds_for_what_is_asked_for_from_then_on(ahead_of):
    steps = data_set()
    ahead = ahead_of(steps)
    ahead.take(1)
    steps.tokens_per_batch = 25
    budgets = [ahead.take(number).budget for number in range(2, 12)]
    assert set(budgets[:3]) == {60} and set(budgets[5:]) == {25}
    assert_same(ahead.take(12), steps[12])


class Spoilt:
    """Samples of which one cannot be read, in this process as in others."""

    def __init__(self, samples, at):
        self.samples, self.at = samples, at

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, place):
        if place == self.at:
            raise DataError(f"Row {place} is spoilt.", "Remove it.")
        return self.samples[place]


def test_an_error_comes_out_as_itself_at_its_step(ahead_of, monkeypatch):
    steps = data_set()
    spoilt = int(steps.plan.indices(4)[0])

    def spoil(samples, folder):
        """Stores a sample that cannot be read again: its first token is supervised."""
        good = list(samples.samples)
        bad = object.__new__(TokenSample)
        for name, value in (("tokens", good[spoilt].tokens), ("supervision", np.ones(len(good[spoilt]))), ("index", 0)):
            object.__setattr__(bad, name, value)
        return store_samples([*good[:spoilt], bad, *good[spoilt + 1 :]], folder)

    monkeypatch.setattr(ahead_module, "store_samples", spoil)
    ahead = ahead_of(replace(steps, samples=Spoilt(steps.samples, spoilt)))
    for number in range(1, 4):
        ahead.take(number)
    with pytest.raises(DataError) as caught:
        ahead.take(4)
    assert (caught.value.message, caught.value.remedy) == (f"Row {spoilt} is spoilt.", "Remove it.")
    assert_same(ahead.take(5), steps[5])


def test_killed_workers_are_told_once_and_the_run_goes_on(ahead_of, caplog):
    steps = data_set()
    ahead = ahead_of(steps)
    ahead.take(1)
    processes = [worker._process for worker in ahead._workers]
    processes[1].kill()
    for number in range(2, 20):
        assert_same(ahead.take(number), steps[number])
    assert caplog.text.count("packing ahead has failed") == 1
    assert all(process.returncode is not None for process in processes), "none is left over"


def test_a_signal_to_the_terminal_does_not_reach_them(ahead_of):
    ahead = ahead_of(data_set())
    groups = {os.getpgid(worker._process.pid) for worker in ahead._workers}
    assert os.getpgid(0) not in groups


def test_they_end_when_closed_and_leave_no_files(ahead_of):
    ahead = ahead_of(data_set())
    for number in range(3):
        ahead.take(number)
    processes, folder = [worker._process for worker in ahead._workers], ahead._folder.name
    ahead.close()
    assert all(process.returncode is not None for process in processes) and not os.path.exists(folder)


def test_they_end_when_their_trainer_is_killed():
    code = (
        "import tests.training.test_ahead as t, time\n"
        "ahead = t.StepsAhead(t.data_set(), t.CPU, 2); ahead.take(0)\n"
        "t.wait_for(lambda: all(worker.is_ready() for worker in ahead._workers)); ahead.take(1)\n"
        "print(*(worker._process.pid for worker in ahead._workers), flush=True); time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as trainer:
        numbers = [int(number) for number in trainer.stdout.readline().split()]
        trainer.send_signal(signal.SIGKILL)
    assert len(numbers) == 2
    wait_for(lambda: not any(is_running(number) for number in numbers))


def is_running(number):
    """Whether it still does something; where nobody waits for orphans they stay listed after their end."""
    try:
        with open(f"/proc/{number}/stat") as stream:
            return stream.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_cpu_packs_as_it_goes(monkeypatch):
    steps = data_set()
    ahead = StepsAhead(steps, CPU)
    ahead.prepare(1)
    packed = spied(steps, monkeypatch)
    assert_same(ahead.take(1), steps[1])
    assert packed == [1, 1] and not ahead._workers
