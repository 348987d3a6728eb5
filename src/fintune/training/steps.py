"""The step plan as a sequence: item i is everything that optimiser step i computes on this rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch.utils.data import Dataset

from fintune.schema.recipe import Packing
from fintune.trees.plan import Step, StepPlan, make_step
from fintune.trees.prefix_tree import IntArray, TokenSample


@dataclass
class StepDataset(Dataset[Step]):
    """One ``Step`` per optimiser step of the whole run.

    Attributes:
        samples: all training samples.
        plan: which samples each step draws.
        total_steps: optimiser steps of the run.
        packing: how a step's samples become batches.
        tokens_per_batch: packing budget; the trainer lowers it when memory runs out.
        buckets: pad token counts to a few sizes, for compiled attention.
        rank: this process.
        world: processes that share each step.
        tasks: one task number per sample, where losses by task are wanted.
        n_tasks: tasks of the run.
    """

    samples: Sequence[TokenSample]
    plan: StepPlan
    total_steps: int
    packing: Packing
    tokens_per_batch: int
    buckets: bool = False
    rank: int = 0
    world: int = 1
    tasks: Sequence[int] = ()
    n_tasks: int = 0
    _drawn: tuple[int, IntArray] | None = field(default=None, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return self.total_steps

    def __getitem__(self, step: int) -> Step:
        if not 0 <= step < self.total_steps:
            raise IndexError(step)
        drawn = self._indices(step).tolist()
        return make_step(
            [self.samples[i] for i in drawn],
            self.packing,
            self.tokens_per_batch,
            buckets=self.buckets,
            rank=self.rank,
            world=self.world,
            tasks=[self.tasks[i] for i in drawn] if self.tasks else (),
            n_tasks=self.n_tasks,
            number=step,
        )

    def _indices(self, step: int) -> IntArray:
        """``plan.indices``, which hashes the whole plan to look the epoch up: slow with a million groups."""
        epoch, within = divmod(step, self.plan.steps_per_epoch)
        if self._drawn is None or self._drawn[0] != epoch:
            self._drawn = epoch, self.plan.epoch_order(epoch)
        start = within * self.plan.samples_per_step
        return self._drawn[1][start : start + self.plan.samples_per_step]
