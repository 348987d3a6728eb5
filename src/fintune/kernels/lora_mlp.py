"""A gated MLP with LoRA on frozen weights as one autograd Function: ``down(act(gate(x)) * up(x))``.

Enters: tokens and the three layers. Leaves: the MLP's output. Kept for the backward pass: x, the outputs e of gate and
g of up, and the small products; the hidden state h = act(e) * g is computed again.

Shapes: T tokens, I features, M hidden features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fintune.kernels.hashed_dropout import as_seed, fold_seed
from fintune.kernels.lora_linear import (
    FrozenGroup,
    LoraLinear,
    adapters_of,
    frozen_group,
    group_backward,
    group_forward,
    lora_linears_plain,
)

Activation = Literal["silu", "gelu_tanh"]


@dataclass(frozen=True, eq=False)
class _Frozen:
    """What the Function needs to know and gets no gradient for; ``first`` are gate and up, ``second`` is down."""

    first: FrozenGroup
    second: FrozenGroup
    activation: Activation
    first_adapters: int


def lora_swiglu(
    x: Tensor,
    gate: LoraLinear,
    up: LoraLinear,
    down: LoraLinear,
    *,
    activation: Activation = "silu",
    dropout: float = 0.0,
    seed: Tensor | int = 0,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The whole MLP of a Llama-like layer, or, with ``gelu_tanh``, of a Gemma-like one.

    Args:
        x: (..., I) tokens.
        gate: (M, I) layer whose output is activated.
        up: (M, I) layer whose output it multiplies.
        down: (I, M) layer.
        activation: of the gate.
        dropout: probability of dropping an input of the adapters; one mask on x and one on h.
        seed: 0-d int64 tensor, different for every layer and step; a number compiles anew for every value.
        dtype: compute type; that of ``x`` when None. Autocast is ignored.

    Returns:
        (..., I).
    """
    dtype = dtype or x.dtype
    first = adapters_of((gate, up))
    plan = _Frozen(
        frozen_group((gate, up), dropout, dtype), frozen_group((down,), dropout, dtype), activation, len(first)
    )
    apply: Any = _LoraMlp.apply
    y: Tensor = apply(x.reshape(-1, x.shape[-1]), as_seed(seed, x.device), plan, *first, *adapters_of((down,)))
    return y.view(*x.shape[:-1], y.shape[-1])


class _LoraMlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, seed: Tensor, plan: _Frozen, *adapters: Tensor) -> Tensor:
        first, second = adapters[: plan.first_adapters], adapters[plan.first_adapters :]
        with torch.autocast(x.device.type, enabled=False):
            rows = x.to(plan.first.dtype)
            (e, g), small = group_forward(rows, plan.first, first, seed)
            hidden = _activate(e, plan.activation).mul_(g)
            (y,), hidden_small = group_forward(hidden, plan.second, second, fold_seed(seed, 0))
        ctx.plan, ctx.input_dtype = plan, x.dtype
        ctx.save_for_backward(rows, e, g, small, hidden_small, seed, *adapters)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, e, g, small, hidden_small, seed, *adapters = ctx.saved_tensors
        plan: _Frozen = ctx.plan
        first, second = adapters[: plan.first_adapters], adapters[plan.first_adapters :]
        with torch.autocast(rows.device.type, enabled=False):
            activated = _activate(e, plan.activation)
            hidden = activated * g if second else activated  # only adapters look at it
            d_hidden, d_second = group_backward(
                gradients, hidden, hidden_small, plan.second, second, fold_seed(seed, 0), wants_input=True
            )
            assert d_hidden is not None
            d_g = activated.mul_(d_hidden)
            d_e = _activation_gradient(d_hidden.mul_(g), e, plan.activation)
            dx, d_first = group_backward(
                (d_e, d_g), rows, small, plan.first, first, seed, wants_input=ctx.needs_input_grad[0]
            )
            dx = None if dx is None else dx.to(ctx.input_dtype)
        return dx, None, None, *d_first, *d_second


def _activate(e: Tensor, activation: Activation) -> Tensor:
    if activation == "silu":
        return torch.nn.functional.silu(e)
    return torch.nn.functional.gelu(e, approximate="tanh")


def _activation_gradient(gradient: Tensor, e: Tensor, activation: Activation) -> Tensor:
    """The gradient of ``e`` from that of its activation, in one kernel that keeps no intermediate result."""
    result: Tensor
    if activation == "silu":
        result = torch.ops.aten.silu_backward(gradient, e)
    else:
        result = torch.ops.aten.gelu_backward(gradient, e, approximate="tanh")
    return result


def lora_swiglu_plain(
    x: Tensor,
    gate: LoraLinear,
    up: LoraLinear,
    down: LoraLinear,
    *,
    activation: Activation = "silu",
    dropout: float = 0.0,
    seed: Tensor | int = 0,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The plain twin of ``lora_swiglu``."""
    seed = as_seed(seed, x.device)
    e, g = lora_linears_plain(x, (gate, up), dropout=dropout, seed=seed, dtype=dtype)
    hidden = _activate(e, activation) * g
    return lora_linears_plain(hidden, (down,), dropout=dropout, seed=fold_seed(seed, 0), dtype=dtype)[0]
