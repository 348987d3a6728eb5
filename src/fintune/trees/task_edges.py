"""Which task supervises which loss edge: what the loss of each task is taken from, without another forward pass.

Enters: a batch and the samples in it, with their tasks. Leaves: ``TaskEdges``. In a shared tree one edge may be
supervised by samples of several tasks; each task then counts it with the weight of its own samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fintune.trees.packing import Packed, PaddedBatch
from fintune.trees.prefix_tree import FloatArray, IntArray, PrefixTree, TokenSample


@dataclass(frozen=True)
class TaskEdges:
    """What each of K tasks has in a batch with E loss edges.

    Attributes:
        weight: (K, E) summed weight of the task's samples that supervise the edge, fp32; the K rows add up to the
            batch's ``edge_weight``.
        tokens: (K,) tokens of the task's samples, before sharing.
        samples: (K,) samples of the task.
    """

    weight: Tensor
    tokens: IntArray
    samples: IntArray

    @property
    def supervised(self) -> FloatArray:
        """(K,) summed weight of each task; what its loss is divided by."""
        return np.asarray(self.weight.sum(1, dtype=torch.float64).numpy())

    def as_filler(self) -> TaskEdges:
        """The same edges with nothing on them, for a batch that only keeps ranks in step."""
        return TaskEdges(torch.zeros_like(self.weight), np.zeros_like(self.tokens), np.zeros_like(self.samples))


@dataclass(frozen=True)
class TaskCounts:
    """What each of K tasks has in a whole step, over all its batches and ranks: (K,) each, as in ``TaskEdges``."""

    supervised: FloatArray
    tokens: IntArray
    samples: IntArray


def count_tasks(edges: Sequence[TaskEdges]) -> TaskCounts:
    """The counts of all batches together; there is at least one."""
    return TaskCounts(
        np.sum([one.supervised for one in edges], axis=0),
        np.sum([one.tokens for one in edges], axis=0),
        np.sum([one.samples for one in edges], axis=0),
    )


def edges_by_task(
    packed: Sequence[Packed], samples: Sequence[TokenSample], tasks: Sequence[int], n_tasks: int
) -> list[TaskEdges]:
    """The edges of each batch by task.

    Args:
        packed: what ``pack_with_members`` made of the samples.
        samples: the samples of one optimiser step.
        tasks: the task number of each sample.
        n_tasks: K.
    """
    found = []
    for one in packed:
        members, numbers = [samples[i] for i in one.members], np.asarray([tasks[i] for i in one.members])
        weight = (
            _padded_weight(one.batch, numbers, n_tasks)
            if isinstance(one.batch, PaddedBatch)
            else _tree_weight(one.tree, members, numbers, n_tasks)
        )
        lengths = [len(sample) for sample in members]
        tokens = np.bincount(numbers, lengths, minlength=n_tasks).astype(np.int64)
        found.append(TaskEdges(weight, tokens, np.bincount(numbers, minlength=n_tasks)))
    return found


def _tree_weight(tree: PrefixTree | None, members: Sequence[TokenSample], tasks: IntArray, n_tasks: int) -> Tensor:
    assert tree is not None  # only padded rows have none
    place = np.concatenate(tree.paths) + len(tree) * np.repeat(tasks, [len(path) for path in tree.paths])
    supervision = np.concatenate([sample.supervision for sample in members])
    weight = np.bincount(place, supervision, n_tasks * len(tree)).reshape(n_tasks, len(tree))
    return torch.from_numpy(weight[:, tree.is_edge].astype(np.float32))


def _padded_weight(batch: PaddedBatch, tasks: IntArray, n_tasks: int) -> Tensor:
    task_of_edge = torch.from_numpy(tasks)[batch.edge_row]
    return (torch.arange(n_tasks)[:, None] == task_of_edge) * batch.edge_weight
