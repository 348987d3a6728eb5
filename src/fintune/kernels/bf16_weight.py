"""A frozen weight in bf16 under activations in fp32: products in bf16, everything between them in fp32.

Enters: a bf16 matrix. Leaves: ``x W^T`` of ``x`` rounded to bf16, summed in fp32, rounded to bf16 once and given in the
type of ``x``. Next to a model held in bf16 altogether this keeps the residual stream, norms, rotations, attention and
head exact, where most of the error of bf16 arises; the time is the same.

Shapes: T tokens, I input features, O output features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fintune.kernels.frozen_weight import DenseWeight, frozen_weight


class Bf16Weight(DenseWeight):
    """A weight whose forward product is computed in bf16."""

    def product(self, x: Tensor) -> Tensor:
        """``x W^T`` in the type of ``x``: (T, I) to (T, O)."""
        return (x.to(torch.bfloat16) @ self.data.T).to(x.dtype)


def bf16_weight(parameters: list[Tensor]) -> Bf16Weight:
    """Weights of layers that share an input as one; each parameter becomes a view of it."""
    whole = frozen_weight(parameters)
    assert isinstance(whole, DenseWeight)
    return Bf16Weight(whole.data)
