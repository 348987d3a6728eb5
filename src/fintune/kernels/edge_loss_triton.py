# mypy: ignore-errors
"""Triton kernels of ``linear_edge_loss``: raw logits become edges' log-probabilities and, in place, their own gradient.

Enters and leaves: what ``score_in_place`` takes and changes.

Shapes: C parents a chunk, V vocabulary, E edges, P parents of all chunks.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from fintune.kernels.linear_edge_loss import LinearHead, LossEdges
from fintune.kernels.row_tile import next_power_of_two
from fintune.kernels.triton_use import launch

# A row has one program of as many threads as there can be: the fewer rows are under way, the more of each is still in
# the L2 cache when it is read again. A lane is what a thread loads at once, of which it has two under way.
_WARPS, _LANES, _LANES_PER_WARP = 32, 2048, 64
_LOAD_BYTES = 16
_EDGES = 256
# Not minus infinity, whose difference from itself is not a number.
_LOWEST = tl.constexpr(-3.0e38)


def score_in_place(
    product: Tensor,
    head: LinearHead,
    edges: LossEdges,
    start: int,
    weights: tuple[Tensor, Tensor] | None,
    log_probabilities: Tensor,
) -> None:
    """Notes the log-probabilities of the chunk's edges and turns its raw logits into their gradient.

    Args:
        product: (C, V) raw logits, contiguous; overwritten with their gradient where ``weights`` are given.
        head: tells the factor on the logits and their bound.
        edges: the edges of all chunks; their weights are not read.
        start: the chunk's first parent.
        weights: (P,) summed weight by parent, and (E,) summed weight of all edges at each edge's cell, both fp32. As
            edges at one cell bring the same sum, all write the same number, in whichever order.
        log_probabilities: (E,) fp32, contiguous, written for edges of the chunk.
    """
    size, vocabulary = product.shape
    parent_weight, cell_weight = (None, None) if weights is None else weights
    of_edge = (product, edges.parent.contiguous(), edges.target.contiguous(), log_probabilities)
    of_row = torch.empty(2, size, dtype=torch.float32, device=product.device).unbind()
    chunk = (start, start + size, len(edges.parent))
    blocks = (triton.cdiv(len(edges.parent), _EDGES),)
    vector, lanes = _tile(vocabulary, product.element_size())
    constants = {
        "VOCABULARY": vocabulary,
        "LOGIT_SCALE": float(head.logit_scale),
        "SOFTCAP": None if head.softcap is None else float(head.softcap),
        "GRADIENT": weights is not None,
    }
    launch(_take_targets_kernel, blocks, product.device, *of_edge, *chunk, VOCABULARY=vocabulary, BLOCK=_EDGES)
    launch(
        _rows_kernel, (size,), product.device, product, parent_weight, *of_row, start,
        **constants, STEPS=triton.cdiv(vocabulary, lanes * vector), LANES=lanes, VECTOR=vector,
        num_warps=max(1, min(_WARPS, lanes // _LANES_PER_WARP)),
    )  # fmt: skip
    launch(
        _edges_kernel, blocks, product.device, *of_edge, parent_weight, cell_weight, *of_row, *chunk,
        **constants, BLOCK=_EDGES,
    )  # fmt: skip


def _tile(vocabulary: int, logit_bytes: int) -> tuple[int, int]:
    """Columns a lane and lanes a step; rows of odd length start anywhere, so that threads load one column at a time."""
    whole = _LOAD_BYTES // logit_bytes
    vector = math.gcd(vocabulary, whole)
    most = _LANES if vector == whole else 2 * _LANES
    return vector, min(most, next_power_of_two(triton.cdiv(vocabulary, vector)))


@triton.jit
def _capped(raw, LOGIT_SCALE: tl.constexpr, SOFTCAP: tl.constexpr):
    """The logit, and its derivative by the raw one."""
    scaled = raw * LOGIT_SCALE
    if SOFTCAP is None:
        logit = scaled
        slope = tl.full(raw.shape, LOGIT_SCALE, tl.float32)
    else:
        # The slope is 1 - tanh^2, which written so would lose its digits where the cap is near.
        decay = tl.exp(tl.abs(scaled) * (-2.0 / SOFTCAP))
        inverse = 1.0 / (1.0 + decay)
        size = SOFTCAP * (1.0 - decay) * inverse
        logit = tl.where(scaled < 0.0, -size, size)
        slope = (4.0 * LOGIT_SCALE) * decay * inverse * inverse
    return logit, slope


@triton.jit
def _edges_of_chunk(parent_ptr, target_ptr, start, stop, edges, VOCABULARY: tl.constexpr, BLOCK: tl.constexpr):
    """Numbers of a block of edges, their rows in the chunk, their cells, and which of them are in the chunk."""
    edge = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    parent = tl.load(parent_ptr + edge, mask=edge < edges, other=-1)
    inside = (parent >= start) & (parent < stop)
    target = tl.load(target_ptr + edge, mask=inside, other=0)
    row = parent.to(tl.int64) - start
    return edge, row, row * VOCABULARY + target, inside


@triton.jit(do_not_specialize=["start", "stop", "edges"])
def _take_targets_kernel(
    product_ptr,
    parent_ptr,
    target_ptr,
    raw_ptr,
    start,
    stop,
    edges,
    VOCABULARY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The targets' raw logits, saved before gradients take their place."""
    edge, _, cell, inside = _edges_of_chunk(parent_ptr, target_ptr, start, stop, edges, VOCABULARY, BLOCK)
    raw = tl.load(product_ptr + cell, mask=inside, other=0.0)
    tl.store(raw_ptr + edge, raw.to(tl.float32), mask=inside)


