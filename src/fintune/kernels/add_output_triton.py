# mypy: ignore-errors
"""Triton kernel of ``add_output``: a program holds a tile of the product and multiplies the adapter's rank for it.

Enters and leaves: what ``add_output`` takes and gives.
"""

import triton
import triton.language as tl
from torch import Tensor

from fintune.kernels.rank_product_triton import add_rank_product, rank_chunk
from fintune.kernels.triton_use import launch

_BLOCK = 64


def add_output(y: Tensor, residual: Tensor | None, small: Tensor | None, b: Tensor | None) -> Tensor:
    """``y``, summed up in place."""
    tokens, features = y.shape
    launch(
        _kernel,
        (triton.cdiv(features, 2 * _BLOCK), triton.cdiv(tokens, _BLOCK)),
        y.device,
        y,
        residual,
        small,
        b,
        y.stride(0),
        0 if residual is None else residual.stride(0),
        0 if small is None else small.stride(0),
        0 if b is None else b.stride(0),
        tokens,
        FEATURES=features,
        RANK=0 if small is None else small.shape[1],
        CHUNK=0 if small is None else rank_chunk(small.shape[1]),
        HAS_RESIDUAL=residual is not None,
        BLOCK_T=_BLOCK,
        BLOCK_F=2 * _BLOCK,
        num_warps=8,
    )
    return y


@triton.jit(do_not_specialize=["tokens"])
def _kernel(
    y_ptr,
    residual_ptr,
    small_ptr,
    b_ptr,
    y_stride,
    residual_stride,
    small_stride,
    b_stride,
    tokens,
    FEATURES: tl.constexpr,
    RANK: tl.constexpr,
    CHUNK: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    row_start = tl.program_id(1).to(tl.int64) * BLOCK_T
    rows = tl.arange(0, BLOCK_T)
    columns = tl.program_id(0) * BLOCK_F + tl.arange(0, BLOCK_F)
    rows_inside, columns_inside = row_start + rows < tokens, columns < FEATURES
    inside = rows_inside[:, None] & columns_inside[None, :]
    at = y_ptr + row_start * y_stride + rows[:, None] * y_stride + columns[None, :]
    total = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        residual_at = residual_ptr + row_start * residual_stride + rows[:, None] * residual_stride + columns[None, :]
        total += tl.load(residual_at, mask=inside, other=0.0).to(tl.float32)
    if RANK > 0:
        total = add_rank_product(
            total, small_ptr + row_start * small_stride, small_stride, rows, rows_inside,
            b_ptr, 1, b_stride, columns, columns_inside, RANK, CHUNK,
        )  # fmt: skip
    tl.store(at, total.to(y_ptr.dtype.element_ty), mask=inside)
