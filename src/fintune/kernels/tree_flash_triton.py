# mypy: ignore-errors
"""Triton kernels of ``tree_flash`` in which a program holds a block of queries and walks the keys it sees.

Enters and leaves: what ``tree_flash`` takes and gives: outputs, and backward the gradient of the queries. The scheme is
FlashAttention-2's (arXiv 2307.08691) over lists of blocks. ``lse`` is in units of log 2.
"""

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from fintune.kernels.tree_tile_triton import (
    DYNAMIC,
    HIDDEN,
    bounded,
    head_strides,
    is_seen,
    launch_constants,
    load_keys,
    load_rows,
    row_strides,
    score_factors,
    store_rows,
    tile_options,
)
from fintune.kernels.triton_use import launch

if TYPE_CHECKING:
    from fintune.kernels.tree_flash import TreeWork


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    work: "TreeWork",
    scaling: float,
    softcap: float | None,
    want_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """(T, H, D) outputs, and (H, T) logarithms of the sums of exponentials where wanted."""
    _, heads, tokens, size = query.shape
    out = torch.empty(tokens, heads, size, dtype=query.dtype, device=query.device)
    lse = torch.empty(heads, tokens, dtype=torch.float32, device=query.device) if want_lse else None
    tile = work.tiling.forward
    lists = work.keys(tile)
    launch(
        _forward_kernel,
        (lists.blocks.shape[0], heads),
        query.device,
        query,
        key,
        value,
        out,
        lse,
        work.subtree_end,
        work.depth,
        *lists,
        *head_strides(query, key, value),
        lists.blocks.stride(0),
        tokens,
        work.window or 0,
        *score_factors(scaling, softcap),
        LSE=want_lse,
        **row_strides(Q=query, K=key, V=value),
        **launch_constants(query, key, work, softcap),
        **tile_options(tile),
    )
    return out, lse


