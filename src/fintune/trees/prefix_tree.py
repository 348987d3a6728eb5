"""Token sequences as one prefix tree, written in depth-first order.

::

    samples                         tree in depth-first order                  subtree_end
    [sys ask] Text A : positive     0 sys  1 ask  2 A  3 :  4 positive          8  8  5  5  5
    [sys ask] Text B : negative                   5 B  6 :  7 negative                8  8  8

    attention: token q sees token k   <=>   k <= q < subtree_end[k]
    position:  depth in the tree
    loss:      one edge (parent -> child) per supervised token, weighted by the samples that supervise it

A causal model lets a token depend on its ancestors only, so loss and gradients equal those of the separate
samples. Related: Tree Training (arXiv 2511.00413), Hydragen (arXiv 2402.05099), RadixAttention (arXiv 2312.07104).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TokenSample:
    """One sample as tokens.

    Attributes:
        tokens: (L,) token ids, prompt and completion together.
        supervision: (L,) weight with which token i is a target of the loss; 0 for prompt tokens. The first token
            has no parent that could predict it, so its weight must be 0.
        index: the caller's number for the sample.
    """

    tokens: IntArray
    supervision: FloatArray
    index: int = 0

    def __post_init__(self) -> None:
        if self.tokens.shape != self.supervision.shape or self.tokens.ndim != 1:
            raise ValueError(f"tokens {self.tokens.shape} and supervision {self.supervision.shape} must both be (L,)")
        if len(self.supervision) and self.supervision[0] != 0:
            raise ValueError("the first token of a sample has no predecessor and cannot be supervised")

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class PrefixTree:
    """A forest of prefix trees over T distinct tokens in depth-first order.

    Attributes:
        tokens: (T,) token ids.
        depth: (T,) distance from the root; the position each token is computed at.
        parent: (T,) index of the parent, -1 for roots.
        subtree_end: (T,) one past the last descendant.
        supervision: (T,) summed weight of the samples that supervise the edge parent -> token.
        paths: one (L,) array per sample, in the order given: the node that each of its tokens became.
    """

    tokens: IntArray
    depth: IntArray
    parent: IntArray
    subtree_end: IntArray
    supervision: FloatArray
    paths: tuple[IntArray, ...]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def inner(self) -> int:
        """How many tokens have others below them."""
        return int((self.subtree_end > np.arange(len(self)) + 1).sum())

    @property
    def is_edge(self) -> npt.NDArray[np.bool_]:
        """(T,) True where the edge parent -> token counts in the loss."""
        return (self.supervision > 0) & (self.parent >= 0)


@dataclass(frozen=True)
class SampleRow:
    """N tokens of S samples, one sample after the other.

    Attributes:
        tokens: (N,) token ids.
        supervision: (N,) as in ``TokenSample``.
        lengths: (S,) tokens of each sample.
        shared: (S,) leading tokens that each sample has in common with the one before it; 0 where nothing is shared.
    """

    tokens: IntArray
    supervision: FloatArray
    lengths: IntArray
    shared: IntArray

    def part(self, first: int, last: int) -> SampleRow:
        """The samples from ``first`` to before ``last``, of which the first shares nothing."""
        start, stop = int(self.lengths[:first].sum()), int(self.lengths[:last].sum())
        shared = self.shared[first:last].copy()
        shared[:1] = 0
        return SampleRow(self.tokens[start:stop], self.supervision[start:stop], self.lengths[first:last], shared)


def lay_out(samples: Sequence[TokenSample], *, share: bool) -> SampleRow:
    """Samples in the order given as one row; with ``share`` that must be their depth-first order."""
    lengths = np.fromiter(map(len, samples), np.int64, len(samples))
    tokens = _joined([sample.tokens for sample in samples], np.int64)
    supervision = _joined([sample.supervision for sample in samples], np.float64)
    shared = shared_prefix_lengths(tokens, lengths) if share else np.zeros(len(samples), np.int64)
    return SampleRow(tokens, supervision, lengths, shared)


def shared_prefix_lengths(tokens: IntArray, lengths: IntArray) -> IntArray:
    """(S,) number of leading tokens each of S sequences, written one after the other, shares with the one before."""
    overlap = np.minimum(lengths[:-1], lengths[1:])
    starts, pair_starts = np.cumsum(lengths) - lengths, np.cumsum(overlap) - overlap
    left = np.arange(int(overlap.sum())) + np.repeat(starts[:-1] - pair_starts, overlap)
    differing = np.flatnonzero(tokens[left] != tokens[left + np.repeat(lengths[:-1], overlap)])
    first = np.append(differing, len(left))[np.searchsorted(differing, pair_starts)]
    return np.concatenate([np.zeros(min(1, len(lengths)), np.int64), np.minimum(first - pair_starts, overlap)])


def depth_first_order(samples: Sequence[TokenSample]) -> list[int]:
    """Indices of the samples in lexicographic order of their tokens: neighbours share the longest prefixes."""
    # Big-endian bytes sort like the numbers.
    row = _joined([sample.tokens for sample in samples], np.int64).astype(">i8").tobytes()
    ends = [8 * end for end in accumulate(map(len, samples))]
    keys = [row[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    return sorted(range(len(samples)), key=keys.__getitem__)


def build_tree(samples: Sequence[TokenSample], *, share: bool = True) -> PrefixTree:
    """Merges samples into a forest of prefix trees.

    Args:
        samples: any samples; empty ones get an empty path, duplicates share all their nodes.
        share: False keeps every sample a chain of its own (ordinary packing), in the order given.
    """
    if not share:
        return _chains(lay_out(samples, share=False))
    order = depth_first_order(samples)
    tree = grow_tree(lay_out([samples[i] for i in order], share=True))
    paths = dict(zip(order, tree.paths, strict=True))
    return replace(tree, paths=tuple(paths[i] for i in range(len(samples))))


def grow_tree(row: SampleRow) -> PrefixTree:
    """The forest of samples that stand in depth-first order; its paths are in that order too."""
    lengths, shared = row.lengths, row.shared
    starts = np.cumsum(lengths) - lengths
    depth = np.arange(len(row.tokens)) - np.repeat(starts, lengths)
    sharing = np.repeat(shared, lengths)
    fresh = np.flatnonzero(depth >= sharing)  # the tokens that become nodes; the others are nodes already
    path = np.empty(len(row.tokens), np.int64)
    path[fresh] = np.arange(len(fresh))
    begins = starts.tolist()
    for before, start, kept in zip(begins, begins[1:], shared[1:].tolist(), strict=False):
        path[start : start + kept] = path[before : before + kept]
    fresh_depth, size = depth[fresh], len(fresh)
    # A sample through a node adds to its subtree what it writes anew from that depth on; float64 counts exactly.
    written = np.repeat(lengths, lengths) - np.maximum(sharing, depth)
    descendants = np.bincount(path, written, size).astype(np.int64)
    return PrefixTree(
        tokens=row.tokens[fresh],
        depth=fresh_depth,
        parent=np.where(fresh_depth > 0, path[fresh - 1], -1),
        subtree_end=np.arange(size) + descendants,
        supervision=np.bincount(path, row.supervision, size).astype(np.float64),  # without nodes it counts in integers
        paths=tuple(path[start : start + length] for start, length in zip(begins, lengths.tolist(), strict=True)),
    )


def _chains(row: SampleRow) -> PrefixTree:
    """``grow_tree`` where nothing is shared: every token is a node."""
    ends = np.cumsum(row.lengths)
    starts, nodes = ends - row.lengths, np.arange(len(row.tokens))
    depth = nodes - np.repeat(starts, row.lengths)
    return PrefixTree(
        tokens=row.tokens,
        depth=depth,
        parent=np.where(depth > 0, nodes - 1, -1),
        subtree_end=np.repeat(ends, row.lengths),
        supervision=row.supervision,
        paths=tuple(nodes[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)),
    )


def _joined(parts: Sequence[npt.NDArray[Any]], kind: type) -> npt.NDArray[Any]:
    return np.concatenate(parts) if parts else np.zeros(0, kind)


def tree_mask(subtree_end: IntArray) -> npt.NDArray[np.bool_]:
    """The (T, T) attention mask: ``mask[q, k]`` is True where k is q or an ancestor of q."""
    position = np.arange(len(subtree_end))
    return (position[None, :] <= position[:, None]) & (position[:, None] < subtree_end[None, :])
