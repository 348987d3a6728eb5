"""The end of an output projection: its product, the adapter's and the residual stream added up in one pass over memory.

Enters: the frozen product and what is added to it. Leaves: the sum. Nothing here is recorded by autograd.

Shapes: T tokens, H features, r adapter rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fintune.kernels.triton_use import uses_triton, wide


def add_output(y: Tensor, residual: Tensor | None, small: Tensor | None = None, b: Tensor | None = None) -> Tensor:
    """``y + residual + small b^T``, written over ``y``.

    Args:
        y: (T, H), features contiguous.
        residual: (T, H) or None.
        small: (T, r) input times the adapter's A, or None.
        b: (H, r) its B, times its scale.
    """
    if uses_triton(y, residual, small, b):
        from fintune.kernels import add_output_triton

        return add_output_triton.add_output(y, residual, small, b)
    return add_output_plain(y, residual, small, b)


def add_output_plain(
    y: Tensor, residual: Tensor | None, small: Tensor | None = None, b: Tensor | None = None
) -> Tensor:
    """The plain twin of ``add_output``."""
    total = y.to(wide(y.dtype))
    if residual is not None:
        total = total + residual
    if small is not None and b is not None:
        total = torch.addmm(total, small.to(total.dtype), b.T.to(total.dtype))
    return y.copy_(total)
