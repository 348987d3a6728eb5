"""The figures of the optimiser step in progress, kept on its device until one wait reads them all.

Enters: losses of batches, and the wish of this process to stop. Leaves: their sums over batches and ranks, as numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fintune.training.ranks import Ranks
from fintune.trees.plan import Step


@dataclass
class StepFigures:
    """Sums of one step.

    Attributes:
        loss: (), over the step's total weight.
        wishes: (), how many ranks want to stop; 0 with one rank, which need not ask.
        by_task: (tasks,), weighted losses; empty where the steps do not tell tasks apart.
    """

    loss: Tensor
    wishes: Tensor
    by_task: Tensor

    @classmethod
    def fresh(cls, n_tasks: int, device: torch.device | str) -> StepFigures:
        """Zeros."""
        return cls(torch.zeros((), device=device), torch.zeros((), device=device), torch.zeros(n_tasks, device=device))

    def note_tasks(self, step: Step, number: int, losses: Tensor) -> None:
        """Adds the (E,) losses of the edges of a batch to those of their tasks."""
        if step.by_task:
            weight = step.by_task[number].weight.to(self.by_task.device, non_blocking=True)
            self.by_task += (weight * losses).sum(1)  # not a product, which a GPU may round to TF32

    def add_up(self, ranks: Ranks, gradients: Sequence[Tensor], *, wants_to_stop: bool) -> None:
        """Makes these figures and the gradients those of all ranks together."""
        wish = torch.full((1,), float(wants_to_stop), device=self.loss.device)
        figures = torch.cat([self.loss[None], wish, self.by_task])
        ranks.add_up([*gradients, figures])
        self.loss, self.wishes, self.by_task = figures[0], figures[1], figures[2:]

    def joined(self, norm: Tensor) -> Tensor:
        """(3 + tasks,): loss, gradient norm, wishes and losses by task, to be read at once."""
        return torch.cat([torch.stack([self.loss, norm.to(self.loss), self.wishes]), self.by_task])
