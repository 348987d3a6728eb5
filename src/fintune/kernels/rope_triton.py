# mypy: ignore-errors
"""Triton kernels of ``rope``: a program takes some tokens and goes from head to head, cosines and sines in registers.

Enters and leaves: what the functions of ``rope`` take and give.
"""

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from fintune.kernels.rank_product_triton import add_rank_product, rank_chunk
from fintune.kernels.row_tile import next_power_of_two
from fintune.kernels.triton_use import launch

if TYPE_CHECKING:
    from fintune.kernels.rope import HeadLayout

_MOST_HEADS = 8  # of a program
_HALF_TILE = 2048  # elements of half a head's tile: eight a thread, a load of 16 bytes in bf16
# The loop over heads holds products, whose operands Triton would fetch ahead into so much shared memory that fewer
# programs fit on a processor.
_OPTIONS = {"num_warps": 8, "num_stages": 1}


def rotate_heads(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    layout: "HeadLayout",
    small: Tensor | None,
    b: Tensor | None,
    query_norm: Tensor | None,
    key_norm: Tensor | None,
    eps: float,
    unit_offset: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """q, k, v by head, and the norms' rstd."""
    tokens, norms = qkv.shape[0], query_norm is not None
    rotated_heads = layout.query + layout.key
    rotated, rstd = qkv, None
    if norms:
        rotated = torch.empty(tokens, rotated_heads * layout.size, dtype=qkv.dtype, device=qkv.device)
        rstd = torch.empty(tokens, rotated_heads, dtype=torch.float32, device=qkv.device)
    heads = rotated_heads if small is None else rotated_heads + layout.key  # nothing is done to values but adapters
    tile = _tile(layout)
    launch(
        _forward_kernel,
        (triton.cdiv(tokens, tile["BLOCK_T"]), heads // tile["HEADS"]),
        qkv.device,
        qkv,
        cos,
        sin,
        small,
        b,
        query_norm,
        key_norm,
        rotated,
        rstd,
        qkv.stride(0),
        cos.stride(0),
        sin.stride(0),
        0 if small is None else small.stride(0),
        0 if b is None else b.stride(0),
        rotated.stride(0),
        tokens,
        float(eps),
        QUERY=layout.query,
        KEY=layout.key,
        RANK=0 if small is None else small.shape[1] // 3,
        CHUNK=0 if small is None else rank_chunk(small.shape[1] // 3),
        NORMS=norms,
        UNIT_OFFSET=unit_offset,
        **tile,
    )
    by_head = qkv.unflatten(1, (-1, layout.size))
    q, k = rotated.unflatten(1, (-1, layout.size))[:, :rotated_heads].split(layout.sections[:2], 1)
    return q, k, by_head[:, rotated_heads:], rstd


def rotate_heads_backward(
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    cos: Tensor,
    sin: Tensor,
    layout: "HeadLayout",
    qkv: Tensor | None,
    rstd: Tensor | None,
    query_norm: Tensor | None,
    key_norm: Tensor | None,
    unit_offset: bool,
    out: Tensor | None,
) -> Tensor:
    """(T, W)."""
    tokens = dq.shape[0]
    out = torch.empty(tokens, layout.width, dtype=dq.dtype, device=dq.device) if out is None else out
    tile = _tile(layout)
    launch(
        _backward_kernel,
        (triton.cdiv(tokens, tile["BLOCK_T"]), layout.heads // tile["HEADS"]),
        dq.device,
        dq,
        dk,
        dv,
        cos,
        sin,
        qkv,
        rstd,
        query_norm,
        key_norm,
        out,
        *dq.stride()[:2],
        *dk.stride()[:2],
        *dv.stride()[:2],
        cos.stride(0),
        sin.stride(0),
        0 if qkv is None else qkv.stride(0),
        out.stride(0),
        tokens,
        QUERY=layout.query,
        KEY=layout.key,
        NORMS=query_norm is not None,
        UNIT_OFFSET=unit_offset,
        **tile,
    )
    return out


def _tile(layout: "HeadLayout") -> dict[str, int]:
    half = layout.size // 2
    block = max(16, next_power_of_two(half))  # products take no fewer than 16 columns
    # A program's heads are all queries, all keys or all values.
    heads = max(n for n in range(1, _MOST_HEADS + 1) if layout.query % n == 0 and layout.key % n == 0)
    return {"HALF": half, "BLOCK": block, "BLOCK_T": max(16, _HALF_TILE // block), "HEADS": heads, **_OPTIONS}


@triton.jit
def _gain(weight_ptr, columns, inside, UNIT_OFFSET: tl.constexpr):
    gain = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    if UNIT_OFFSET:
        gain += 1.0
    return gain[None, :]


@triton.jit
def _angles(cos_ptr, sin_ptr, cos_stride, sin_stride, row_start, rows, columns, inside):
    cos_at = cos_ptr + row_start * cos_stride + rows[:, None] * cos_stride + columns[None, :]
    sin_at = sin_ptr + row_start * sin_stride + rows[:, None] * sin_stride + columns[None, :]
    cos = tl.load(cos_at, mask=inside, other=0.0).to(tl.float32)
    return cos, tl.load(sin_at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _forward_section(
    qkv_ptr, small_ptr, b_ptr, norm_ptr, rotated_ptr, rstd_ptr,
    qkv_stride, small_stride, b_stride, rotated_stride,
    first, cos, sin, rows, rows_inside, columns, columns_inside, eps,
    HEADS: tl.constexpr,
    MEMBER: tl.constexpr,
    ROTATED_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    RANK: tl.constexpr,
    CHUNK: tl.constexpr,
    NORMS: tl.constexpr,
    UNIT_OFFSET: tl.constexpr,
):  # fmt: skip
    """Heads from ``first`` on, of queries (member 0), keys (1) or values (2); pointers are at the first row."""
    inside = rows_inside[:, None] & columns_inside[None, :]
    ROTATE: tl.constexpr = MEMBER < 2
    if NORMS and ROTATE:
        left_gain = _gain(norm_ptr, columns, columns_inside, UNIT_OFFSET)
        right_gain = _gain(norm_ptr + HALF, columns, columns_inside, UNIT_OFFSET)
    for step in range(HEADS):
        head = first + step
        at = qkv_ptr + rows[:, None] * qkv_stride + (head * 2 * HALF + columns)[None, :]
        left = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        right = tl.load(at + HALF, mask=inside, other=0.0).to(tl.float32)
        if RANK > 0:
            b_at = b_ptr + head * 2 * HALF * b_stride
            left = add_rank_product(
                left, small_ptr + MEMBER * RANK, small_stride, rows, rows_inside,
                b_at, 1, b_stride, columns, columns_inside, RANK, CHUNK,
            )  # fmt: skip
            right = add_rank_product(
                right, small_ptr + MEMBER * RANK, small_stride, rows, rows_inside,
                b_at + HALF * b_stride, 1, b_stride, columns, columns_inside, RANK, CHUNK,
            )  # fmt: skip
        if NORMS and ROTATE:
            if RANK > 0:  # the backward pass will see the rounded sums
                left_rounded, right_rounded = left.to(qkv_ptr.dtype.element_ty), right.to(qkv_ptr.dtype.element_ty)
                tl.store(at, left_rounded, mask=inside)
                tl.store(at + HALF, right_rounded, mask=inside)
                left, right = left_rounded.to(tl.float32), right_rounded.to(tl.float32)
            rstd = tl.rsqrt((tl.sum(left * left, 1) + tl.sum(right * right, 1)) / (2 * HALF) + eps)
            tl.store(rstd_ptr + rows * ROTATED_HEADS + head, rstd, mask=rows_inside)
            left = left * rstd[:, None] * left_gain
            right = right * rstd[:, None] * right_gain
            at = rotated_ptr + rows[:, None] * rotated_stride + (head * 2 * HALF + columns)[None, :]
        if ROTATE:
            left, right = left * cos - right * sin, right * cos + left * sin
        tl.store(at, left.to(qkv_ptr.dtype.element_ty), mask=inside)
        tl.store(at + HALF, right.to(qkv_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["tokens"])
def _forward_kernel(
    qkv_ptr,
    cos_ptr,
    sin_ptr,
    small_ptr,
    b_ptr,
    query_norm_ptr,
    key_norm_ptr,
    rotated_ptr,
    rstd_ptr,
    qkv_stride,
    cos_stride,
    sin_stride,
    small_stride,
    b_stride,
    rotated_stride,
    tokens,
    eps,
    QUERY: tl.constexpr,
    KEY: tl.constexpr,
    RANK: tl.constexpr,
    CHUNK: tl.constexpr,
    NORMS: tl.constexpr,
    UNIT_OFFSET: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    HEADS: tl.constexpr,
):
    row_start = tl.program_id(0).to(tl.int64) * BLOCK_T
    first = tl.program_id(1) * HEADS
    rows, columns = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK)
    rows_inside, columns_inside = row_start + rows < tokens, columns < HALF
    inside = rows_inside[:, None] & columns_inside[None, :]
    cos, sin = _angles(cos_ptr, sin_ptr, cos_stride, sin_stride, row_start, rows, columns, inside)
    qkv_ptr += row_start * qkv_stride
    if RANK > 0:
        small_ptr += row_start * small_stride
    if NORMS:
        rotated_ptr += row_start * rotated_stride
        rstd_ptr += row_start * (QUERY + KEY)
    if first < QUERY:
        _forward_section(
            qkv_ptr, small_ptr, b_ptr, query_norm_ptr, rotated_ptr, rstd_ptr,
            qkv_stride, small_stride, b_stride, rotated_stride,
            first, cos, sin, rows, rows_inside, columns, columns_inside, eps,
            HEADS, 0, QUERY + KEY, HALF, RANK, CHUNK, NORMS, UNIT_OFFSET,
        )  # fmt: skip
    elif first < QUERY + KEY:
        _forward_section(
            qkv_ptr, small_ptr, b_ptr, key_norm_ptr, rotated_ptr, rstd_ptr,
            qkv_stride, small_stride, b_stride, rotated_stride,
            first, cos, sin, rows, rows_inside, columns, columns_inside, eps,
            HEADS, 1, QUERY + KEY, HALF, RANK, CHUNK, NORMS, UNIT_OFFSET,
        )  # fmt: skip
    else:
        _forward_section(
            qkv_ptr, small_ptr, b_ptr, key_norm_ptr, rotated_ptr, rstd_ptr,
            qkv_stride, small_stride, b_stride, rotated_stride,
            first, cos, sin, rows, rows_inside, columns, columns_inside, eps,
            HEADS, 2, QUERY + KEY, HALF, RANK, CHUNK, NORMS, UNIT_OFFSET,
        )  # fmt: skip


@triton.jit
def _backward_section(
    gradient_ptr, qkv_ptr, rstd_ptr, norm_ptr, out_ptr,
    row_stride, head_stride, qkv_stride, out_stride,
    first, offset, cos, sin, rows, rows_inside, columns, columns_inside,
    HEADS: tl.constexpr,
    ROTATE: tl.constexpr,
    ROTATED_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    NORMS: tl.constexpr,
    UNIT_OFFSET: tl.constexpr,
):  # fmt: skip
    """Heads from ``first`` on, of a section that begins at head ``offset``; pointers are at the first row."""
    inside = rows_inside[:, None] & columns_inside[None, :]
    if NORMS and ROTATE:
        left_gain = _gain(norm_ptr, columns, columns_inside, UNIT_OFFSET)
        right_gain = _gain(norm_ptr + HALF, columns, columns_inside, UNIT_OFFSET)
    for step in range(HEADS):
        head = first + step
        # Attention's head stride may be that of whole sequences.
        source = gradient_ptr + (head - offset).to(tl.int64) * head_stride
        source = source + (rows.to(tl.int64) * row_stride)[:, None] + columns[None, :]
        left = tl.load(source, mask=inside, other=0.0).to(tl.float32)
        right = tl.load(source + HALF, mask=inside, other=0.0).to(tl.float32)
        if ROTATE:
            left, right = left * cos + right * sin, right * cos - left * sin
        if NORMS and ROTATE:
            at = qkv_ptr + rows[:, None] * qkv_stride + (head * 2 * HALF + columns)[None, :]
            rstd = tl.load(rstd_ptr + rows * ROTATED_HEADS + head, mask=rows_inside, other=0.0)[:, None]
            left_normed = tl.load(at, mask=inside, other=0.0).to(tl.float32) * rstd
            right_normed = tl.load(at + HALF, mask=inside, other=0.0).to(tl.float32) * rstd
            left, right = left * left_gain, right * right_gain
            projection = (tl.sum(left * left_normed, 1) + tl.sum(right * right_normed, 1)) / (2 * HALF)
            left = (left - left_normed * projection[:, None]) * rstd
            right = (right - right_normed * projection[:, None]) * rstd
        target = out_ptr + rows[:, None] * out_stride + (head * 2 * HALF + columns)[None, :]
        tl.store(target, left.to(out_ptr.dtype.element_ty), mask=inside)
        tl.store(target + HALF, right.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["tokens"])
def _backward_kernel(
    dq_ptr,
    dk_ptr,
    dv_ptr,
    cos_ptr,
    sin_ptr,
    qkv_ptr,
    rstd_ptr,
    query_norm_ptr,
    key_norm_ptr,
    out_ptr,
    dq_row_stride,
    dq_head_stride,
    dk_row_stride,
    dk_head_stride,
    dv_row_stride,
    dv_head_stride,
    cos_stride,
    sin_stride,
    qkv_stride,
    out_stride,
    tokens,
    QUERY: tl.constexpr,
    KEY: tl.constexpr,
    NORMS: tl.constexpr,
    UNIT_OFFSET: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    HEADS: tl.constexpr,
):
    row_start = tl.program_id(0).to(tl.int64) * BLOCK_T
    first = tl.program_id(1) * HEADS
    rows, columns = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK)
    rows_inside, columns_inside = row_start + rows < tokens, columns < HALF
    inside = rows_inside[:, None] & columns_inside[None, :]
    cos, sin = _angles(cos_ptr, sin_ptr, cos_stride, sin_stride, row_start, rows, columns, inside)
    if NORMS:
        qkv_ptr += row_start * qkv_stride
        rstd_ptr += row_start * (QUERY + KEY)
    out_ptr += row_start * out_stride
    if first < QUERY:
        _backward_section(
            dq_ptr + row_start * dq_row_stride, qkv_ptr, rstd_ptr, query_norm_ptr, out_ptr,
            dq_row_stride, dq_head_stride, qkv_stride, out_stride,
            first, 0, cos, sin, rows, rows_inside, columns, columns_inside,
            HEADS, True, QUERY + KEY, HALF, NORMS, UNIT_OFFSET,
        )  # fmt: skip
    elif first < QUERY + KEY:
        _backward_section(
            dk_ptr + row_start * dk_row_stride, qkv_ptr, rstd_ptr, key_norm_ptr, out_ptr,
            dk_row_stride, dk_head_stride, qkv_stride, out_stride,
            first, QUERY, cos, sin, rows, rows_inside, columns, columns_inside,
            HEADS, True, QUERY + KEY, HALF, NORMS, UNIT_OFFSET,
        )  # fmt: skip
    else:
        _backward_section(
            dv_ptr + row_start * dv_row_stride, qkv_ptr, rstd_ptr, key_norm_ptr, out_ptr,
            dv_row_stride, dv_head_stride, qkv_stride, out_stride,
            first, QUERY + KEY, cos, sin, rows, rows_inside, columns, columns_inside,
            HEADS, False, QUERY + KEY, HALF, NORMS, UNIT_OFFSET,
        )  # fmt: skip
