"""Rounding rows to fp8, and transposing bytes, as one pass over memory each.

Enters: a matrix. Leaves: its rows in fp8 with a scale each, or its transpose. The rounding is that of
``fp8_weight.quantize_rows_plain``, the twin.

Shapes: T tokens, K features; O, I the features of a weight.
"""

from __future__ import annotations

from torch import Tensor

from fintune.kernels.fp8_weight import Fp8Rows, quantize_rows_plain
from fintune.kernels.triton_use import interpreted, triton_is_installed, uses_triton

# Bytes are transposed four by four, in words.
WORD = 4


def quantize_rows_fp8(x: Tensor, *, column_scale: Tensor | None = None) -> Fp8Rows:
    """Rounds a matrix to fp8, a scale per row, read once and written once.

    Args:
        x: (T, K), features contiguous; other matrices are copied first.
        column_scale: (K,) factors multiplied in, in fp32, before anything else.

    Returns:
        (T, K) e4m3 and (T, 1) fp32.
    """
    if uses_triton(x, column_scale):
        from fintune.kernels.quantize_triton import quantize_rows

        return Fp8Rows(*quantize_rows(x, column_scale))
    return quantize_rows_fp8_plain(x, column_scale=column_scale)


def quantize_rows_fp8_plain(x: Tensor, *, column_scale: Tensor | None = None) -> Fp8Rows:
    """The plain twin of ``quantize_rows_fp8``."""
    return quantize_rows_plain(x if column_scale is None else x * column_scale.float())


def transpose_bytes(data: Tensor, out: Tensor) -> Tensor:
    """Writes the transpose of a matrix of one-byte elements.

    Args:
        data: (O, I) contiguous, uint8 or fp8.
        out: (I, O) contiguous, of the same type.

    Returns:
        ``out``.
    """
    on_device = (data.is_cuda or interpreted()) and triton_is_installed()
    if on_device and not any(size % WORD for size in data.shape) and data.numel():
        from fintune.kernels.quantize_triton import transpose_words

        return transpose_words(data, out)
    return transpose_bytes_plain(data, out)


def transpose_bytes_plain(data: Tensor, out: Tensor) -> Tensor:
    """The plain twin of ``transpose_bytes``."""
    return out.copy_(data.T)
