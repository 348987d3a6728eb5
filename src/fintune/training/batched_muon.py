"""Muon's update for all matrices of one shape at once, beside PyTorch's own, which goes from matrix to matrix.

Enters: matrices with gradients. Leaves: the same update as ``torch.optim.Muon``, up to the rounding of bf16 products.
Matrices of one shape, and those of its transpose, are stacked: with 124 million weights, 72 chains of small products
become two of large ones.

Shapes: M matrices, R rows (the shorter side), C columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Muon

MOST_STACKED = 1 << 28  # elements of one stack, which the iteration holds about four times in bf16


class BatchedMuon(Muon):
    """``torch.optim.Muon`` with stacked matrices; arguments, groups, state and files are the same."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of all matrices that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._update(group)
        return loss

    def _update(self, group: dict[str, Any]) -> None:
        weights: list[Tensor] = []
        gradients: list[Tensor] = []
        momenta: list[Tensor] = []
        self._init_group(group, weights, gradients, momenta)
        if not weights:
            return
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        updates = list(torch._foreach_lerp(gradients, momenta, group["momentum"])) if group["nesterov"] else momenta
        if group["weight_decay"]:
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        for chosen in _alike(weights):
            own = [weights[number] for number in chosen]
            directions = orthogonalise(
                _stacked([updates[number] for number in chosen]),
                group["ns_coefficients"],
                group["ns_steps"],
                group["eps"],
            )
            for weight, direction in zip(own, directions.unbind(), strict=True):
                rate = group["lr"] * _length(weight, group["adjust_lr_fn"])
                weight.add_(direction if _is_wide(weight) else direction.T, alpha=-rate)


def orthogonalise(stack: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """(M, R, C) matrices with singular values about one in place of those of the (M, R, C) ones given.

    Args:
        stack: in bf16; overwritten.
        coefficients: of the quintic.
        steps: iterations.
        eps: least norm that is divided by.
    """
    linear, cubic, quintic = coefficients
    stack.div_(stack.norm(dim=(1, 2), keepdim=True).clamp(min=eps))  # the largest singular value is one at most
    for _ in range(steps):
        gram = torch.bmm(stack, stack.mT)
        polynomial = torch.baddbmm(gram, gram, gram, beta=cubic, alpha=quintic)
        stack = torch.baddbmm(stack, polynomial, stack, beta=linear)
    return stack


def _alike(weights: list[Tensor]) -> list[list[int]]:
    """Numbers of weights by shape, a shape and its transpose counting as one, no more of them than make a stack."""
    by_shape: dict[tuple[Any, ...], list[int]] = {}
    for number, weight in enumerate(weights):
        by_shape.setdefault((weight.device, *sorted(weight.shape)), []).append(number)
    parts = []
    for numbers in by_shape.values():
        most = max(1, MOST_STACKED // weights[numbers[0]].numel())
        parts += [numbers[start : start + most] for start in range(0, len(numbers), most)]
    return parts


def _stacked(matrices: list[Tensor]) -> Tensor:
    """(M, R, C) in bf16, none of them taller than wide."""
    return torch.stack([(matrix if _is_wide(matrix) else matrix.T).bfloat16() for matrix in matrices])


def _is_wide(matrix: Tensor) -> bool:
    return matrix.shape[0] <= matrix.shape[1]


def _length(weight: Tensor, rule: str | None) -> float:
    """How much longer the steps of a matrix are for its shape, by the rules of ``torch.optim.Muon``."""
    rows, columns = weight.shape
    if rule == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1.0, rows / columns))
