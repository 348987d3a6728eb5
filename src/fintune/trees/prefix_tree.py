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
from dataclasses import dataclass

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
    def is_edge(self) -> npt.NDArray[np.bool_]:
        """(T,) True where the edge parent -> token counts in the loss."""
        return (self.supervision > 0) & (self.parent >= 0)


def shared_prefix_length(left: IntArray, right: IntArray) -> int:
    """Number of leading tokens two sequences have in common."""
    overlap = min(len(left), len(right))
    differs = left[:overlap] != right[:overlap]
    return int(differs.argmax()) if differs.any() else overlap


def depth_first_order(samples: Sequence[TokenSample]) -> list[int]:
    """Indices of the samples in lexicographic order of their tokens: neighbours share the longest prefixes."""
    keys = [sample.tokens.astype(">i8").tobytes() for sample in samples]  # big-endian bytes sort like the numbers
    return sorted(range(len(samples)), key=keys.__getitem__)


def build_tree(samples: Sequence[TokenSample], *, share: bool = True) -> PrefixTree:
    """Merges samples into a forest of prefix trees.

    Args:
        samples: any samples; empty ones get an empty path, duplicates share all their nodes.
        share: False keeps every sample a chain of its own (ordinary packing), in the order given.
    """
    order = depth_first_order(samples) if share else range(len(samples))
    total = sum(len(sample) for sample in samples)
    tokens, parent = np.zeros(total, np.int64), np.full(total, -1, np.int64)
    depth, subtree_end = np.zeros(total, np.int64), np.zeros(total, np.int64)
    supervision = np.zeros(total, np.float64)
    paths: list[IntArray] = [np.zeros(0, np.int64)] * len(samples)

    size = 0
    open_path = np.zeros(0, np.int64)  # nodes from the root to the last token written
    previous = np.zeros(0, np.int64)
    for index in order:
        sample = samples[index]
        kept = shared_prefix_length(previous, sample.tokens) if share else 0
        added = len(sample) - kept
        subtree_end[open_path[kept:]] = size
        nodes = np.arange(size, size + added)
        path = np.concatenate([open_path[:kept], nodes])
        tokens[nodes], depth[nodes] = sample.tokens[kept:], np.arange(kept, len(sample))
        if added:
            parent[nodes[1:]] = nodes[:-1]
            parent[nodes[0]] = open_path[kept - 1] if kept else -1
        supervision[path] += sample.supervision
        paths[index] = path
        size += added
        open_path, previous = path, sample.tokens
    subtree_end[open_path] = size
    return PrefixTree(tokens[:size], depth[:size], parent[:size], subtree_end[:size], supervision[:size], tuple(paths))


def tree_mask(subtree_end: IntArray) -> npt.NDArray[np.bool_]:
    """The (T, T) attention mask: ``mask[q, k]`` is True where k is q or an ancestor of q."""
    position = np.arange(len(subtree_end))
    return (position[None, :] <= position[:, None]) & (position[:, None] < subtree_end[None, :])
