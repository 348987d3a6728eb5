"""Products with a frozen weight on the CPU by oneDNN, which PyTorch asks for 16 bits but not for fp32.

Enters: activations and a weight as ``nn.Linear`` stores it. Leaves: ``x W^T``. On an AMD EPYC 9004 oneDNN computes fp32
at 100 to 107 GFLOP/s a core where MKL, to which ``@`` goes, comes to 75 to 97; the results differ in their last bits.

Shapes: T tokens, I input features, O output features.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor


@cache
def _onednn() -> Any:
    """The operator that ``torch.compile`` writes for linear layers on the CPU; None where this PyTorch lacks it."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]  # has no annotations
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def cpu_product(x: Tensor, weight: Tensor) -> Tensor:
    """``x W^T``, not recorded by autograd where oneDNN computes it: on the CPU, in fp32, outside its recording.

    Args:
        x: (T, I).
        weight: (O, I) of the same type.

    Returns:
        (T, O).
    """
    operator = _onednn()
    plain = operator is None or x.device.type != "cpu" or x.dtype != torch.float32 or weight.dtype != torch.float32
    if plain or torch.is_grad_enabled() or not x.numel() or not torch.backends.mkldnn.enabled:
        return x @ weight.T
    product: Tensor = operator(x, weight, None, "none", [], "")
    return product