@triton.jit(do_not_specialize=["start"])
def _rows_kernel(
    product_ptr,
    parent_weight_ptr,
    highest_ptr,
    total_ptr,
    start,
    VOCABULARY: tl.constexpr,
    LOGIT_SCALE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    GRADIENT: tl.constexpr,
    STEPS: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """A row's highest logit and sum of ``exp(logit - highest)``, and then its gradient but for the targets' part."""
    row = tl.program_id(0)
    row_ptr = product_ptr + row.to(tl.int64) * VOCABULARY
    tile = tl.arange(0, LANES)[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]
    # Each lane has a maximum and a sum of its own, so that threads need not meet before the end of the row.
    highest = tl.full((LANES,), _LOWEST, tl.float32)
    total = tl.zeros((LANES,), tl.float32)
    for step in range(STEPS):
        columns = step * (LANES * VECTOR) + tile
        inside = columns < VOCABULARY
        raw = tl.load(row_ptr + columns, mask=inside, other=0.0).to(tl.float32)
        logit, _ = _capped(raw, LOGIT_SCALE, SOFTCAP)
        logit = tl.where(inside, logit, float("-inf"))
        higher = tl.maximum(highest, tl.max(logit, 1))
        total = total * tl.exp(highest - higher) + tl.sum(tl.exp(logit - higher[:, None]), 1)
        highest = higher
    row_highest = tl.max(highest, 0)
    row_total = tl.sum(total * tl.exp(highest - row_highest), 0)
    tl.store(highest_ptr + row, row_highest)
    tl.store(total_ptr + row, row_total)
    if GRADIENT:
        factor = tl.load(parent_weight_ptr + start + row) / row_total
        for step in range(STEPS):  # backwards: what was read last is the likeliest to be cached
            columns = (STEPS - 1 - step) * (LANES * VECTOR) + tile
            inside = columns < VOCABULARY
            raw = tl.load(row_ptr + columns, mask=inside, other=0.0).to(tl.float32)
            logit, slope = _capped(raw, LOGIT_SCALE, SOFTCAP)
            gradient = factor * tl.exp(logit - row_highest) * slope
            tl.store(row_ptr + columns, gradient.to(product_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["start", "stop", "edges"])
def _edges_kernel(
    product_ptr,
    parent_ptr,
    target_ptr,
    log_probability_ptr,
    parent_weight_ptr,
    cell_weight_ptr,
    highest_ptr,
    total_ptr,
    start,
    stop,
    edges,
    VOCABULARY: tl.constexpr,
    LOGIT_SCALE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """From the saved raw logits to log-probabilities, and the gradient of the targets' cells, rounded once."""
    edge, row, cell, inside = _edges_of_chunk(parent_ptr, target_ptr, start, stop, edges, VOCABULARY, BLOCK)
    raw = tl.load(log_probability_ptr + edge, mask=inside, other=0.0)
    highest = tl.load(highest_ptr + row, mask=inside, other=0.0)
    total = tl.load(total_ptr + row, mask=inside, other=1.0)
    logit, slope = _capped(raw, LOGIT_SCALE, SOFTCAP)
    below = logit - highest
    tl.store(log_probability_ptr + edge, below - tl.log(total), mask=inside)
    if GRADIENT:
        parent_weight = tl.load(parent_weight_ptr + start + row, mask=inside, other=0.0)
        cell_weight = tl.load(cell_weight_ptr + edge, mask=inside, other=0.0)
        gradient = (parent_weight * (tl.exp(below) / total) - cell_weight) * slope
        written = inside & (cell_weight != 0.0)
        tl.store(product_ptr + cell, gradient.to(product_ptr.dtype.element_ty), mask=written)
