"""Mixtures: how often each task is drawn, where that is not simply once a row.

Enters: a recipe's mixture and the task of every sample. Leaves: ``Mixture``, whose epochs are a pure function of seed
and epoch: nothing has to be saved, and a resumed run draws what the straight run would have drawn.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fintune.schema.errors import InternalError, RecipeError
from fintune.schema.recipe import DataSection
from fintune.trees.prefix_tree import FloatArray, IntArray


@dataclass(frozen=True)
class Mixture:
    """A fixed number of draws of each task an epoch, in random order.

    Within a task rows are drawn without replacement. Once all of them have been drawn the task starts over in another
    order, wherever in an epoch that is: a small task may be passed through several times, a large one over epochs.

    Attributes:
        tasks: one task number per sample.
        draws: samples that an epoch draws of each task.
        seeds: decides the order of each task's rows, beside the run's seed; its number where there are none.
    """

    tasks: tuple[int, ...]
    draws: tuple[int, ...]
    seeds: tuple[int, ...] = ()

    def epoch_order(self, seed: int, epoch: int) -> IntArray:
        """Sample numbers in the order in which ``epoch`` draws them."""
        slots = np.repeat(np.arange(len(self.draws)), self.draws)
        slots = np.random.default_rng([seed, epoch]).permutation(slots)
        order = np.empty(len(slots), np.int64)
        for task, count in enumerate(self.draws):
            order[slots == task] = self._drawn(task, seed, epoch * count, count)
        return order

    def _drawn(self, task: int, seed: int, start: int, count: int) -> IntArray:
        """The ``count`` draws of ``task`` after its first ``start`` ones."""
        rows = np.flatnonzero(np.asarray(self.tasks) == task)
        first, last = start // len(rows), (start + count - 1) // len(rows)
        # numpy takes missing entries of a seed for zeros: counted from 1, none equals that of an epoch's slots.
        own = self.seeds[task] if self.seeds else task + 1
        passes = [np.random.default_rng([seed, n + 1, own]).permutation(rows) for n in range(first, last + 1)]
        return np.concatenate(passes)[start - first * len(rows) :][:count]


def make_mixture(data: DataSection, tasks: Sequence[int], names: Sequence[str]) -> Mixture | None:
    """The mixture a recipe asks for; None where every row is drawn once an epoch, as without one.

    Under ``data.mixture=proportional`` a task's own ``epochs`` say how often its rows are drawn an epoch.

    Args:
        data: the recipe's data section.
        tasks: one task number per sample.
        names: the tasks by number; each must have samples.

    Raises:
        RecipeError: a task has no weight, or is drawn less than once an epoch.
    """
    own_epochs = {section.name: section.epochs for section in data.tasks if section.epochs != 1}
    if data.mixture == "proportional" and not own_epochs:
        return None
    if not tasks:
        raise InternalError(f"The samples of data.mixture={data.mixture} came without their tasks.")
    if data.mixture == "proportional":
        # By name, so that part of a pass is the same rows whatever other tasks there are.
        seeds = tuple(zlib.crc32(name.encode()) + 1 for name in names)
        return Mixture(tuple(tasks), _draws_by_epochs(tasks, names, own_epochs), seeds)
    draws = draws_per_epoch(task_shares(data, tasks, names), len(tasks))
    for name, count in zip(names, draws, strict=True):
        if not count:
            raise RecipeError(
                f"data.mixture gives the task {name} less than one of the {len(tasks)} samples of an epoch.",
                "Give it a larger weight, or take it out of data.tasks.",
            )
    return Mixture(tuple(tasks), draws)


def task_shares(data: DataSection, tasks: Sequence[int], names: Sequence[str]) -> FloatArray:
    """The probability of each task: rows to the power 1/T, or the weights given."""
    if data.mixture == "weights":
        given = {section.name: section.weight for section in data.tasks}
        weights = [_required_weight(name, given.get(name)) for name in names]
        return np.asarray(weights) / math.fsum(weights)
    rows = Counter(tasks)
    temperature = data.mixture_temperature if data.mixture == "temperature" else 1.0
    logarithms = np.log([rows[task] for task in range(len(names))]) / temperature
    shares = np.exp(logarithms - logarithms.max())
    return np.asarray(shares / shares.sum())


def draws_per_epoch(shares: FloatArray, total: int) -> tuple[int, ...]:
    """``total`` draws divided by ``shares``: each rounded down, and the largest remainders get what is left."""
    wanted = shares * total
    draws = np.floor(wanted).astype(np.int64)
    largest = np.argsort(draws - wanted, kind="stable")[: total - int(draws.sum())]
    draws[largest] += 1
    return tuple(draws.tolist())


def _draws_by_epochs(tasks: Sequence[int], names: Sequence[str], epochs: Mapping[str, float]) -> tuple[int, ...]:
    rows = Counter(tasks)
    draws = tuple(round(rows[task] * epochs.get(name, 1.0)) for task, name in enumerate(names))
    for task, (name, count) in enumerate(zip(names, draws, strict=True)):
        if not count:
            raise RecipeError(
                f"data.tasks gives {name} epochs of {epochs[name]:g}, which draws none of its {rows[task]} samples.",
                "Raise its epochs, or take it out of data.tasks.",
            )
    return draws


def _required_weight(name: str, weight: float | None) -> float:
    if weight is None:
        raise RecipeError(
            f"data.mixture=weights needs a weight for every task, but {name} has none.",
            "Set the weight of each entry of data.tasks, or choose another data.mixture.",
        )
    return weight
