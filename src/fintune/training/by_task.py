"""Losses and counts by task: of the lines of metrics.jsonl, and of the whole run.

Enters: each step's ``TaskEdges`` with the loss summed over them. Leaves: rows by task name. What it has added up is
written into every checkpoint, so that a resumed run reports the figures of the straight one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fintune.trees.plan import Step

TASK_LOSS = "loss_by_task/"
"""What trackers call the loss of a task, before its name."""


@dataclass
class TaskFigures:
    """What one task contributed.

    Attributes:
        loss: edge losses weighted by the task's samples, summed over the updates that were made.
        supervised: summed weight of these; supervised tokens, where all weights are 1.
        tokens: tokens of its samples before sharing, in all steps; likewise the samples.
        samples: samples drawn.
    """

    loss: float = 0.0
    supervised: float = 0.0
    tokens: int = 0
    samples: int = 0

    @property
    def mean_loss(self) -> float | None:
        """Loss a supervised token; None when no update was made with any."""
        return self.loss / self.supervised if self.supervised else None


class TaskMeter:
    """Adds up losses and counts by task, over the run and since they were last logged.

    Args:
        names: the tasks by number.
        saved: what ``state`` gave when a checkpoint was taken; empty for a fresh run.
    """

    def __init__(self, names: Sequence[str], saved: Mapping[str, Any]) -> None:
        self.run, self.unlogged = (
            {name: TaskFigures(**saved.get(part, {}).get(name, {})) for name in names} for part in ("run", "unlogged")
        )

    def add(self, step: Step, losses: Sequence[float] | None) -> None:
        """Adds one step; ``losses`` are its weighted sums by task, None when its update was not made."""
        counts = step.tasks
        assert counts is not None, "make_step was given no tasks"
        for figures in (self.run, self.unlogged):
            for task, one in enumerate(figures.values()):
                one.tokens += int(counts.tokens[task])
                one.samples += int(counts.samples[task])
                one.supervised += float(counts.supervised[task]) if losses is not None else 0.0
            for one, loss in zip(figures.values(), losses or (), strict=False):
                one.loss += loss

    def take_unlogged(self) -> dict[str, dict[str, float]]:
        """A line's keys, each by task, since the last call; tasks that were not drawn are left out."""
        drawn = {name: one for name, one in self.unlogged.items() if one.samples}
        self.unlogged = {name: TaskFigures() for name in self.unlogged}
        return {
            "loss_by_task": {name: loss for name, one in drawn.items() if (loss := one.mean_loss) is not None},
            "supervised_by_task": {name: one.supervised for name, one in drawn.items()},
            "tokens_by_task": {name: one.tokens for name, one in drawn.items()},
            "samples_by_task": {name: one.samples for name, one in drawn.items()},
        }

    def totals(self) -> dict[str, dict[str, float | None]]:
        """The whole run by task: mean loss, supervised weight, tokens and samples."""
        return {name: {**asdict(one), "loss": one.mean_loss} for name, one in self.run.items()}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        parts = {"run": self.run, "unlogged": self.unlogged}
        return {part: {name: asdict(one) for name, one in figures.items()} for part, figures in parts.items()}