def query_gradient(
    d_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    work: "TreeWork",
    scaling: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """The gradient of queries (T, H, D), and (H, T) what ``key_gradients`` takes as ``delta``."""
    tokens, size = query.shape[2], query.shape[3]
    dq = torch.empty(tokens, query.shape[1], size, dtype=query.dtype, device=query.device)
    delta = torch.empty_like(lse)
    tile = work.tiling.query_gradient
    lists = work.keys(tile)
    launch(
        _query_gradient_kernel,
        (lists.blocks.shape[0], query.shape[1]),
        query.device,
        query,
        key,
        value,
        out,
        d_out,
        lse,
        delta,
        dq,
        work.subtree_end,
        work.depth,
        *lists,
        *head_strides(query, key, value, out, d_out),
        lists.blocks.stride(0),
        tokens,
        work.window or 0,
        *score_factors(scaling, softcap),
        float(scaling),
        **row_strides(Q=query, K=key, V=value, OUT=out, D_OUT=d_out),
        **launch_constants(query, key, work, softcap),
        **tile_options(tile),
    )
    return dq, delta


@triton.jit
def _attend(
    acc, total, most, q, q_at, q_depth,
    k_ptr, v_ptr, end_ptr, depth_ptr, list_ptr, first, behind,
    rows, columns, tokens, window, factor, bound,
    K_STRIDE: tl.constexpr,
    V_STRIDE: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    KEYS: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    FULL: tl.constexpr,
):  # fmt: skip
    """Takes up the key blocks at places ``first`` to ``behind`` of the list, seen in full or in part."""
    following = tl.load(list_ptr + first, mask=first < behind, other=0)
    for place in range(first, behind):
        start = following * KEYS
        # One ahead, so that no load of keys waits for it.
        following = tl.load(list_ptr + place + 1, mask=place + 1 < behind, other=0)
        k = load_rows(k_ptr, K_STRIDE, start, rows, columns, tokens, SIZE, BLOCK_D, FULL)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        unit = factor
        if SOFTCAP:
            scores = bound * bounded(scores, factor)
            unit = 1.0
        if not FULL:
            end, k_depth = load_keys(end_ptr, depth_ptr, start, rows, tokens, WINDOW)
            seen = is_seen(
                q_at[:, None], (start + rows)[None, :], end[None, :], q_depth[:, None], k_depth[None, :], window, WINDOW
            )
            scores = tl.where(seen, scores, HIDDEN)
        newly = tl.maximum(most, tl.max(scores, 1) * unit)
        # Of a row that has seen nothing yet, all are 1; the first key it sees multiplies them by 0.
        p = tl.exp2(scores * unit - newly[:, None])
        fading = tl.exp2(most - newly)
        total = total * fading + tl.sum(p, 1)
        acc = acc * fading[:, None]
        v = load_rows(v_ptr, V_STRIDE, start, rows, columns, tokens, SIZE, BLOCK_D, FULL)
        acc = tl.dot(p.to(v.dtype), v, acc, input_precision="ieee")
        most = newly
    return acc, total, most


@triton.jit(do_not_specialize=DYNAMIC)
def _forward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    lse_ptr,
    end_ptr,
    depth_ptr,
    list_ptr,
    full_ptr,
    seen_ptr,
    q_head_stride,
    k_head_stride,
    v_head_stride,
    list_stride,
    tokens,
    window,
    factor,
    bound,
    Q_STRIDE: tl.constexpr,
    K_STRIDE: tl.constexpr,
    V_STRIDE: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    LSE: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    block = tl.num_programs(0) - 1 - tl.program_id(0)  # later queries of a sequence see more, and shall not come last
    head = tl.program_id(1).to(tl.int64)
    start = block * QUERIES
    rows, key_rows, columns = tl.arange(0, QUERIES), tl.arange(0, KEYS), tl.arange(0, BLOCK_D)
    at = start + rows
    q = load_rows(q_ptr + head * q_head_stride, Q_STRIDE, start, rows, columns, tokens, SIZE, BLOCK_D, False)
    depth = at
    if WINDOW:
        depth = tl.load(depth_ptr + at, mask=at < tokens, other=0)
    k_ptr += head // GROUP * k_head_stride
    v_ptr += head // GROUP * v_head_stride
    list_ptr += block.to(tl.int64) * list_stride
    full, seen = tl.load(full_ptr + block), tl.load(seen_ptr + block)
    acc = tl.zeros([QUERIES, BLOCK_D], tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    most = tl.full([QUERIES], HIDDEN, tl.float32)
    acc, total, most = _attend(
        acc, total, most, q, at, depth,
        k_ptr, v_ptr, end_ptr, depth_ptr, list_ptr, 0, full,
        key_rows, columns, tokens, window, factor, bound,
        K_STRIDE, V_STRIDE, SIZE, BLOCK_D, KEYS, WINDOW, SOFTCAP, True,
    )  # fmt: skip
    acc, total, most = _attend(
        acc, total, most, q, at, depth,
        k_ptr, v_ptr, end_ptr, depth_ptr, list_ptr, full, seen,
        key_rows, columns, tokens, window, factor, bound,
        K_STRIDE, V_STRIDE, SIZE, BLOCK_D, KEYS, WINDOW, SOFTCAP, False,
    )  # fmt: skip
    out_ptr += head * SIZE
    store_rows(out_ptr, GROUP * GROUPS * SIZE, start, rows, columns, tokens, acc / total[:, None], SIZE)
    if LSE:
        tl.store(lse_ptr + head * tokens + at, most + tl.log2(total), mask=at < tokens)


@triton.jit
def _add_query_gradient(
    acc, q, d_out, lse, delta, q_at, q_depth,
    k_ptr, v_ptr, end_ptr, depth_ptr, list_ptr, first, behind,
    rows, columns, tokens, window, factor, bound,
    K_STRIDE: tl.constexpr,
    V_STRIDE: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    KEYS: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    FULL: tl.constexpr,
):  # fmt: skip
    following = tl.load(list_ptr + first, mask=first < behind, other=0)
    for place in range(first, behind):
        start = following * KEYS
        # One ahead, so that no load of keys waits for it.
        following = tl.load(list_ptr + place + 1, mask=place + 1 < behind, other=0)
        k = load_rows(k_ptr, K_STRIDE, start, rows, columns, tokens, SIZE, BLOCK_D, FULL)
        v = load_rows(v_ptr, V_STRIDE, start, rows, columns, tokens, SIZE, BLOCK_D, FULL)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        if SOFTCAP:
            tanh = bounded(scores, factor)
            p = tl.exp2(tanh * bound - lse[:, None])
        else:
            p = tl.exp2(scores * factor - lse[:, None])
        if not FULL:
            end, k_depth = load_keys(end_ptr, depth_ptr, start, rows, tokens, WINDOW)
            seen = is_seen(
                q_at[:, None], (start + rows)[None, :], end[None, :], q_depth[:, None], k_depth[None, :], window, WINDOW
            )
            p = tl.where(seen, p, 0.0)
        dp = tl.dot(d_out, tl.trans(v), input_precision="ieee")
        ds = p * (dp - delta[:, None])
        if SOFTCAP:
            ds = ds * (1.0 - tanh * tanh)
        acc = tl.dot(ds.to(k.dtype), k, acc, input_precision="ieee")
    return acc


@triton.jit(do_not_specialize=DYNAMIC)
def _query_gradient_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    d_out_ptr,
    lse_ptr,
    delta_ptr,
    dq_ptr,
    end_ptr,
    depth_ptr,
    list_ptr,
    full_ptr,
    seen_ptr,
    q_head_stride,
    k_head_stride,
    v_head_stride,
    out_head_stride,
    d_out_head_stride,
    list_stride,
    tokens,
    window,
    factor,
    bound,
    scaling,
    Q_STRIDE: tl.constexpr,
    K_STRIDE: tl.constexpr,
    V_STRIDE: tl.constexpr,
    OUT_STRIDE: tl.constexpr,
    D_OUT_STRIDE: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    """Also writes delta, the sum of each row of out times d_out, which the gradient of keys wants too."""
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    start = block * QUERIES
    rows, key_rows, columns = tl.arange(0, QUERIES), tl.arange(0, KEYS), tl.arange(0, BLOCK_D)
    at = start + rows
    d_out_ptr += head * d_out_head_stride
    d_out = load_rows(d_out_ptr, D_OUT_STRIDE, start, rows, columns, tokens, SIZE, BLOCK_D, False)
    out = load_rows(out_ptr + head * out_head_stride, OUT_STRIDE, start, rows, columns, tokens, SIZE, BLOCK_D, False)
    delta = tl.sum(out.to(tl.float32) * d_out.to(tl.float32), 1)
    tl.store(delta_ptr + head * tokens + at, delta, mask=at < tokens)
    q = load_rows(q_ptr + head * q_head_stride, Q_STRIDE, start, rows, columns, tokens, SIZE, BLOCK_D, False)
    lse = tl.load(lse_ptr + head * tokens + at, mask=at < tokens, other=0.0)
    depth = at
    if WINDOW:
        depth = tl.load(depth_ptr + at, mask=at < tokens, other=0)
    k_ptr += head // GROUP * k_head_stride
    v_ptr += head // GROUP * v_head_stride
    list_ptr += block.to(tl.int64) * list_stride
    full, seen = tl.load(full_ptr + block), tl.load(seen_ptr + block)
    acc = tl.zeros([QUERIES, BLOCK_D], tl.float32)
    acc = _add_query_gradient(
        acc, q, d_out, lse, delta, at, depth,
        k_ptr, v_ptr, end_ptr, depth_ptr, list_ptr, 0, full,
        key_rows, columns, tokens, window, factor, bound,
        K_STRIDE, V_STRIDE, SIZE, BLOCK_D, KEYS, WINDOW, SOFTCAP, True,
    )  # fmt: skip
    acc = _add_query_gradient(
        acc, q, d_out, lse, delta, at, depth,
        k_ptr, v_ptr, end_ptr, depth_ptr, list_ptr, full, seen,
        key_rows, columns, tokens, window, factor, bound,
        K_STRIDE, V_STRIDE, SIZE, BLOCK_D, KEYS, WINDOW, SOFTCAP, False,
    )  # fmt: skip
    store_rows(dq_ptr + head * SIZE, GROUP * GROUPS * SIZE, start, rows, columns, tokens, acc * scaling, SIZE)
