"""The step plan: which samples each optimiser step draws, as a pure function of seed and step.

Workers only execute the plan, so a resumed run draws what the straight run would have drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np

from fintune.schema.example import Example
from fintune.schema.recipe import Packing
from fintune.trees.mixture import Mixture
from fintune.trees.packing import Batch, pack_with_members
from fintune.trees.prefix_tree import IntArray, TokenSample
from fintune.trees.task_edges import TaskCounts, TaskEdges, count_tasks, edges_by_task


def numbered(names: Iterable[str]) -> tuple[list[int], list[str]]:
    """Each name's number in the order of first use, and the names by number."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(name, len(numbers)) for name in names], list(numbers)


def group_numbers(rows: Iterable[Example]) -> list[int]:
    """One number for all samples of one task that belong together; a row without group stands alone."""
    return numbered(f"{row.task}/{row.group or row.example_id}" for row in rows)[0]


@dataclass(frozen=True)
class StepPlan:
    """Draws ``samples_per_step`` samples a step, from a fresh permutation each epoch or by a mixture of tasks.

    Attributes:
        groups: one group number per sample; ``by_document`` keeps a group's samples next to each other.
        samples_per_step: the effective batch; the last step of an epoch takes what is left.
        seed: with the epoch it determines the permutation.
        sampler: random, or by_document (which changes the sampling, and the log says so).
        mixture: how often each task is drawn; None draws every sample once an epoch.
    """

    groups: tuple[int, ...]
    samples_per_step: int
    seed: int
    sampler: Literal["random", "by_document"] = "random"
    mixture: Mixture | None = None

    @property
    def samples_per_epoch(self) -> int:
        """Samples drawn in one pass."""
        return len(self.groups) if self.mixture is None else sum(self.mixture.draws)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in one pass."""
        return math.ceil(self.samples_per_epoch / self.samples_per_step)

    def total_steps(self, epochs: float, max_steps: int | None = None) -> int:
        """Optimiser steps of the whole run."""
        steps = max(1, math.ceil(self.steps_per_epoch * epochs - 1e-9))
        return min(steps, max_steps) if max_steps is not None else steps

    def epoch_order(self, epoch: int) -> IntArray:
        """The samples in the order in which ``epoch`` draws them: a permutation of all of them without a mixture."""
        return _epoch_order(self, epoch)

    def indices(self, step: int) -> IntArray:
        """Sample numbers drawn at optimiser step ``step``, counted from 0 over the whole run."""
        epoch, within = divmod(step, self.steps_per_epoch)
        start = within * self.samples_per_step
        return self.epoch_order(epoch)[start : start + self.samples_per_step]

    @cached_property
    def _group_array(self) -> IntArray:
        return np.asarray(self.groups, np.int64)


@lru_cache(maxsize=4)
def _epoch_order(plan: StepPlan, epoch: int) -> IntArray:
    if plan.mixture is None:
        order = np.random.default_rng([plan.seed, epoch]).permutation(len(plan.groups))
    else:
        order = plan.mixture.epoch_order(plan.seed, epoch)
    if plan.sampler == "by_document":
        seen = {group: rank for rank, group in reversed(list(enumerate(plan._group_array[order])))}
        first_seen = np.array([seen[group] for group in plan._group_array[order]])
        order = order[np.argsort(first_seen, kind="stable")]
    return order


@dataclass(frozen=True)
class Step:
    """What one rank computes for one optimiser step.

    Attributes:
        batches: this rank's batches; ranks hold equal counts, short ones get weight-0 fillers.
        total_weight: summed edge weight of the whole step over all ranks; the loss is divided by it.
        n_samples: samples of the whole step over all ranks.
        by_task: one entry per batch, where the tasks of the samples were given.
        number: which step of the run it is, counted from 0.
        budget: tokens computed at once that it was packed for.
        sample_tokens: tokens of the whole step's samples before sharing, over all ranks.
        distinct_tokens: tokens computed for it, likewise.
        tasks: counts by task of the whole step, likewise; None where the tasks of the samples were not given.
    """

    batches: tuple[Batch, ...]
    total_weight: float
    n_samples: int
    by_task: tuple[TaskEdges, ...] = ()
    number: int = 0
    budget: int = 0
    sample_tokens: int = 0
    distinct_tokens: int = 0
    tasks: TaskCounts | None = None


def make_step(
    samples: Sequence[TokenSample],
    packing: Packing,
    budget: int,
    *,
    buckets: bool = False,
    rank: int = 0,
    world: int = 1,
    tasks: Sequence[int] = (),
    n_tasks: int = 0,
    number: int = 0,
) -> Step:
    """Packs the samples of one optimiser step and deals the batches out to the ranks.

    Args:
        samples: the samples of the step.
        packing: how they become batches.
        budget: tokens computed at once.
        buckets: pad token counts to a few sizes.
        rank: this process.
        world: processes that share the step.
        tasks: one task number per sample, for losses by task; empty: none are wanted.
        n_tasks: tasks of the whole run.
        number: which step of the run it is.
    """
    packed = pack_with_members(samples, packing, budget, buckets=buckets, world=world)
    batches = [one.batch for one in packed]
    total_weight = sum(batch.weight for batch in batches)
    mine = batches[rank::world]
    rounds = math.ceil(len(batches) / world)
    short = rounds - len(mine)
    mine += [batches[0].as_filler()] * short
    by_task: list[TaskEdges] = []
    counts: TaskCounts | None = None
    if tasks:
        edges = edges_by_task(packed, samples, tasks, n_tasks)
        by_task, counts = edges[rank::world] + [edges[0].as_filler()] * short, count_tasks(edges)
    return Step(
        batches=tuple(mine),
        total_weight=total_weight,
        n_samples=len(samples),
        by_task=tuple(by_task),
        number=number,
        budget=budget,
        sample_tokens=sum(batch.sample_tokens for batch in batches),
        distinct_tokens=sum(batch.real_tokens for batch in batches),
        tasks=counts,
    )
