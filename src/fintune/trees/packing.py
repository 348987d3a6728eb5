"""Samples of one optimiser step into batches that fit a token budget: ``tree``, ``sequence`` or padded ``none``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fintune.schema.recipe import Packing
from fintune.trees.batch import TreeBatch, batch_from_tree, bucket_size
from fintune.trees.prefix_tree import PrefixTree, TokenSample, build_tree, depth_first_order, grow_tree, lay_out


@dataclass(frozen=True)
class PaddedBatch:
    """The plain twin of ``TreeBatch``: one row per sample, padded on the right, ordinary causal attention.

    Attributes:
        tokens: (B, L) token ids, padding repeats id 0.
        attention_mask: (B, L) 1 for real tokens. Made from lengths: the pad id may well be the end-of-turn id.
        edge_row, edge_column: (E,) position that predicts the edge's target.
        edge_target, edge_weight: (E,) as in ``TreeBatch``.
    """

    tokens: Tensor
    attention_mask: Tensor
    edge_row: Tensor
    edge_column: Tensor
    edge_target: Tensor
    edge_weight: Tensor
    sample_tokens: int
    n_samples: int

    def __len__(self) -> int:
        return self.tokens.numel()

    @property
    def real_tokens(self) -> int:
        """Tokens without padding."""
        return self.sample_tokens

    @property
    def weight(self) -> float:
        """Summed edge weight; what the loss of the whole step is divided by."""
        return float(self.edge_weight.sum())

    def to(self, device: torch.device) -> PaddedBatch:
        """The same batch with its tensors on ``device``."""
        tensors = {k: v.to(device, non_blocking=True) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return PaddedBatch(**{**vars(self), **tensors})

    def as_filler(self) -> PaddedBatch:
        """The same batch with all weights zero."""
        return PaddedBatch(**{**vars(self), "edge_weight": torch.zeros_like(self.edge_weight), "n_samples": 0})


Batch = TreeBatch | PaddedBatch


def pad_samples(samples: Sequence[TokenSample]) -> PaddedBatch:
    """Stacks samples into a right-padded rectangle."""
    lengths = [len(sample) for sample in samples]
    width = max([*lengths, 1])
    tokens = np.zeros((len(samples), width), np.int64)
    mask = np.zeros((len(samples), width), np.int64)
    weight = np.zeros((len(samples), width), np.float64)
    for row, sample in enumerate(samples):
        tokens[row, : len(sample)], mask[row, : len(sample)] = sample.tokens, 1
        weight[row, : len(sample)] = sample.supervision
    rows, columns = np.nonzero(weight)
    return PaddedBatch(
        tokens=torch.from_numpy(tokens),
        attention_mask=torch.from_numpy(mask),
        edge_row=torch.from_numpy(rows),
        edge_column=torch.from_numpy(columns - 1),
        edge_target=torch.from_numpy(tokens[rows, columns]),
        edge_weight=torch.from_numpy(weight[rows, columns].astype(np.float32)),
        sample_tokens=sum(lengths),
        n_samples=len(samples),
    )


def split_by_budget(samples: Sequence[TokenSample], packing: Packing, budget: int) -> list[list[int]]:
    """Partitions samples into groups that each cost at most ``budget`` tokens; a longer sample stands alone.

    For ``tree`` the samples are taken in depth-first order, so a group keeps neighbours that share prefixes; the cost
    of one more sample is what it does not share. For ``sequence`` longest first into the fullest group that fits.
    For ``none`` by length, the cost being rows times the longest row.
    """
    if packing == "tree":
        order = depth_first_order(samples)
        row = lay_out([samples[i] for i in order], share=True)
        return [order[first:last] for first, last in _split_tree(row.lengths.tolist(), row.shared.tolist(), budget)]
    by_length = sorted(range(len(samples)), key=lambda i: -len(samples[i]))
    return (
        _split_best_fit(samples, by_length, budget)
        if packing == "sequence"
        else _split_rectangles(samples, by_length, budget)
    )


def even_budget(samples: Sequence[TokenSample], packing: Packing, budget: int, world: int) -> int:
    """The least budget under which each of ``world`` processes computes no more batches than it must under ``budget``.

    Batches are then about equally large, and no process waits long for another. A pure function, so all find the same.
    """
    if world == 1:
        return budget
    split = _splitter(samples, packing)
    most = -(-split(budget) // world) * world
    low, high = 1, budget
    while high - low > max(1, budget // 64):
        middle = (low + high) // 2
        low, high = (low, middle) if split(middle) <= most else (middle, high)
    return high


def _splitter(samples: Sequence[TokenSample], packing: Packing) -> Callable[[int], int]:
    """How many batches the samples make, by budget."""
    if packing != "tree":
        return lambda budget: len(split_by_budget(samples, packing, budget))
    row = lay_out([samples[i] for i in depth_first_order(samples)], share=True)
    lengths, shared = row.lengths.tolist(), row.shared.tolist()
    return lambda budget: len(_split_tree(lengths, shared, budget))


def _split_tree(lengths: Sequence[int], shared: Sequence[int], budget: int) -> list[tuple[int, int]]:
    """First and one past the last of each group of neighbours."""
    firsts: list[int] = []
    used = 0
    for place, (length, kept) in enumerate(zip(lengths, shared, strict=True)):
        if firsts and used + length - kept <= budget:
            used += length - kept
        else:
            firsts.append(place)
            used = length
    return list(zip(firsts, [*firsts[1:], len(lengths)], strict=False))  # no samples, no groups


def _split_best_fit(samples: Sequence[TokenSample], order: Sequence[int], budget: int) -> list[list[int]]:
    groups: list[list[int]] = []
    room: list[int] = []
    for index in order:
        size = len(samples[index])
        fitting = [g for g in range(len(groups)) if room[g] >= size]
        if fitting:
            best = min(fitting, key=room.__getitem__)
            groups[best].append(index)
            room[best] -= size
        else:
            groups.append([index])
            room.append(budget - size)
    return groups


def _split_rectangles(samples: Sequence[TokenSample], order: Sequence[int], budget: int) -> list[list[int]]:
    groups: list[list[int]] = []
    for index in order:  # longest first, so the group's first sample is its width
        if groups and (len(groups[-1]) + 1) * max(1, len(samples[groups[-1][0]])) <= budget:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


@dataclass(frozen=True)
class Packed:
    """A batch and where it came from.

    Attributes:
        batch: what the model computes.
        members: numbers of its samples, in the order in which the batch was made from them.
        tree: the tree it was made from, with paths in the order of ``members``; None for padded rows.
    """

    batch: Batch
    members: list[int]
    tree: PrefixTree | None = None


def pack_samples(
    samples: Sequence[TokenSample], packing: Packing, budget: int, *, buckets: bool = False
) -> list[Batch]:
    """Packs samples into batches of at most ``budget`` tokens.

    Args:
        samples: the samples of one optimiser step.
        packing: tree shares prefixes, sequence only concatenates, none pads.
        budget: tokens computed at once.
        buckets: pad token counts to at most eight sizes, for compiled attention.
    """
    return [packed.batch for packed in pack_with_members(samples, packing, budget, buckets=buckets)]


def pack_with_members(
    samples: Sequence[TokenSample], packing: Packing, budget: int, *, buckets: bool = False, world: int = 1
) -> list[Packed]:
    """``pack_samples``, and for each batch what it was made from; ``world`` processes get batches of about one size."""
    whole, budget = budget, even_budget(samples, packing, budget, world)
    if packing == "none":
        groups = split_by_budget(samples, packing, budget)
        return [Packed(pad_samples([samples[i] for i in group]), group) for group in groups]
    return [
        Packed(batch_from_tree(tree, pad_to=bucket_size(len(tree), whole) if buckets else None), group, tree)
        for group, tree in _trees(samples, packing, budget)
    ]


def _trees(samples: Sequence[TokenSample], packing: Packing, budget: int) -> Iterator[tuple[list[int], PrefixTree]]:
    if packing != "tree":
        for group in split_by_budget(samples, packing, budget):
            yield group, build_tree([samples[i] for i in group], share=False)
        return
    order = depth_first_order(samples)
    row = lay_out([samples[i] for i in order], share=True)  # once for the whole step: groups are neighbours in it
    for first, last in _split_tree(row.lengths.tolist(), row.shared.tolist(), budget):
        yield order[first:last], grow_tree(row.part(first, last))
