"""RMSNorm with a frozen weight, forward and backward, as one pass over memory each.

Enters: hidden states h. Leaves: y = h rstd w with rstd = 1 / sqrt(mean(h^2) + eps), and the gradient of h, to which the
gradient along the residual stream is added on the way. Nothing here is recorded by autograd.

Shapes: T tokens, H features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fintune.kernels.fp8_weight import Fp8Rows, quantize_rows_plain
from fintune.kernels.triton_use import uses_triton, wide


def rms_norm(h: Tensor, weight: Tensor, eps: float, *, unit_offset: bool = False) -> tuple[Tensor, Tensor]:
    """Normalises every row.

    Args:
        h: (T, H).
        weight: (H,).
        eps: added to the mean square.
        unit_offset: multiply by 1 + weight, as Gemma does.

    Returns:
        (T, H) in the type of ``h``; (T,) reciprocal root mean squares in fp32 (fp64 for fp64).
    """
    if uses_triton(h, weight):
        from fintune.kernels import rms_norm_triton

        return rms_norm_triton.rms_norm(h, weight, eps, unit_offset)
    return rms_norm_plain(h, weight, eps, unit_offset=unit_offset)


def rms_norm_quantized(
    h: Tensor, weight: Tensor, eps: float, *, unit_offset: bool = False
) -> tuple[Tensor, Tensor, Fp8Rows]:
    """``rms_norm`` and its result, rounded to its type, rounded on to fp8 with a scale per row."""
    if uses_triton(h, weight):
        from fintune.kernels import rms_norm_triton

        y, rstd, data, scale = rms_norm_triton.rms_norm_quantized(h, weight, eps, unit_offset)
        return y, rstd, Fp8Rows(data, scale)
    return rms_norm_quantized_plain(h, weight, eps, unit_offset=unit_offset)


def rms_norm_backward(
    dy: Tensor,
    h: Tensor,
    rstd: Tensor,
    weight: Tensor,
    *,
    unit_offset: bool = False,
    residual: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """The gradient of ``h``; the weight is frozen and gets none.

    Args:
        dy: (T, H) gradient of the output.
        h: (T, H) input of the forward pass.
        rstd: (T,) from the forward pass.
        weight: (H,).
        unit_offset: as in the forward pass.
        residual: (T, H) gradient that reaches ``h`` past the norm, added.
        out: (T, H) to write to, which may be ``dy`` or ``residual`` itself.

    Returns:
        (T, H): ``out``, or a new tensor in the type of ``h``.
    """
    if uses_triton(dy, h, rstd, weight, residual, out):
        from fintune.kernels import rms_norm_triton

        return rms_norm_triton.rms_norm_backward(dy, h, rstd, weight, unit_offset, residual, out)
    return rms_norm_backward_plain(dy, h, rstd, weight, unit_offset=unit_offset, residual=residual, out=out)


def rms_norm_plain(h: Tensor, weight: Tensor, eps: float, *, unit_offset: bool = False) -> tuple[Tensor, Tensor]:
    """The plain twin of ``rms_norm``."""
    x = h.to(wide(h.dtype))
    rstd = torch.rsqrt(x.square().mean(1) + eps)
    return (x * rstd[:, None] * _gain(weight, unit_offset, x.dtype)).to(h.dtype), rstd


def rms_norm_quantized_plain(
    h: Tensor, weight: Tensor, eps: float, *, unit_offset: bool = False
) -> tuple[Tensor, Tensor, Fp8Rows]:
    """The plain twin of ``rms_norm_quantized``."""
    y, rstd = rms_norm_plain(h, weight, eps, unit_offset=unit_offset)
    return y, rstd, quantize_rows_plain(y)


def rms_norm_backward_plain(
    dy: Tensor,
    h: Tensor,
    rstd: Tensor,
    weight: Tensor,
    *,
    unit_offset: bool = False,
    residual: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """The plain twin of ``rms_norm_backward``."""
    dtype = wide(h.dtype)
    normed = h.to(dtype) * rstd[:, None]
    gradient = dy.to(dtype) * _gain(weight, unit_offset, dtype)
    dh = (gradient - normed * (gradient * normed).mean(1, keepdim=True)) * rstd[:, None]
    if residual is not None:
        dh = dh + residual.to(dtype)
    return dh.to(h.dtype) if out is None else out.copy_(dh)


def _gain(weight: Tensor, unit_offset: bool, dtype: torch.dtype) -> Tensor:
    return weight.to(dtype) + 1 if unit_offset else weight.to(dtype)
