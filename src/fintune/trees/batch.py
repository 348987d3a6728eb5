"""``TreeBatch``: a prefix tree as tensors, with its loss edges."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fintune.trees.prefix_tree import PrefixTree

MAX_BUCKETS = 8  # compiled attention recompiles per shape and runs unfused past its limit


@dataclass(frozen=True)
class TreeBatch:
    """Tokens computed together in one forward pass.

    T tokens (padding included), P distinct parents, E loss edges.

    Attributes:
        tokens: (T,) token ids in depth-first order; padding repeats id 0.
        depth: (T,) positions.
        subtree_end: (T,) token q sees token k iff k <= q < subtree_end[k]; padding sees itself only.
        parents: (P,) distinct token indices whose logits the loss needs.
        edge_parent: (E,) index into ``parents``.
        edge_target: (E,) token id to be predicted.
        edge_weight: (E,) summed weight of the samples that supervise the edge, fp32.
        sample_tokens: tokens before sharing, for the log.
        real_tokens: tokens without padding.
        n_samples: samples merged into the batch.
        longest: tokens of the longest sample; 0 where it is not known.
    """

    tokens: Tensor
    depth: Tensor
    subtree_end: Tensor
    parents: Tensor
    edge_parent: Tensor
    edge_target: Tensor
    edge_weight: Tensor
    sample_tokens: int
    real_tokens: int
    n_samples: int
    longest: int = 0

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def weight(self) -> float:
        """Summed edge weight; what the loss of the whole step is divided by."""
        return float(self.edge_weight.sum())

    @property
    def equal_rows(self) -> int:
        """How many samples there are where they are of one length, share nothing and need no padding; else 0."""
        shares_nothing = self.sample_tokens == self.real_tokens == len(self)
        return self.n_samples if shares_nothing and self.longest * self.n_samples == len(self) else 0

    def to(self, device: torch.device) -> TreeBatch:
        """The same batch with its tensors on ``device``."""
        tensors = {k: v.to(device, non_blocking=True) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return TreeBatch(**{**vars(self), **tensors})

    def as_filler(self) -> TreeBatch:
        """The same batch with all weights zero: keeps ranks in step without touching loss or gradients."""
        return replace(self, edge_weight=torch.zeros_like(self.edge_weight), n_samples=0)


def bucket_size(length: int, budget: int) -> int:
    """The padded token count for ``length``: about eighths of ``budget`` in multiples of 128, whole budgets beyond."""
    step = max(128, -(-budget // MAX_BUCKETS // 128) * 128)
    return -(-length // step) * step if length <= budget else -(-length // max(budget, step)) * max(budget, step)


def batch_from_tree(tree: PrefixTree, *, pad_to: int | None = None, leaves: bool = True) -> TreeBatch:
    """Turns a prefix tree into tensors; every node with positive supervision becomes a loss edge.

    Args:
        tree: the tree.
        pad_to: tokens of the batch; none is added when None.
        leaves: False leaves out the last token of every branch: it is predicted, but predicts nothing.
    """
    children = np.flatnonzero(tree.is_edge)
    edge_parent, size = tree.parent[children], len(tree)
    tokens, depth, subtree_end = tree.tokens, tree.depth, tree.subtree_end
    if not leaves:
        inner = subtree_end > np.arange(size) + 1
        place = np.concatenate([[0], np.cumsum(inner)])  # of each token, and of the end, among those that stay
        tokens, depth, subtree_end = tokens[inner], depth[inner], place[subtree_end[inner]]
        edge_parent, size = place[edge_parent], len(tokens)
    is_parent = np.zeros(size, np.bool_)
    is_parent[edge_parent] = True
    if pad_to is not None and pad_to > size:
        padding = np.zeros(pad_to - size, np.int64)
        tokens, depth = np.concatenate([tokens, padding]), np.concatenate([depth, padding])
        subtree_end = np.concatenate([subtree_end, np.arange(size + 1, pad_to + 1)])
    return TreeBatch(
        tokens=torch.from_numpy(tokens),
        depth=torch.from_numpy(depth),
        subtree_end=torch.from_numpy(subtree_end),
        parents=torch.from_numpy(np.flatnonzero(is_parent)),
        edge_parent=torch.from_numpy((np.cumsum(is_parent) - 1)[edge_parent]),  # its place among the parents
        edge_target=torch.from_numpy(tree.tokens[children]),
        edge_weight=torch.from_numpy(tree.supervision[children].astype(np.float32)),
        sample_tokens=sum(len(path) for path in tree.paths),
        real_tokens=size,
        n_samples=len(tree.paths),
        longest=max((len(path) for path in tree.paths), default=0),
    )
