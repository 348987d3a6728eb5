"""Cross-entropy over loss edges straight from hidden states: logits exist for one chunk of parents at a time.

Enters: hidden states of the distinct parents, the head, the edges. Leaves: their summed loss, the log-probability of
each edge, and in the backward pass the gradient of the hidden states and, where it is trained, of the head.

A chunk's logits turn into their own gradient in place, ``w softmax(logits) - sum over edges of w_e onehot(target_e)``
with ``w`` the summed weight of the parent's edges; it meets the head at once, so the backward pass only scales. The
idea is that of chunked cross-entropy in Liger Kernel (Hsu et al., arXiv 2410.10989), and choosing rows before the head
that of Cut Cross-Entropy (Wijmans et al., arXiv 2411.09009).

Shapes: P distinct parents, E edges, H hidden size, V vocabulary, C parents a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fintune.kernels.chunk_scores import (
    Buffers,
    chunk_buffers,
    gradient_weights,
    score_by_kernels,
    score_plain,
    sum_dtype,
)
from fintune.kernels.fp8_weight import Fp8Weight, fp8_weight
from fintune.kernels.triton_use import uses_triton

CHUNK_BYTES = 256 * 2**20
_ROW_MULTIPLE = 64


@dataclass(frozen=True)
class LinearHead:
    """How hidden states become logits: ``cap tanh(scale (hidden weight^T + bias) / cap)``.

    Attributes:
        weight: (V, H).
        bias: (V,) or None.
        logit_scale: factor on the logits.
        softcap: bound of the logits (Gemma 2, arXiv 2408.00118), or None.
        fp8: where gradients are made, logits and the gradient of hidden states are products in fp8, with a scale per
            row of each factor; the head's own gradient is not, nor are log-probabilities without gradients.
    """

    weight: Tensor
    bias: Tensor | None = None
    logit_scale: float = 1.0
    softcap: float | None = None
    fp8: bool = False

    @property
    def is_trained(self) -> bool:
        """Whether weight or bias want a gradient."""
        return self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad)


@dataclass(frozen=True)
class LossEdges:
    """What is predicted where.

    Edges that repeat parent and target add up, and those of no weight only get a log-probability.

    Attributes:
        parent: (E,) row of the hidden states that predicts the edge; several edges may share one.
        target: (E,) token id.
        weight: (E,) weight in the sum.
    """

    parent: Tensor
    target: Tensor
    weight: Tensor


def chunk_rows(
    parents: int, vocabulary: int, hidden_size: int, chunk_bytes: int = CHUNK_BYTES, *, logit_bytes: int = 4
) -> int:
    """Parents a chunk, so that all chunks are about equal and one chunk's logits fit ``chunk_bytes``.

    Below H/16 parents the chunk would rather wait for the head to be read than compute, so that many it has even where
    they need more than ``chunk_bytes``. On the CPU larger chunks are faster too: each one rearranges the whole head.
    A logit takes ``logit_bytes``: for our kernels the bytes of the product's type, and 4 more in half precision with a
    trained head; for plain operations the 4 of fp32, besides which a chunk then holds half as much where products are
    in 16 bits, and as much again under a softcap.
    """
    most = max(chunk_bytes // (logit_bytes * vocabulary), hidden_size // 16, 1)
    if most > _ROW_MULTIPLE:
        most -= most % _ROW_MULTIPLE
    chunks = -(-parents // most)
    if chunks <= 1:
        return max(parents, 1)
    rows = -(-parents // chunks)
    return min(-(-rows // _ROW_MULTIPLE) * _ROW_MULTIPLE, most)


def linear_edge_cross_entropy(
    hidden: Tensor, head: LinearHead, edges: LossEdges, *, rows: int | None = None
) -> tuple[Tensor, Tensor]:
    """Weighted sum (not mean) of negative log-probabilities over edges, without ever holding all logits.

    Products are computed in the type autocast asks for, or else in that of the head; all between them in fp32 (in fp64
    for fp64 inputs). Gradients come with the forward pass, so it costs what both cost; it can be differentiated once.

    Args:
        hidden: (P, H) hidden states of the distinct parents.
        head: the head; without gradient where its tensors do not require one.
        edges: the edges.
        rows: parents a chunk; ``chunk_rows`` decides when None.

    Returns:
        The loss, differentiable, and (E,) log-probabilities, which are not.

    Raises:
        ModelError: the head is to multiply in fp8, and the card cannot, or V or H is no multiple of 16.
    """
    if not torch.is_grad_enabled() or not (hidden.requires_grad or head.is_trained):
        log_probabilities = linear_edge_log_probabilities(hidden, head, edges.parent, edges.target, rows=rows)
        return -(log_probabilities * edges.weight).sum(), log_probabilities
    apply: Any = _LinearEdgeCrossEntropy.apply
    loss, log_probabilities = apply(
        *(hidden, head.weight, head.bias, head.logit_scale, head.softcap, head.fp8, edges, rows)
    )
    return loss, log_probabilities


@torch.no_grad()
def linear_edge_log_probabilities(
    hidden: Tensor, head: LinearHead, edge_parent: Tensor, edge_target: Tensor, *, rows: int | None = None
) -> Tensor:
    """(E,) log-probabilities of the edges' targets, in fp32; arguments as of ``linear_edge_cross_entropy``."""
    edges = LossEdges(edge_parent, edge_target, torch.zeros_like(edge_target, dtype=torch.float32))
    with torch.autocast(hidden.device.type, enabled=False):
        return _walk(hidden, head, edges, _product_dtype(hidden, head), rows, (False, False, False)).log_probabilities


