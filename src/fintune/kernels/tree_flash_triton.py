# mypy: ignore-errors
"""Triton kernels of ``tree_flash``: a program holds a block of queries, or of keys, and walks the blocks it sees.

Enters and leaves: what ``tree_flash`` takes and gives. Scores are in units of log 2, so that exponentials are powers
of two; so is ``lse``. The scheme is FlashAttention-2's (arXiv 2307.08691) over lists of blocks.
"""

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from fintune.kernels.row_tile import next_power_of_two
from fintune.kernels.triton_use import launch

if TYPE_CHECKING:
    from fintune.kernels.tree_flash import TreeWork

_LOG2_E = 1.4426950408889634
_HIDDEN = tl.constexpr(-1e30)  # not infinite: a row whose first block hides all its keys must not become NaN
_ROWS_TO_SUM = 16
_DYNAMIC = ["tokens", "list_stride", "window"]


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
        *_head_strides(query, key, value),
        lists.blocks.stride(0),
        tokens,
        work.window or 0,
        *_factors(scaling, softcap),
        LSE=want_lse,
        **_row_strides(Q=query, K=key, V=value),
        **_constants(query, key, work, softcap),
        **_blocks(tile),
    )
    return out, lse


def backward(
    d_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    work: "TreeWork",
    scaling: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of queries (T, H, D), keys and values (T, G, D); ``d_out`` and ``out`` are (1, H, T, D)."""
    tokens, groups, size = query.shape[2], key.shape[1], query.shape[3]
    dq = torch.empty(tokens, query.shape[1], size, dtype=query.dtype, device=query.device)
    dk, dv = (torch.empty(tokens, groups, size, dtype=query.dtype, device=query.device) for _ in range(2))
    delta = torch.empty_like(lse)
    constants, factors = _constants(query, key, work, softcap), _factors(scaling, softcap)
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
        *_head_strides(query, key, value, out, d_out),
        lists.blocks.stride(0),
        tokens,
        work.window or 0,
        *factors,
        float(scaling),
        **_row_strides(Q=query, K=key, V=value, OUT=out, D_OUT=d_out),
        **constants,
        **_blocks(tile),
    )
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
        *_head_strides(query, key, value, d_out),
        lists.blocks.stride(0),
        tokens,
        work.window or 0,
        *factors,
        float(scaling),
        **_row_strides(Q=query, K=key, V=value, D_OUT=d_out),
        **constants,
        **_blocks(tile),
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
    return dq, dk, dv


def _head_strides(*states: Tensor) -> list[int]:
    return [part.stride(1) for part in states]


def _row_strides(**states: Tensor) -> dict[str, int]:
    """Constants, because many rows' addresses are then one register and as many known distances."""
    return {f"{name}_STRIDE": part.stride(2) for name, part in states.items()}


def _factors(scaling: float, softcap: float | None) -> tuple[float, float]:
    """What products are multiplied by, and what the hyperbolic tangent of that is multiplied by where there is one."""
    if softcap is None:
        return float(scaling) * _LOG2_E, 1.0
    return 2 * _LOG2_E * float(scaling) / softcap, float(softcap) * _LOG2_E


def _constants(query: Tensor, key: Tensor, work: "TreeWork", softcap: float | None) -> dict[str, int | bool]:
    size = query.shape[3]
    return {
        "SIZE": size,
        "BLOCK_D": max(16, next_power_of_two(size)),
        "GROUP": query.shape[1] // key.shape[1],
        "GROUPS": key.shape[1],
        "WINDOW": work.window is not None,
        "SOFTCAP": softcap is not None,
    }


def _blocks(tile) -> dict[str, int]:
    return {"QUERIES": tile.queries, "KEYS": tile.keys, "num_warps": tile.warps, "num_stages": tile.stages}


@triton.jit
def _load_rows(
    pointer, stride, start, rows, columns, tokens, SIZE: tl.constexpr, BLOCK_D: tl.constexpr, WHOLE: tl.constexpr
):
    """(rows, columns) of one head from token ``start`` on; zeros behind the last token, unless known to be WHOLE."""
    at = pointer + start.to(tl.int64) * stride + rows[:, None] * stride + columns[None, :]
    if WHOLE and SIZE == BLOCK_D:
        tile = tl.load(at)
    elif WHOLE:
        tile = tl.load(at, mask=(columns < SIZE)[None, :], other=0.0)
    elif SIZE == BLOCK_D:
        tile = tl.load(at, mask=(start + rows < tokens)[:, None], other=0.0)
    else:
        tile = tl.load(at, mask=(start + rows < tokens)[:, None] & (columns < SIZE)[None, :], other=0.0)
    return tile


@triton.jit
def _store_rows(pointer, stride, start, rows, columns, tokens, tile, SIZE: tl.constexpr):
    at = pointer + start.to(tl.int64) * stride + rows[:, None] * stride + columns[None, :]
    inside = (start + rows < tokens)[:, None] & (columns < SIZE)[None, :]
    tl.store(at, tile.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def _tanh(products, factor):
    """The hyperbolic tangent, of products times a factor that holds 2 log2(e)."""
    return 1.0 - 2.0 / (tl.exp2(products * factor) + 1.0)


@triton.jit
def _sees(q, k, end, q_depth, k_depth, window, WINDOW: tl.constexpr):
    """Which queries see which keys; queries and keys, and what is known of each, along their own dimension."""
    seen = (k <= q) & (q < end)
    if WINDOW:
        seen = seen & (q_depth - k_depth < window)
    return seen


@triton.jit
def _load_keys(end_ptr, depth_ptr, start, rows, tokens, WINDOW: tl.constexpr):
    """Ends of the subtrees and depths; behind the last token an end that hides the key."""
    inside = start + rows < tokens
    end = tl.load(end_ptr + start + rows, mask=inside, other=0)
    depth = end
    if WINDOW:
        depth = tl.load(depth_ptr + start + rows, mask=inside, other=0)
    return end, depth


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
        k = _load_rows(k_ptr, K_STRIDE, start, rows, columns, tokens, SIZE, BLOCK_D, FULL)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        unit = factor
        if SOFTCAP:
            scores = bound * _tanh(scores, factor)
            unit = 1.0
        if not FULL:
            end, k_depth = _load_keys(end_ptr, depth_ptr, start, rows, tokens, WINDOW)
            seen = _sees(
                q_at[:, None], (start + rows)[None, :], end[None, :], q_depth[:, None], k_depth[None, :], window, WINDOW
            )
            scores = tl.where(seen, scores, _HIDDEN)
        newly = tl.maximum(most, tl.max(scores, 1) * unit)
        # Of a row that has seen nothing yet, all are 1; the first key it sees multiplies them by 0.
        p = tl.exp2(scores * unit - newly[:, None])
        fading = tl.exp2(most - newly)
        total = total * fading + tl.sum(p, 1)
        acc = acc * fading[:, None]
        v = _load_rows(v_ptr, V_STRIDE, start, rows, columns, tokens, SIZE, BLOCK_D, FULL)
        acc = tl.dot(p.to(v.dtype), v, acc, input_precision="ieee")
        most = newly
    return acc, total, most


@triton.jit(do_not_specialize=_DYNAMIC)
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
    q = _load_rows(q_ptr + head * q_head_stride, Q_STRIDE, start, rows, columns, tokens, SIZE, BLOCK_D, False)
    depth = at
    if WINDOW:
        depth = tl.load(depth_ptr + at, mask=at < tokens, other=0)
    k_ptr += head // GROUP * k_head_stride
    v_ptr += head // GROUP * v_head_stride
    list_ptr += block.to(tl.int64) * list_stride
    full, seen = tl.load(full_ptr + block), tl.load(seen_ptr + block)
    acc = tl.zeros([QUERIES, BLOCK_D], tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    most = tl.full([QUERIES], _HIDDEN, tl.float32)
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
    _store_rows(out_ptr, GROUP * GROUPS * SIZE, start, rows, columns, tokens, acc / total[:, None], SIZE)
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
        k = _load_rows(k_ptr, K_STRIDE, start, rows, columns, tokens, SIZE, BLOCK_D, FULL)
        v = _load_rows(v_ptr, V_STRIDE, start, rows, columns, tokens, SIZE, BLOCK_D, FULL)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        if SOFTCAP:
            tanh = _tanh(scores, factor)
            p = tl.exp2(tanh * bound - lse[:, None])
        else:
            p = tl.exp2(scores * factor - lse[:, None])
        if not FULL:
            end, k_depth = _load_keys(end_ptr, depth_ptr, start, rows, tokens, WINDOW)
            seen = _sees(
                q_at[:, None], (start + rows)[None, :], end[None, :], q_depth[:, None], k_depth[None, :], window, WINDOW
            )
            p = tl.where(seen, p, 0.0)
        dp = tl.dot(d_out, tl.trans(v), input_precision="ieee")
        ds = p * (dp - delta[:, None])
        if SOFTCAP:
            ds = ds * (1.0 - tanh * tanh)
        acc = tl.dot(ds.to(k.dtype), k, acc, input_precision="ieee")
    return acc


@triton.jit(do_not_specialize=_DYNAMIC)
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
    d_out = _load_rows(d_out_ptr, D_OUT_STRIDE, start, rows, columns, tokens, SIZE, BLOCK_D, False)
    out = _load_rows(out_ptr + head * out_head_stride, OUT_STRIDE, start, rows, columns, tokens, SIZE, BLOCK_D, False)
    delta = tl.sum(out.to(tl.float32) * d_out.to(tl.float32), 1)
    tl.store(delta_ptr + head * tokens + at, delta, mask=at < tokens)
    q = _load_rows(q_ptr + head * q_head_stride, Q_STRIDE, start, rows, columns, tokens, SIZE, BLOCK_D, False)
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
    _store_rows(dq_ptr + head * SIZE, GROUP * GROUPS * SIZE, start, rows, columns, tokens, acc * scaling, SIZE)


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
        q = _load_rows(q_ptr + head * q_head_stride, Q_STRIDE, start, rows, columns, tokens, SIZE, BLOCK_D, FULL)
        d_out = _load_rows(
            d_out_ptr + head * d_out_head_stride, D_OUT_STRIDE, start, rows, columns, tokens, SIZE, BLOCK_D, FULL
        )
        if FULL:
            lse, delta = tl.load(lse_ptr + head * tokens + at), tl.load(delta_ptr + head * tokens + at)
        else:
            lse = tl.load(lse_ptr + head * tokens + at, mask=at < tokens, other=0.0)
            delta = tl.load(delta_ptr + head * tokens + at, mask=at < tokens, other=0.0)
        scores = tl.dot(k, tl.trans(q), input_precision="ieee")
        if SOFTCAP:
            tanh = _tanh(scores, factor)
            p = tl.exp2(tanh * bound - lse[None, :])
        else:
            p = tl.exp2(scores * factor - lse[None, :])
        if not FULL:
            q_depth = at
            if WINDOW:
                q_depth = tl.load(depth_ptr + at, mask=at < tokens, other=0)
            seen = _sees(at[None, :], k_at[:, None], end[:, None], q_depth[None, :], k_depth[:, None], window, WINDOW)
            p = tl.where(seen, p, 0.0)
        dv = tl.dot(p.to(d_out.dtype), d_out, dv, input_precision="ieee")
        dp = tl.dot(v, tl.trans(d_out), input_precision="ieee")
        ds = p * (dp - delta[None, :])
        if SOFTCAP:
            ds = ds * (1.0 - tanh * tanh)
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision="ieee")
    return dk, dv


@triton.jit(do_not_specialize=_DYNAMIC)
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
    k = _load_rows(k_ptr + group * k_head_stride, K_STRIDE, start, rows, columns, tokens, SIZE, BLOCK_D, False)
    v = _load_rows(v_ptr + group * v_head_stride, V_STRIDE, start, rows, columns, tokens, SIZE, BLOCK_D, False)
    end, depth = _load_keys(end_ptr, depth_ptr, start, rows, tokens, WINDOW)
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
        _store_rows(dk_ptr + group * SIZE, GROUPS * SIZE, start, rows, columns, tokens, dk, SIZE)
        _store_rows(dv_ptr + group * SIZE, GROUPS * SIZE, start, rows, columns, tokens, dv, SIZE)
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
        _store_rows(dk_ptr + group * SIZE, GROUPS * SIZE, block * KEYS, rows, columns, tokens, acc, SIZE)
    else:
        _store_rows(dv_ptr + group * SIZE, GROUPS * SIZE, block * KEYS, rows, columns, tokens, acc, SIZE)
