import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fintune.trees.batch import MAX_BUCKETS, bucket_size
from fintune.trees.packing import pack_samples, split_by_budget
from fintune.trees.plan import StepPlan, make_step
from tests.trees.samples import sample, sample_lists


@given(sample_lists(), st.sampled_from(["tree", "sequence", "none"]), st.integers(1, 40))
def test_each_sample_is_packed_once_and_batches_respect_the_budget(samples, packing, budget):
    groups = split_by_budget(samples, packing, budget)
    assert sorted(i for group in groups for i in group) == list(range(len(samples)))
    for batch, group in zip(pack_samples(samples, packing, budget), groups, strict=True):
        assert len(batch) <= budget or len(group) == 1
        assert batch.sample_tokens == sum(len(samples[i]) for i in group)


@given(sample_lists(), st.sampled_from(["tree", "sequence", "none"]), st.integers(1, 40))
def test_the_weight_of_a_step_does_not_depend_on_its_packing(samples, packing, budget):
    total = sum(float(one.supervision.sum()) for one in samples)
    assert sum(batch.weight for batch in pack_samples(samples, packing, budget)) == pytest.approx(total)


def test_tree_packing_shares_and_sequence_packing_does_not():
    prompt = list(range(1, 51))
    samples = [sample([*prompt, 60 + i]) for i in range(4)]
    assert [len(b) for b in pack_samples(samples, "tree", 100)] == [54]
    assert [len(b) for b in pack_samples(samples, "sequence", 102)] == [102, 102]


@given(st.integers(1, 5000), st.sampled_from([256, 512, 2048, 4096]))
def test_buckets_hold_the_tokens_and_are_few(length, budget):
    assert bucket_size(length, budget) >= length
    assert len({bucket_size(n, budget) for n in range(1, budget + 1)}) <= MAX_BUCKETS


def test_padding_of_a_bucket_sees_itself_only():
    (batch,) = pack_samples([sample([1, 2, 3])], "tree", 256, buckets=True)
    assert len(batch) == 128 and batch.real_tokens == 3
    assert batch.subtree_end[3:].tolist() == list(range(4, 129))


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 3))
def test_an_epoch_draws_every_sample_once_and_the_plan_is_a_function_of_the_step(n, per_step, seed):
    plan = StepPlan(tuple(range(n)), per_step, seed)
    for epoch in range(2):
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        drawn = np.concatenate([plan.indices(step) for step in steps])
        assert sorted(drawn.tolist()) == list(range(n))
    again = StepPlan(tuple(range(n)), per_step, seed)
    last = 2 * plan.steps_per_epoch - 1
    assert again.indices(last).tolist() == plan.indices(last).tolist()


def test_by_document_keeps_a_group_together_and_random_does_not():
    groups = tuple(i % 10 for i in range(100))

    def runs(sampler):
        order = StepPlan(groups, 10, 0, sampler).epoch_order(0)
        return sum(groups[a] != groups[b] for a, b in zip(order, order[1:], strict=False))

    assert runs("by_document") == 9
    assert runs("random") > 50


@given(sample_lists(fewest=1), st.sampled_from(["tree", "sequence", "none"]), st.integers(1, 4), st.integers(4, 30))
def test_even_batches_are_no_more_rounds_and_no_larger(samples, packing, world, budget):
    alone = pack_samples(samples, packing, budget)
    shared = make_step(samples, packing, budget, world=world).batches
    assert len(shared) <= -(-len(alone) // world)
    assert max(map(len, shared)) <= max(budget, *map(len, samples))


def test_a_last_small_batch_is_evened_out():
    samples = [sample(list(range(10 * i, 10 * i + 10))) for i in range(8)]  # 70 tokens at once: 7 samples, and 1
    steps = [make_step(samples, "tree", 70, rank=rank, world=2) for rank in range(2)]
    assert [[len(batch) for batch in step.batches] for step in steps] == [[40], [40]]


def test_total_steps_follow_fractional_epochs_and_max_steps():
    plan = StepPlan(tuple(range(100)), 16, 0)
    assert plan.steps_per_epoch == 7
    assert plan.total_steps(1.0) == 7
    assert plan.total_steps(0.5) == 4
    assert plan.total_steps(3.0, max_steps=5) == 5


@given(sample_lists(fewest=1), st.integers(1, 4), st.integers(4, 30))
def test_ranks_get_equal_counts_of_batches_and_the_whole_weight(samples, world, budget):
    steps = [make_step(samples, "tree", budget, rank=rank, world=world) for rank in range(world)]
    assert len({len(step.batches) for step in steps}) == 1
    total = sum(batch.weight for step in steps for batch in step.batches)
    assert total == pytest.approx(steps[0].total_weight)
    assert sum(batch.n_samples for step in steps for batch in step.batches) == len(samples)
