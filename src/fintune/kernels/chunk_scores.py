"""One chunk of logits: from what the head's product gives to log-probabilities and, in place, to the gradient.

Enters: a chunk's raw logits, the head, the edges. Leaves: log-probabilities of the edges and the gradient of the
logits, by our kernels or by plain operations.

Shapes: P distinct parents, E edges, V vocabulary, C parents of a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fintune.kernels.linear_edge_loss import LinearHead, LossEdges

# Half precision ends at 65,504 and below 6e-8, and this gradient is made before the loss scale is known.
_HALF_PEAK = 1024.0


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """What sums over the vocabulary are made in: fp32, or fp64 for fp64."""
    return torch.promote_types(dtype, torch.float32)


@dataclass(frozen=True)
class Buffers:
    """Memory for one chunk, reused by the next: fresh pages cost the CPU as much as the exponentials.

    Attributes:
        product: (C, V) logits as the product gives them, later their gradient.
        wide: (C, V) in the type sums are made in; the same memory as ``product`` in fp32 and for our kernels.
        slope: (C, V) derivative of the softcap; None without one, without gradients or for our kernels.
    """

    product: Tensor
    wide: Tensor
    slope: Tensor | None

    def first(self, size: int) -> Buffers:
        """The same memory for a chunk of ``size`` parents."""
        product = self.product[:size]
        wide = product if self.wide is self.product else self.wide[:size]
        return Buffers(product, wide, None if self.slope is None else self.slope[:size])


@dataclass(frozen=True)
class Weights:
    """What gradients are made of, besides logits.

    Attributes:
        parent: (P,) summed weight of each parent's edges.
        edge: (E,) weight of each edge, or for our kernels the summed weight of all edges at its cell.
        peak: in half precision, what all weights were divided by; None in other types.
    """

    parent: Tensor
    edge: Tensor
    peak: Tensor | None


def chunk_buffers(rows: int, head: LinearHead, dtype: torch.dtype, with_gradients: bool, in_place: bool) -> Buffers:
    """Memory for the largest chunk."""
    shape, device = (rows, head.weight.shape[0]), head.weight.device
    product = torch.empty(shape, dtype=dtype, device=device)
    if in_place:
        return Buffers(product, product, None)
    wide = product if sum_dtype(dtype) == dtype else torch.empty(shape, dtype=sum_dtype(dtype), device=device)
    return Buffers(product, wide, torch.empty_like(wide) if with_gradients and head.softcap is not None else None)


def gradient_weights(edges: LossEdges, parents: int, vocabulary: int, dtype: torch.dtype, in_place: bool) -> Weights:
    """Weights summed by parent and, for our kernels, by cell."""
    edge = edges.weight.to(sum_dtype(dtype))
    parent = _sum_by(edges.parent, edge, parents)
    # Half precision: a gradient of known size, whatever the weights are; powers of the weights cancel at the end.
    peak = parent.abs().amax().clamp(min=1e-30) / _HALF_PEAK if dtype == torch.float16 else None
    if peak is not None:
        edge, parent = edge / peak, parent / peak
    if in_place:  # each edge sets its cell, where plain operations would add to it
        cell = edges.parent * vocabulary + edges.target
        first = torch.searchsorted(cell.sort().values, cell)  # one number for all edges of a cell
        edge = _sum_by(first, edge, len(edge))[first]
    return Weights(parent, edge, peak)


def _sum_by(index: Tensor, weight: Tensor, size: int) -> Tensor:
    """(size,) weights summed by index, in a fixed order on either device, so that a resumed run repeats to the bit."""
    sums = weight.new_zeros(size)
    if weight.device.type == "cpu":
        return sums.index_add_(0, index, weight)
    return sums.index_put_((index,), weight, accumulate=True)


def score_by_kernels(
    own: Buffers, head: LinearHead, edges: LossEdges, chunk: slice, weights: Weights | None, log_probabilities: Tensor
) -> None:
    """What ``score_plain`` does, by our kernels."""
    from fintune.kernels.edge_loss_triton import score_in_place

    given = None if weights is None else (weights.parent, weights.edge)
    score_in_place(own.product, head, edges, chunk.start, given, log_probabilities)


def score_plain(
    own: Buffers, head: LinearHead, edges: LossEdges, chunk: slice, weights: Weights | None, log_probabilities: Tensor
) -> None:
    """From raw logits in ``own.product`` to their gradient there; in ``own.wide`` it is not yet rounded.

    Args:
        own: the chunk's buffers.
        head: the head.
        edges: the edges of all chunks.
        chunk: which parents the chunk has.
        weights: None where no gradient is wanted; nothing of use remains in the buffers then.
        log_probabilities: (E,), written for edges of the chunk.
    """
    logits = own.wide
    _cap_logits(own, head)
    inside = (edges.parent >= chunk.start) & (edges.parent < chunk.stop)  # a selection would wait for the GPU
    row = (edges.parent - chunk.start).clamp(0, len(logits) - 1)
    cell = row * logits.shape[1] + edges.target
    target_logit = logits.view(-1)[cell]
    highest = logits.amax(dim=-1)
    total = logits.sub_(highest[:, None]).exp_().sum(dim=-1)
    normaliser = total.log() + highest
    torch.where(inside, target_logit - normaliser[row], log_probabilities, out=log_probabilities)
    if weights is None:
        return
    gradient = logits.mul_((weights.parent[chunk] / total)[:, None])
    # No cell has two edges of weight unless the caller repeats one, so the order of additions is no matter.
    gradient.view(-1).scatter_add_(0, cell, torch.where(inside, -weights.edge, 0.0))
    if own.slope is not None:
        gradient.mul_(own.slope)
    if head.logit_scale != 1.0:
        gradient.mul_(head.logit_scale)
    if own.product is not gradient:
        own.product.copy_(gradient)


def _cap_logits(own: Buffers, head: LinearHead) -> None:
    """``own.wide`` becomes the logits scaled and capped, ``own.slope`` the softcap's derivative."""
    logits = own.wide
    if logits is not own.product:
        logits.copy_(own.product)
    if head.logit_scale != 1.0:
        logits.mul_(head.logit_scale)
    if head.softcap is not None:
        logits.div_(head.softcap).tanh_()
        if own.slope is not None:
            torch.mul(logits, logits, out=own.slope).neg_().add_(1.0)
        logits.mul_(head.softcap)
