# mypy: ignore-errors
"""Triton kernels of ``rms_norm``: a program holds one row, or several narrow ones, so memory is read once.

Enters and leaves: what the functions of ``rms_norm`` take and give.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fintune.kernels.quantize_triton import round_rows
from fintune.kernels.row_tile import row_tile
from fintune.kernels.triton_use import launch


def rms_norm(h: Tensor, weight: Tensor, eps: float, unit_offset: bool) -> tuple[Tensor, Tensor]:
    """(T, H) and (T,)."""
    y, rstd, _, _ = _forward(h, weight, eps, unit_offset, quantize=False)
    return y, rstd


def rms_norm_quantized(
    h: Tensor, weight: Tensor, eps: float, unit_offset: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(T, H), (T,), (T, H) in fp8 and its (T, 1) scales."""
    return _forward(h, weight, eps, unit_offset, quantize=True)


def rms_norm_backward(
    dy: Tensor,
    h: Tensor,
    rstd: Tensor,
    weight: Tensor,
    unit_offset: bool,
    residual: Tensor | None,
    out: Tensor | None,
) -> Tensor:
    """(T, H)."""
    tokens, columns = h.shape
    out = torch.empty(h.shape, dtype=h.dtype, device=h.device) if out is None else out
    tile = row_tile(columns)
    launch(
        _backward_kernel,
        (triton.cdiv(tokens, tile.rows),),
        h.device,
        dy,
        h,
        rstd,
        weight,
        residual,
        out,
        dy.stride(0),
        h.stride(0),
        0 if residual is None else residual.stride(0),
        out.stride(0),
        tokens,
        COLUMNS=columns,
        BLOCK=tile.block,
        ROWS=tile.rows,
        UNIT_OFFSET=unit_offset,
        RESIDUAL=residual is not None,
        num_warps=tile.warps,
    )
    return out


def _forward(h: Tensor, weight: Tensor, eps: float, unit_offset: bool, quantize: bool) -> tuple[Tensor, ...]:
    tokens, columns = h.shape
    y = torch.empty(h.shape, dtype=h.dtype, device=h.device)
    rstd = torch.empty(tokens, dtype=torch.float32, device=h.device)
    data = torch.empty(h.shape, dtype=torch.float8_e4m3fn, device=h.device) if quantize else None
    scale = torch.empty(tokens, 1, dtype=torch.float32, device=h.device) if quantize else None
    tile = row_tile(columns)
    launch(
        _forward_kernel,
        (triton.cdiv(tokens, tile.rows),),
        h.device,
        h,
        weight,
        y,
        rstd,
        data,
        scale,
        h.stride(0),
        tokens,
        float(eps),
        COLUMNS=columns,
        BLOCK=tile.block,
        ROWS=tile.rows,
        UNIT_OFFSET=unit_offset,
        QUANTIZE=quantize,
        num_warps=tile.warps,
    )
    return y, rstd, data, scale


@triton.jit
def _gain(weight_ptr, columns, inside, UNIT_OFFSET: tl.constexpr):
    gain = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    if UNIT_OFFSET:
        gain += 1.0
    return gain


@triton.jit(do_not_specialize=["tokens"])
def _forward_kernel(
    h_ptr,
    weight_ptr,
    y_ptr,
    rstd_ptr,
    data_ptr,
    scale_ptr,
    h_stride,
    tokens,
    eps,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    UNIT_OFFSET: tl.constexpr,
    QUANTIZE: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    rows_inside, columns_inside = rows < tokens, columns < COLUMNS
    inside = rows_inside[:, None] & columns_inside[None, :]
    row_starts = rows.to(tl.int64)[:, None]
    h = tl.load(h_ptr + row_starts * h_stride + columns[None, :], mask=inside, other=0.0).to(tl.float32)
    gain = _gain(weight_ptr, columns, columns_inside, UNIT_OFFSET)
    rstd = tl.rsqrt(tl.sum(h * h, 1) / COLUMNS + eps)
    tl.store(rstd_ptr + rows, rstd, mask=rows_inside)
    y = (h * rstd[:, None] * gain[None, :]).to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + row_starts * COLUMNS + columns[None, :], y, mask=inside)
    if QUANTIZE:
        data, scale = round_rows(y.to(tl.float32))
        tl.store(data_ptr + row_starts * COLUMNS + columns[None, :], data, mask=inside)
        tl.store(scale_ptr + rows, scale, mask=rows_inside)


@triton.jit(do_not_specialize=["tokens"])
def _backward_kernel(
    dy_ptr,
    h_ptr,
    rstd_ptr,
    weight_ptr,
    residual_ptr,
    out_ptr,
    dy_stride,
    h_stride,
    residual_stride,
    out_stride,
    tokens,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    UNIT_OFFSET: tl.constexpr,
    RESIDUAL: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    rows_inside, columns_inside = rows < tokens, columns < COLUMNS
    inside = rows_inside[:, None] & columns_inside[None, :]
    row_starts = rows.to(tl.int64)[:, None]
    gradient = tl.load(dy_ptr + row_starts * dy_stride + columns[None, :], mask=inside, other=0.0).to(tl.float32)
    h = tl.load(h_ptr + row_starts * h_stride + columns[None, :], mask=inside, other=0.0).to(tl.float32)
    if RESIDUAL:  # asked for early: all loads wait together
        residual_at = residual_ptr + row_starts * residual_stride + columns[None, :]
        residual = tl.load(residual_at, mask=inside, other=0.0).to(tl.float32)
    rstd = tl.load(rstd_ptr + rows, mask=rows_inside, other=0.0)[:, None]
    gradient *= _gain(weight_ptr, columns, columns_inside, UNIT_OFFSET)[None, :]
    normed = h * rstd
    projection = tl.sum(gradient * normed, 1) / COLUMNS
    dh = (gradient - normed * projection[:, None]) * rstd
    if RESIDUAL:
        dh += residual
    tl.store(out_ptr + row_starts * out_stride + columns[None, :], dh.to(out_ptr.dtype.element_ty), mask=inside)
