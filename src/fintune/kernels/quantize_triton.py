# mypy: ignore-errors
"""Triton kernels of ``quantize``: rows rounded to fp8 by programs that hold whole rows, and bytes transposed in words.

Enters and leaves: what the functions of ``quantize`` take and give.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fintune.kernels.row_tile import row_tile
from fintune.kernels.triton_use import launch

# Words of four bytes: 128 x 128 bytes are transposed at a time.
_TILE_WORDS = 32


def quantize_rows(x: Tensor, column_scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """(T, K) in fp8 and (T, 1) scales."""
    x = x if x.stride(1) == 1 else x.contiguous()
    tokens, columns = x.shape
    data = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty(tokens, 1, dtype=torch.float32, device=x.device)
    if columns == 0:
        return data, scale.fill_(1e-12)
    tile = row_tile(columns)
    launch(
        _rows_kernel,
        (triton.cdiv(tokens, tile.rows),),
        x.device,
        x,
        column_scale,
        data,
        scale,
        x.stride(0),
        tokens,
        COLUMNS=columns,
        BLOCK=tile.block,
        ROWS=tile.rows,
        SCALED=column_scale is not None,
        num_warps=tile.warps,
    )
    return data, scale


def transpose_words(data: Tensor, out: Tensor) -> Tensor:
    """(I, O), both dimensions multiples of four."""
    rows, columns = data.shape
    row_words, column_words = rows // 4, columns // 4
    launch(
        _transpose_kernel,
        (triton.cdiv(column_words, _TILE_WORDS), triton.cdiv(row_words, _TILE_WORDS)),
        data.device,
        data.view(torch.int32),
        out.view(torch.int32),
        row_words,
        column_words,
        TILE=_TILE_WORDS,
        num_warps=4,
    )
    return out


@triton.jit
def round_rows(x):
    """An fp32 tile's rows in fp8, and their scales, rounded as ``quantize_rows_plain`` does."""
    scale = tl.maximum(tl.div_rn(tl.max(tl.abs(x), 1), 448.0), 1e-12)
    inverse = tl.broadcast_to(tl.div_rn(1.0, scale)[:, None], x.shape)
    # Multiplication by the reciprocal, corrected to what a division gives, in two instructions instead of eight: many
    # quotients of short numbers lie exactly between two fp8 values, where the last bit decides.
    quotient = x * inverse
    rest = tl.fma(-quotient, tl.broadcast_to(scale[:, None], x.shape), x)
    return tl.fma(rest, inverse, quotient).to(tl.float8e4nv), scale


@triton.jit(do_not_specialize=["tokens"])
def _rows_kernel(
    x_ptr,
    column_scale_ptr,
    data_ptr,
    scale_ptr,
    x_stride,
    tokens,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    SCALED: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    rows_inside, columns_inside = rows < tokens, columns < COLUMNS
    inside = rows_inside[:, None] & columns_inside[None, :]
    row_starts = rows.to(tl.int64)[:, None]
    x = tl.load(x_ptr + row_starts * x_stride + columns[None, :], mask=inside, other=0.0).to(tl.float32)
    if SCALED:
        x *= tl.load(column_scale_ptr + columns, mask=columns_inside, other=0.0).to(tl.float32)[None, :]
    data, scale = round_rows(x)
    tl.store(data_ptr + row_starts * COLUMNS + columns[None, :], data, mask=inside)
    tl.store(scale_ptr + rows, scale, mask=rows_inside)


@triton.jit
def _transpose_kernel(data_ptr, out_ptr, row_words, column_words, TILE: tl.constexpr):
    # A word of row r holds its columns 4 c to 4 c + 3; four rows' words become four words of the transpose.
    column = tl.program_id(0) * TILE + tl.arange(0, TILE)
    row = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = (row < row_words)[:, None] & (column < column_words)[None, :]
    source = data_ptr + (row.to(tl.int64) * 4 * column_words)[:, None] + column[None, :]
    first = tl.load(source, mask=inside, other=0).to(tl.uint32, bitcast=True)
    second = tl.load(source + column_words, mask=inside, other=0).to(tl.uint32, bitcast=True)
    third = tl.load(source + 2 * column_words, mask=inside, other=0).to(tl.uint32, bitcast=True)
    fourth = tl.load(source + 3 * column_words, mask=inside, other=0).to(tl.uint32, bitcast=True)
    target = out_ptr + (column.to(tl.int64) * 4 * row_words)[:, None] + row[None, :]
    inside = (column < column_words)[:, None] & (row < row_words)[None, :]
    for byte in tl.static_range(4):
        word = (first >> (8 * byte)) & 255
        word |= ((second >> (8 * byte)) & 255) << 8
        word |= ((third >> (8 * byte)) & 255) << 16
        word |= ((fourth >> (8 * byte)) & 255) << 24
        tl.store(target + byte * row_words, tl.trans(word).to(tl.int32, bitcast=True), mask=inside)
