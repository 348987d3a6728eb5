# mypy: ignore-errors
"""Triton kernels of ``hashed_dropout``: the same hash, in registers.

Enters and leaves: what ``drop`` and ``add_dropped_`` take and give.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fintune.kernels.triton_use import launch

_ROWS, _STEPS = 8, 8


def drop(x: Tensor, seed: Tensor, threshold: int, factor: float) -> Tensor:
    """``x`` with elements whose hash is below ``threshold`` zeroed and the rest times ``factor``."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _run(x, out, seed, threshold, factor, add=False)
    return out


def add_dropped_(target: Tensor, x: Tensor, seed: Tensor, threshold: int, factor: float) -> Tensor:
    """The same added to ``target``."""
    _run(x, target, seed, threshold, factor, add=True)
    return target


def _run(x: Tensor, out: Tensor, seed: Tensor, threshold: int, factor: float, add: bool) -> None:
    x = x if x.stride(1) == 1 else x.contiguous()
    tokens, columns = x.shape
    block = 512 if columns % 512 == 0 else 256
    launch(
        _kernel,
        (triton.cdiv(columns, block), triton.cdiv(tokens, _ROWS * _STEPS)),
        x.device,
        x,
        out,
        seed,
        x.stride(0),
        out.stride(0),
        tokens,
        threshold,
        factor,
        COLUMNS=columns,
        BLOCK=block,
        ROWS=_ROWS,
        STEPS=_STEPS,
        ADD=add,
        num_warps=4,
    )


@triton.jit
def _mix(bits):
    bits = (bits ^ (bits >> 16)) * 0x85EBCA6B
    bits = (bits ^ (bits >> 13)) * 0xC2B2AE35
    return bits ^ (bits >> 16)


@triton.jit(do_not_specialize=["tokens", "threshold"])
def _kernel(
    x_ptr,
    out_ptr,
    seed_ptr,
    x_stride,
    out_stride,
    tokens,
    threshold,
    factor,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    STEPS: tl.constexpr,
    ADD: tl.constexpr,
):
    seed = tl.load(seed_ptr)
    low, high = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    column_key = _mix(_mix(columns.to(tl.uint32) ^ 0x6C8E9CF5 ^ high) ^ low)[None, :]
    # Hashing columns costs as much as hashing elements, so it serves several steps.
    for step in range(STEPS):
        rows = (tl.program_id(1) * STEPS + step) * ROWS + tl.arange(0, ROWS)
        row_key = _mix(_mix(rows.to(tl.uint32) ^ 0x2545F491 ^ low) ^ high)[:, None]
        inside = (rows < tokens)[:, None] & (columns < COLUMNS)[None, :]
        row_starts = rows.to(tl.int64)[:, None]
        x = tl.load(x_ptr + row_starts * x_stride + columns[None, :], mask=inside, other=0.0).to(tl.float32)
        kept = _mix(row_key ^ column_key).to(tl.int32, bitcast=True) >= threshold
        value = tl.where(kept, x * factor, 0.0)
        at = out_ptr + row_starts * out_stride + columns[None, :]
        if ADD:
            value += tl.load(at, mask=inside, other=0.0).to(tl.float32)
        tl.store(at, value.to(out_ptr.dtype.element_ty), mask=inside)
