"""Linear layers with LoRA on frozen weights, one or several that share an input, as one autograd Function.

::

    x ──┬─────────── W1, W2, W3 (frozen) ──────────────┬── + ── y1, y2, y3
        └── drop ── [A1; A2; A3] ── z1 z2 z3 ── s B1, s B2, s B3

Enters: tokens and their layers. Leaves: each layer's output. Kept for the backward pass: x once, z (T, R), and the
adapters themselves; neither a weight in compute type, nor a dropped x, nor a mask. Gradients exist for x, A and B only.

Shapes: T tokens, I input features, O output features, R the sum of the ranks of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fintune.kernels.fp8_weight import Fp8Weight, products
from fintune.kernels.frozen_weight import FrozenWeight
from fintune.kernels.hashed_dropout import as_seed, drop
from fintune.schema.errors import InternalError


@dataclass(frozen=True, eq=False)
class LoraLinear:
    """One frozen linear layer and its adapter, if it has one.

    Attributes:
        weight: the frozen (O, I) weight.
        bias: frozen (O,) bias or None.
        a: (r, I) trainable, fp32; None, as ``b``, for a layer without adapter.
        b: (O, r) trainable, fp32.
        scale: factor on the adapter's output: alpha / r, or alpha / sqrt(r) for rsLoRA.
    """

    weight: FrozenWeight
    bias: Tensor | None = None
    a: Tensor | None = None
    b: Tensor | None = None
    scale: float = 1.0


@dataclass(frozen=True, eq=False)
class FrozenGroup:
    """What a Function needs to know of its layers and gets no gradient for.

    Attributes:
        weights: one per layer.
        biases: one per layer, or None.
        scales: one per layer; None for a layer without adapter.
        dropout: probability on the input of the adapters; one mask for the group.
        dtype: compute type.
    """

    weights: tuple[FrozenWeight, ...]
    biases: tuple[Tensor | None, ...]
    scales: tuple[float | None, ...]
    dropout: float
    dtype: torch.dtype


def frozen_group(group: Sequence[LoraLinear], dropout: float, dtype: torch.dtype) -> FrozenGroup:
    """The frozen part of a group."""
    for layer in group:
        if (layer.a is None) != (layer.b is None):
            raise InternalError("A LoRA layer needs both A and B, or neither.")
    scales = tuple(None if layer.a is None else layer.scale for layer in group)
    biases = tuple(layer.bias for layer in group)
    return FrozenGroup(tuple(layer.weight for layer in group), biases, scales, dropout, dtype)


def adapters_of(group: Sequence[LoraLinear]) -> list[Tensor]:
    """A1, B1, A2, B2, ... of the layers that have adapters: the trainable inputs of a Function."""
    return [tensor for layer in group for tensor in (layer.a, layer.b) if tensor is not None]


def lora_linears(
    x: Tensor,
    group: Sequence[LoraLinear],
    *,
    dropout: float = 0.0,
    seed: Tensor | int = 0,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, ...]:
    """``x W^T + bias + scale (drop(x) A^T) B^T`` for each layer of a group that shares ``x``.

    Autocast is ignored: everything is computed in ``dtype``, and the adapters' gradients come back in their own type.

    Args:
        x: (..., I) tokens, in any number of leading dimensions.
        group: the layers; without any adapter it is a plain frozen product.
        dropout: probability of dropping an input of the adapters; 0 outside training.
        seed: 0-d int64 tensor, different for every group, layer and step; a number compiles anew for every value.
        dtype: compute type of products and results; that of ``x`` when None.

    Returns:
        One (..., O) tensor per layer.
    """
    plan = frozen_group(group, dropout, dtype or x.dtype)
    rows = x.reshape(-1, x.shape[-1])
    apply: Any = _LoraLinears.apply
    outputs = apply(rows, as_seed(seed, x.device), plan, *adapters_of(group))
    return tuple(y.view(*x.shape[:-1], y.shape[-1]) for y in outputs)


class _LoraLinears(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, seed: Tensor, plan: FrozenGroup, *adapters: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast(x.device.type, enabled=False):
            rows = x.to(plan.dtype)
            outputs, small = group_forward(rows, plan, adapters, seed)
        ctx.plan, ctx.input_dtype = plan, x.dtype
        ctx.save_for_backward(rows, seed, small, *adapters)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, seed, small, *adapters = ctx.saved_tensors
        with torch.autocast(rows.device.type, enabled=False):
            dx, d_adapters = group_backward(
                gradients, rows, small, ctx.plan, adapters, seed, wants_input=ctx.needs_input_grad[0]
            )
            dx = None if dx is None else dx.to(ctx.input_dtype)
        return dx, None, None, *d_adapters


def group_forward(
    x: Tensor, plan: FrozenGroup, adapters: Sequence[Tensor], seed: Tensor
) -> tuple[list[Tensor], Tensor | None]:
    """The outputs of a group for ``x`` (T, I) in compute type, and the small products z (T, R) its backward needs."""
    outputs = products(x, plan.weights, plan.biases)
    if not adapters:
        return outputs, None
    small = drop(x, seed, plan.dropout) @ _stacked(adapters, plan.dtype).T
    start = 0
    for member in _scaled(plan, adapters):
        outputs[member.place].addmm_(small[:, start : start + member.rank], member.scaled_b.T)
        start += member.rank
    return outputs, small


def group_backward(
    gradients: Sequence[Tensor],
    x: Tensor,
    small: Tensor | None,
    plan: FrozenGroup,
    adapters: Sequence[Tensor],
    seed: Tensor,
    *,
    wants_input: bool,
) -> tuple[Tensor | None, list[Tensor]]:
    """The gradient of x (T, I), None unless wanted, and those of A1, B1, A2, B2, ..."""
    gradients = [gradient.to(plan.dtype) for gradient in gradients]
    dx: Tensor | None = None
    if wants_input:
        for gradient, weight in zip(gradients, plan.weights, strict=True):
            dx = weight.input_gradient(gradient, dx)
    if small is None:
        return dx, []
    # (T, R): what each small product contributes, its scale included.
    members = _scaled(plan, adapters)
    d_small = torch.cat([gradients[member.place] @ member.scaled_b for member in members], dim=1)
    if dx is not None and plan.dropout:
        dx.add_(drop(d_small @ _stacked(adapters, plan.dtype), seed, plan.dropout))
    elif dx is not None:
        dx.addmm_(d_small, _stacked(adapters, plan.dtype))
    d_a = d_small.T @ drop(x, seed, plan.dropout)
    d_adapters, start = [], 0
    for member, a, b in zip(members, adapters[::2], adapters[1::2], strict=True):
        own = slice(start, start + member.rank)
        d_b = gradients[member.place].T @ small[:, own]
        d_adapters += [d_a[own].to(a.dtype), d_b.to(b.dtype) * member.scale]
        start += member.rank
    return dx, d_adapters


def _stacked(adapters: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """All A of a group on top of each other: (R, I)."""
    return torch.cat([a.to(dtype) for a in adapters[::2]])


class _Member(NamedTuple):
    place: int
    scale: float
    scaled_b: Tensor

    @property
    def rank(self) -> int:
        return self.scaled_b.shape[1]


def _scaled(plan: FrozenGroup, adapters: Sequence[Tensor]) -> list[_Member]:
    """The layers that have an adapter, with ``scale B`` (O, r), scaled before it is rounded to the compute type."""
    scales = [(index, scale) for index, scale in enumerate(plan.scales) if scale is not None]
    pairs = zip(scales, adapters[1::2], strict=True)
    return [_Member(index, scale, (b * scale).to(plan.dtype)) for (index, scale), b in pairs]


def lora_linears_plain(
    x: Tensor,
    group: Sequence[LoraLinear],
    *,
    dropout: float = 0.0,
    seed: Tensor | int = 0,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, ...]:
    """The plain twin of ``lora_linears``: every step an operation of its own, differentiated by autograd."""
    rows = x.reshape(-1, x.shape[-1]).to(dtype or x.dtype)
    dropped = drop(rows, as_seed(seed, x.device), dropout)
    outputs = []
    for layer in group:
        y = plain_product(rows, layer.weight)
        if layer.bias is not None:
            y = y + layer.bias.to(y.dtype)
        if layer.a is not None and layer.b is not None:
            y = y + layer.scale * (dropped @ layer.a.to(y.dtype).T @ layer.b.to(y.dtype).T)
        outputs.append(y.view(*x.shape[:-1], y.shape[-1]))
    return tuple(outputs)


def plain_product(x: Tensor, weight: FrozenWeight) -> Tensor:
    """``x W^T``, differentiable; fp8 rounds both operands of both products, and the rounding has no gradient."""
    if not isinstance(weight, Fp8Weight):
        return x @ weight.dense(x.dtype).T
    apply: Any = _RoundedProduct.apply
    product: Tensor = apply(x, weight)
    return product


class _RoundedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Fp8Weight) -> Tensor:
        ctx.weight = weight
        return weight.product(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.weight.input_gradient(gradients[0]), None
