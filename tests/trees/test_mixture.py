"""Mixtures: as many draws of each task as its share says, without replacement, as a pure function of seed and step."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fintune.schema.errors import InternalError, RecipeError
from fintune.schema.recipe import DataSection
from fintune.trees.mixture import Mixture, draws_per_epoch, make_mixture, task_shares
from fintune.trees.plan import StepPlan

SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=4)


def numbered(sizes):
    """Task numbers of samples in which the tasks alternate as long as they last."""
    return [task for place in range(max(sizes)) for task, size in enumerate(sizes) if place < size]


def section(names, mixture, temperature=2.0, weights=None):
    weights = weights or [None] * len(names)
    tasks = [{"name": name, "weight": weight} for name, weight in zip(names, weights, strict=True)]
    return DataSection(tasks=tasks, mixture=mixture, mixture_temperature=temperature)


@st.composite
def mixtures(draw):
    sizes = draw(SIZES)
    draws = [draw(st.integers(1, 40)) for _ in sizes]
    return Mixture(tuple(numbered(sizes)), tuple(draws))


@given(mixtures(), st.integers(0, 3))
def test_every_epoch_draws_each_task_as_often_as_it_should(mixture, seed):
    for epoch in range(3):
        drawn = Counter(mixture.tasks[i] for i in mixture.epoch_order(seed, epoch))
        assert drawn == dict(enumerate(mixture.draws))


@given(mixtures(), st.integers(0, 3))
def test_no_row_of_a_task_is_drawn_again_before_all_others_were(mixture, seed):
    order = np.concatenate([mixture.epoch_order(seed, epoch) for epoch in range(4)])
    for task in range(len(mixture.draws)):
        drawn = [i for i in order.tolist() if mixture.tasks[i] == task]
        n_rows = mixture.tasks.count(task)
        for start in range(0, len(drawn), n_rows):
            one_pass = drawn[start : start + n_rows]
            assert len(set(one_pass)) == len(one_pass)


def test_each_pass_and_each_seed_has_an_order_of_its_own():
    mixture = Mixture(tuple([0] * 30), (90,))
    order = mixture.epoch_order(5, 0)
    passes = [order[start : start + 30].tolist() for start in (0, 30, 60)]
    assert len({tuple(one) for one in passes}) == 3
    assert mixture.epoch_order(6, 0).tolist() != order.tolist()


def test_tasks_are_mixed_within_an_epoch():
    tasks = tuple([0] * 100 + [1] * 100)
    order = Mixture(tasks, (100, 100)).epoch_order(0, 0)
    n_changes = sum(tasks[a] != tasks[b] for a, b in zip(order, order[1:], strict=False))
    assert 60 < n_changes < 140  # 100 are expected, with a standard deviation of 7


@given(mixtures(), st.integers(1, 7), st.integers(0, 3), st.sampled_from(["random", "by_document"]))
def test_a_step_can_be_asked_for_on_its_own(mixture, per_step, seed, sampler):
    """What a resumed run draws does not depend on the steps before having been drawn."""
    mixture = Mixture(mixture.tasks, draws_per_epoch(np.full(len(mixture.draws), 1 / len(mixture.draws)), 40))
    groups = tuple(range(len(mixture.tasks)))
    straight = StepPlan(groups, per_step, seed, sampler, mixture)
    steps = [straight.indices(step).tolist() for step in range(2 * straight.steps_per_epoch)]
    late = StepPlan(groups, per_step, seed, sampler, mixture)
    assert late.indices(len(steps) - 1).tolist() == steps[-1]


def test_without_a_mixture_the_plan_is_the_permutation_it_always_was():
    names, tasks = ["a", "b"], [0] * 30 + [1] * 10
    plan = StepPlan(tuple(range(40)), 16, 7, "random", make_mixture(section(names, "proportional"), tasks, names))
    for epoch in range(2):
        assert plan.epoch_order(epoch).tolist() == np.random.default_rng([7, epoch]).permutation(40).tolist()


@given(SIZES.filter(lambda sizes: len(sizes) > 1), st.floats(0.5, 20))
def test_shares_follow_the_rows_to_the_power_of_one_over_t(sizes, temperature):
    names = [f"t{i}" for i in range(len(sizes))]
    shares = task_shares(section(names, "temperature", temperature), numbered(sizes), names)
    powers = [size ** (1 / temperature) for size in sizes]
    assert shares == pytest.approx([power / sum(powers) for power in powers])


def test_a_temperature_however_low_is_no_overflow():
    shares = task_shares(section(["a", "b"], "temperature", 1e-3), [0] * 20_000 + [1] * 100, ["a", "b"])
    assert shares.tolist() == [1.0, 0.0]


def test_given_weights_are_relative_and_follow_the_names():
    data = section(["a", "b"], "weights", weights=[3, 1])
    tasks = [0] * 10 + [1] * 30
    assert task_shares(data, tasks, ["b", "a"]).tolist() == [0.25, 0.75]
    mixture = make_mixture(data, tasks, ["a", "b"])
    assert mixture is not None and mixture.draws == (30, 10)


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=6), st.integers(0, 500))
def test_draws_add_up_and_are_off_by_less_than_one(weights, total):
    shares = np.asarray(weights) / sum(weights)
    draws = draws_per_epoch(shares, total)
    assert sum(draws) == total
    assert all(abs(draw - share * total) < 1 + 1e-9 for draw, share in zip(draws, shares, strict=True))


def test_what_cannot_be_drawn_is_refused():
    tasks = [0] * 10 + [1] * 10
    with pytest.raises(RecipeError, match=r"weight for every task, but b has none"):
        make_mixture(section(["a", "b"], "weights", weights=[1, None]), tasks, ["a", "b"])
    with pytest.raises(RecipeError, match=r"the task b less than one of the 20 samples"):
        make_mixture(section(["a", "b"], "weights", weights=[1, 1e-3]), tasks, ["a", "b"])
    with pytest.raises(InternalError, match="without their tasks"):
        make_mixture(section(["a"], "temperature"), [], [])


@given(SIZES, st.lists(st.sampled_from([0.5, 1, 1.5, 2, 3]), min_size=4, max_size=4))
def test_own_epochs_draw_each_row_as_often_as_they_say(sizes, epochs):
    names = [f"t{i}" for i in range(len(sizes))]
    tasks = numbered(sizes)
    pairs = [{"name": name, "epochs": own} for name, own in zip(names, epochs, strict=False)]
    if any(round(size * own) == 0 for size, own in zip(sizes, epochs, strict=False)):
        with pytest.raises(RecipeError, match="draws none of its 1 samples"):
            make_mixture(DataSection(tasks=pairs), tasks, names)
        return
    plan = StepPlan(tuple(range(len(tasks))), 4, 3, "random", make_mixture(DataSection(tasks=pairs), tasks, names))
    drawn = Counter(i for step in range(plan.steps_per_epoch) for i in plan.indices(step).tolist())
    for task, (size, own) in enumerate(zip(sizes, epochs, strict=False)):
        counts = [drawn[i] for i, other in enumerate(tasks) if other == task]
        assert sum(counts) == round(size * own)
        assert max(counts) - min(counts) <= 1, "no row is drawn again before all others were"
    assert plan.samples_per_epoch == drawn.total()


def test_half_an_epoch_goes_on_with_the_other_half():
    mixture = make_mixture(DataSection(tasks=[{"name": "a", "epochs": 0.5}]), [0] * 10, ["a"])
    assert mixture is not None
    halves = [mixture.epoch_order(1, epoch).tolist() for epoch in range(2)]
    assert len(halves[0]) == 5 and sorted(halves[0] + halves[1]) == list(range(10))


def test_part_of_a_pass_is_the_same_rows_whatever_other_tasks_there_are():
    def drawn(names, tasks):
        data = DataSection(tasks=[{"name": name, "epochs": 0.5 if name == "b" else 1} for name in names])
        order = make_mixture(data, tasks, names).epoch_order(3, 0).tolist()
        return {i - tasks.index(names.index("b")) for i in order if tasks[i] == names.index("b")}

    assert len(drawn(["b"], [0] * 20)) == 10 and drawn(["b"], [0] * 20) == drawn(["a", "b"], [0] * 7 + [1] * 20)
