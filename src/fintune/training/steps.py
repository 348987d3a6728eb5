"""The step plan as a data set: item i is everything that optimiser step i computes on this rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch.utils.data import Dataset

from fintune.schema.recipe import Packing
from fintune.trees.plan import Step, StepPlan, make_step
from fintune.trees.prefix_tree import TokenSample


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

    def __len__(self) -> int:
        return self.total_steps

    def __getitem__(self, step: int) -> Step:
        if not 0 <= step < self.total_steps:
            raise IndexError(step)
        drawn = self.plan.indices(step)
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