def linear_edge_cross_entropy_plain(hidden: Tensor, head: LinearHead, edges: LossEdges) -> Tensor:
    """The plain twin: all logits at once, and ``torch.nn.functional.cross_entropy`` on one copied row per edge."""
    dtype = _product_dtype(hidden, head)
    bias = None if head.bias is None else head.bias.to(dtype)
    with torch.autocast(hidden.device.type, enabled=False):
        logits = nn.functional.linear(hidden.to(dtype), head.weight.to(dtype), bias)
        logits = logits.to(sum_dtype(dtype)) * head.logit_scale
        if head.softcap is not None:
            logits = head.softcap * torch.tanh(logits / head.softcap)
        losses = nn.functional.cross_entropy(logits[edges.parent], edges.target, reduction="none")
        return (losses * edges.weight).sum()


def _product_dtype(hidden: Tensor, head: LinearHead) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else head.weight.dtype


class _LinearEdgeCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        logit_scale: float,
        softcap: float | None,
        fp8: bool,
        edges: LossEdges,
        rows: int | None,
    ) -> tuple[Tensor, Tensor]:
        head = LinearHead(weight, bias, logit_scale, softcap, fp8)
        dtype = _product_dtype(hidden, head)
        with torch.autocast(hidden.device.type, enabled=False):
            walked = _walk(hidden, head, edges, dtype, rows, ctx.needs_input_grad[:3])
        ctx.save_for_backward(walked.hidden_gradient, walked.weight_gradient, walked.bias_gradient)
        ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        ctx.mark_non_differentiable(walked.log_probabilities)
        ctx.set_materialize_grads(False)
        return -(walked.log_probabilities * edges.weight).sum(), walked.log_probabilities

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_gradient: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        if loss_gradient is None:
            return (None,) * 8
        # In fp32, because a factor rounded to bf16 would be off by the same share everywhere.
        gradients = [
            None if saved is None else (saved.to(sum_dtype(saved.dtype)) * loss_gradient).to(dtype)
            for saved, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return (*gradients, None, None, None, None, None)


@dataclass
class _Walked:
    """What a walk over all chunks fills in; gradients are of the loss itself, and None where not wanted."""

    log_probabilities: Tensor
    hidden_gradient: Tensor | None
    weight_gradient: Tensor | None
    bias_gradient: Tensor | None


def _walk(
    hidden: Tensor,
    head: LinearHead,
    edges: LossEdges,
    dtype: torch.dtype,
    rows: int | None,
    wanted: tuple[bool, bool, bool],
) -> _Walked:
    """All chunks; ``wanted`` says of which of hidden states, head weight and head bias gradients are made."""
    parents, (vocabulary, hidden_size) = len(hidden), head.weight.shape
    walked = _empty(hidden, head, edges, dtype, wanted)
    if not parents or not len(edges.parent):
        return walked
    hidden, weight = hidden.to(dtype), head.weight.to(dtype)
    head = replace(head, weight=weight, bias=None if head.bias is None else head.bias.to(dtype))
    rounded = _in_fp8(head) if any(wanted) else None
    in_place = uses_triton(hidden, weight)
    logit_bytes = (dtype.itemsize + 4 * (dtype == torch.float16 and wanted[1])) if in_place else 4
    rows = rows or chunk_rows(parents, vocabulary, hidden_size, logit_bytes=logit_bytes)
    weights = gradient_weights(edges, parents, vocabulary, dtype, in_place) if any(wanted) else None
    buffers = chunk_buffers(min(rows, parents), head, dtype, any(wanted), in_place)
    score = score_by_kernels if in_place else score_plain
    for start in range(0, parents, rows):
        chunk = slice(start, min(start + rows, parents))
        own = buffers.first(chunk.stop - start)
        _multiply(hidden[chunk], head, rounded, own.product)
        score(own, head, edges, chunk, weights, walked.log_probabilities)
        if weights is not None:
            _add_gradients(hidden[chunk], rounded or head.weight, own, chunk, weights.peak, walked)
    if weights is not None and weights.peak is not None:
        for sums in (walked.weight_gradient, walked.bias_gradient):
            if sums is not None:
                sums.mul_(weights.peak)
    return walked


def _empty(
    hidden: Tensor, head: LinearHead, edges: LossEdges, dtype: torch.dtype, wanted: tuple[bool, bool, bool]
) -> _Walked:
    wide, device = sum_dtype(dtype), hidden.device
    # Half precision would lose what only the loss scale, later, makes large enough to keep.
    narrow = wide if dtype == torch.float16 else dtype
    return _Walked(
        torch.zeros(len(edges.parent), dtype=wide, device=device),
        torch.zeros(hidden.shape, dtype=narrow, device=device) if wanted[0] else None,
        torch.zeros(head.weight.shape, dtype=wide, device=device) if wanted[1] else None,
        torch.zeros(head.weight.shape[0], dtype=wide, device=device) if wanted[2] else None,
    )


def _in_fp8(head: LinearHead) -> Fp8Weight | None:
    if not head.fp8:
        return None
    rounded = fp8_weight(head.weight, asked_by="An output head in fp8", remedy="Leave fp8_head out.")
    rounded.hold_ready(head.weight.dtype)
    return rounded


def _multiply(hidden: Tensor, head: LinearHead, rounded: Fp8Weight | None, product: Tensor) -> None:
    """``product`` becomes the (C, V) raw logits of (C, H) hidden states."""
    if rounded is not None:
        rounded.product(hidden, out=product)
        if head.bias is not None:
            product.add_(head.bias)
    elif head.bias is None:
        torch.mm(hidden, head.weight.t(), out=product)
    else:
        torch.addmm(head.bias, hidden, head.weight.t(), out=product)


def _add_gradients(
    hidden: Tensor,
    weight: Tensor | Fp8Weight,
    own: Buffers,
    chunk: slice,
    peak: Tensor | None,
    walked: _Walked,
) -> None:
    """From the gradient of raw logits to those of hidden states and head."""
    narrow, gradient = own.product, own.wide
    if walked.hidden_gradient is not None:
        if isinstance(weight, Tensor) and peak is None:
            torch.mm(narrow, weight, out=walked.hidden_gradient[chunk])
        else:
            found = narrow @ weight if isinstance(weight, Tensor) else weight.input_gradient(narrow)
            walked.hidden_gradient[chunk] = found if peak is None else found.to(peak.dtype) * peak
    if walked.weight_gradient is not None:
        if narrow.dtype == torch.bfloat16:
            walked.weight_gradient.add_(narrow.t() @ hidden)
        else:  # in half precision a sum over parents could overflow
            wide = walked.weight_gradient.dtype
            walked.weight_gradient.addmm_(gradient.to(wide).t(), hidden.to(wide))
    if walked.bias_gradient is not None:
        walked.bias_gradient.add_(gradient.sum(dim=0, dtype=walked.bias_gradient.dtype))
