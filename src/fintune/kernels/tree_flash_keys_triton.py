# mypy: ignore-errors
"""Triton kernels of ``tree_flash`` in which a program holds a block of keys and walks the queries that see it.

Enters and leaves: what ``tree_flash`` takes and gives backward: the gradients of keys and values. A column of keys that
many queries see is dealt out to several programs, whose sums are added in a fixed order.
"""

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from fintune.kernels.tree_tile_triton import (
    DYNAMIC,
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

_ROWS_TO_SUM = 16


def key_gradients(
    d_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lse: Tensor,
    delta: Tensor,
    work: "TreeWork",
    scaling: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """The gradients of keys and values (T, G, D); ``lse`` and ``delta`` as the query blocks have left them."""
    tokens, groups, size = query.shape[2], key.shape[1], query.shape[3]
    dk, dv = (torch.empty(tokens, groups, size, dtype=query.dtype, device=query.device) for _ in range(2))
    constants = launch_constants(query, key, work, softcap)
    tile = work.tiling.key_gradient
    lists, units = work.queries(tile), work.units(query.shape[1], groups, size)
    block_d = constants["BLOCK_D"]
    sums = torch.empty(units.n_slots, groups, 2, tile.keys, block_d, dtype=torch.float32, device=query.device)
    launch(
        _key_gradient_kernel,
        (groups, units.table.shape[0]),
        query.device,
        query,
        key,
        value,
        d_out,
        lse,
        delta,
        dk,
        dv,
        sums,
        work.subtree_end,
        work.depth,
        lists.blocks,
        lists.full,
        units.table,
        *head_strides(query, key, value, d_out),
        lists.blocks.stride(0),
        tokens,
        work.window or 0,
        *score_factors(scaling, softcap),
        float(scaling),
        **row_strides(Q=query, K=key, V=value, D_OUT=d_out),
        **constants,
        **tile_options(tile),
    )
    rows = min(_ROWS_TO_SUM, tile.keys)
    launch(
        _sum_kernel,
        (lists.blocks.shape[0], groups, 2 * tile.keys // rows),
        query.device,
        sums,
        units.slots,
        dk,
        dv,
        tokens,
        GROUPS=groups,
        SIZE=size,
        BLOCK_D=block_d,
        KEYS=tile.keys,
        ROWS=rows,
        num_warps=4,
    )
    return dk, dv


@triton.jit
def _add_key_gradient(
    dk, dv, k, v, k_at, end, k_depth,
    q_ptr, d_out_ptr, q_head_stride, d_out_head_stride,
    lse_ptr, delta_ptr, depth_ptr, list_ptr, first_head, first, behind,
    rows, columns, tokens, window, factor, bound,
    Q_STRIDE: tl.constexpr,
    D_OUT_STRIDE: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
    QUERIES: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    FULL: tl.constexpr,
):  # fmt: skip
    """Takes up the query blocks at places ``first`` to ``behind`` of the list, each for all heads of the group."""
    for item in range(first * GROUP, behind * GROUP):
        start = tl.load(list_ptr + item // GROUP) * QUERIES
        head = first_head + item % GROUP
        at = start + rows
        q = load_rows(q_ptr + head * q_head_stride, Q_STRIDE, start, rows, columns, tokens, SIZE, BLOCK_D, FULL)
        d_out = load_rows(
            d_out_ptr + head * d_out_head_stride, D_OUT_STRIDE, start, rows, columns, tokens, SIZE, BLOCK_D, FULL
        )
        if FULL:
            lse, delta = tl.load(lse_ptr + head * tokens + at), tl.load(delta_ptr + head * tokens + at)
        else:
            lse = tl.load(lse_ptr + head * tokens + at, mask=at < tokens, other=0.0)
            delta = tl.load(delta_ptr + head * tokens + at, mask=at < tokens, other=0.0)
        scores = tl.dot(k, tl.trans(q), input_precision="ieee")
        if SOFTCAP:
            tanh = bounded(scores, factor)
            p = tl.exp2(tanh * bound - lse[None, :])
        else:
            p = tl.exp2(scores * factor - lse[None, :])
        if not FULL:
            q_depth = at
            if WINDOW:
                q_depth = tl.load(depth_ptr + at, mask=at < tokens, other=0)
            seen = is_seen(at[None, :], k_at[:, None], end[:, None], q_depth[None, :], k_depth[:, None], window, WINDOW)
            p = tl.where(seen, p, 0.0)
        dv = tl.dot(p.to(d_out.dtype), d_out, dv, input_precision="ieee")
        dp = tl.dot(v, tl.trans(d_out), input_precision="ieee")
        ds = p * (dp - delta[None, :])
        if SOFTCAP:
            ds = ds * (1.0 - tanh * tanh)
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision="ieee")
    return dk, dv


@triton.jit(do_not_specialize=DYNAMIC)
def _key_gradient_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    d_out_ptr,
    lse_ptr,
    delta_ptr,
    dk_ptr,
    dv_ptr,
    sums_ptr,
    end_ptr,
    depth_ptr,
    list_ptr,
    full_ptr,
    table_ptr,
    q_head_stride,
    k_head_stride,
    v_head_stride,
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
    # Groups turn fastest, so that the longest units of all of them come first.
    table_ptr += tl.program_id(1) * 4
    block, first, count, slot = (
        tl.load(table_ptr),
        tl.load(table_ptr + 1),
        tl.load(table_ptr + 2),
        tl.load(table_ptr + 3),
    )
    if count == 0:
        return
    group = tl.program_id(0).to(tl.int64)
    start = block * KEYS
    rows, query_rows, columns = tl.arange(0, KEYS), tl.arange(0, QUERIES), tl.arange(0, BLOCK_D)
    k = load_rows(k_ptr + group * k_head_stride, K_STRIDE, start, rows, columns, tokens, SIZE, BLOCK_D, False)
    v = load_rows(v_ptr + group * v_head_stride, V_STRIDE, start, rows, columns, tokens, SIZE, BLOCK_D, False)
    end, depth = load_keys(end_ptr, depth_ptr, start, rows, tokens, WINDOW)
    list_ptr += block.to(tl.int64) * list_stride
    behind = first + count
    turn = tl.minimum(tl.maximum(tl.load(full_ptr + block), first), behind)  # from full to partial blocks
    dk, dv = tl.zeros([KEYS, BLOCK_D], tl.float32), tl.zeros([KEYS, BLOCK_D], tl.float32)
    dk, dv = _add_key_gradient(
        dk, dv, k, v, start + rows, end, depth,
        q_ptr, d_out_ptr, q_head_stride, d_out_head_stride,
        lse_ptr, delta_ptr, depth_ptr, list_ptr, group * GROUP, first, turn,
        query_rows, columns, tokens, window, factor, bound,
        Q_STRIDE, D_OUT_STRIDE, SIZE, BLOCK_D, GROUP, QUERIES, WINDOW, SOFTCAP, True,
    )  # fmt: skip
    dk, dv = _add_key_gradient(
        dk, dv, k, v, start + rows, end, depth,
        q_ptr, d_out_ptr, q_head_stride, d_out_head_stride,
        lse_ptr, delta_ptr, depth_ptr, list_ptr, group * GROUP, turn, behind,
        query_rows, columns, tokens, window, factor, bound,
        Q_STRIDE, D_OUT_STRIDE, SIZE, BLOCK_D, GROUP, QUERIES, WINDOW, SOFTCAP, False,
    )  # fmt: skip
    dk = dk * scaling
    if slot < 0:
        store_rows(dk_ptr + group * SIZE, GROUPS * SIZE, start, rows, columns, tokens, dk, SIZE)
        store_rows(dv_ptr + group * SIZE, GROUPS * SIZE, start, rows, columns, tokens, dv, SIZE)
    else:
        sums_ptr += (slot * GROUPS + group) * (2 * KEYS * BLOCK_D)
        at = sums_ptr + rows[:, None] * BLOCK_D + columns[None, :]
        tl.store(at, dk)
        tl.store(at + KEYS * BLOCK_D, dv)


@triton.jit(do_not_specialize=["tokens"])
def _sum_kernel(
    sums_ptr,
    slots_ptr,
    dk_ptr,
    dv_ptr,
    tokens,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    KEYS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Sums, in their order, the slots of a key block that was cut; a program has some rows of dk or of dv."""
    block, group, piece = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first, count = tl.load(slots_ptr + 2 * block), tl.load(slots_ptr + 2 * block + 1)
    if count == 0:
        return
    rows, columns = piece % (KEYS // ROWS) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK_D)
    which = piece // (KEYS // ROWS)
    sums_ptr += ((first.to(tl.int64) * GROUPS + group) * 2 + which) * (KEYS * BLOCK_D)
    at = sums_ptr + rows[:, None] * BLOCK_D + columns[None, :]
    acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
    for _ in range(count):
        acc += tl.load(at)
        at += GROUPS * 2 * KEYS * BLOCK_D
    if which == 0:
        store_rows(dk_ptr + group * SIZE, GROUPS * SIZE, block * KEYS, rows, columns, tokens, acc, SIZE)
    else:
        store_rows(dv_ptr + group * SIZE, GROUPS * SIZE, block * KEYS, rows, columns, tokens, acc, SIZE)
