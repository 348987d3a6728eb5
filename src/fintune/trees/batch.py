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

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def weight(self) -> float:
        """Summed edge weight; what the loss of the whole step is divided by."""
        return float(self.edge_weight.sum())

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


def batch_from_tree(tree: PrefixTree, *, pad_to: int | None = None) -> TreeBatch:
    """Turns a prefix tree into tensors; every node with positive supervision becomes a loss edge."""
    children = np.flatnonzero(tree.is_edge)
    parents, edge_parent = np.unique(tree.parent[children], return_inverse=True)
    size = len(tree)
    padding = max(0, (pad_to or size) - size)
    pad_positions = np.arange(size, size + padding)
    return TreeBatch(
        tokens=torch.from_numpy(np.concatenate([tree.tokens, np.zeros(padding, np.int64)])),
        depth=torch.from_numpy(np.concatenate([tree.depth, np.zeros(padding, np.int64)])),
        subtree_end=torch.from_numpy(np.concatenate([tree.subtree_end, pad_positions + 1])),
        parents=torch.from_numpy(parents),
        edge_parent=torch.from_numpy(edge_parent.astype(np.int64)),
        edge_target=torch.from_numpy(tree.tokens[children]),
        edge_weight=torch.from_numpy(tree.supervision[children].astype(np.float32)),
        sample_tokens=sum(len(path) for path in tree.paths),
        real_tokens=size,
        n_samples=len(tree.paths),
    )
