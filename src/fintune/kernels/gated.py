"""The gate of an MLP: act(gate) * up and its gradients, the adapters' outputs added on the way, each as one pass.

Enters: the fused gate/up product. Leaves: the hidden state; backward, the gradients of gate and up and, where the down
projection's adapter wants it, the hidden state again. Nothing here is recorded by autograd.

Shapes: T tokens, F hidden features, r adapter rank.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fintune.kernels.lora_group import wide_product
from fintune.kernels.triton_use import uses_triton, wide

Activation = Literal["silu", "gelu_tanh"]
MOST_HELD_RANK = 32  # a kernel keeps the adapters' factors of ranks up to here, which are powers of two, in registers


def gated(gate_up: Tensor, activation: Activation, *, small: Tensor | None = None, b: Tensor | None = None) -> Tensor:
    """``act(gate) * up``.

    Args:
        gate_up: (T, 2 F), gate first; not changed.
        activation: of the gate.
        small: (T, 2 r) inputs times the A matrices of the adapters of gate and up; r a multiple of 16.
        b: (2 F, r) the B matrices, one below the other.

    Returns:
        (T, F) in the type of ``gate_up``.
    """
    if uses_triton(gate_up, small, b):
        from fintune.kernels import gated_columns_triton, gated_triton

        if small is not None and b is not None and _is_held(b.shape[1]):
            return gated_columns_triton.gated(gate_up, activation, small, b)
        return gated_triton.gated(gate_up, activation, small, b)
    return gated_plain(gate_up, activation, small=small, b=b)


def gated_backward(
    dp: Tensor,
    gate_up: Tensor,
    activation: Activation,
    *,
    small: Tensor | None = None,
    b: Tensor | None = None,
    down_small: Tensor | None = None,
    down_a: Tensor | None = None,
    out: Tensor | None = None,
    want_hidden: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """The gradients of gate and up, and the hidden state calculated again.

    Args:
        dp: (T, F) gradient of the hidden state; overwritten with the hidden state when that is wanted.
        gate_up: (T, 2 F) as in the forward pass.
        activation: of the gate.
        small: as in the forward pass.
        b: as in the forward pass.
        down_small: (T, r) gradient times the B matrix of the down projection's adapter.
        down_a: (r, F) its A matrix; ``down_small down_a`` is added to ``dp`` first.
        out: (T, 2 F) to write the gradients to; may be ``gate_up`` itself.
        want_hidden: whether the hidden state is wanted.

    Returns:
        (T, 2 F): ``out`` or a new tensor; the hidden state in the memory of ``dp``, or None.
    """
    if uses_triton(dp, gate_up, small, b, down_small, down_a, out):
        from fintune.kernels import gated_triton

        return gated_triton.gated_backward(dp, gate_up, activation, small, b, down_small, down_a, out, want_hidden)
    return gated_backward_plain(
        dp,
        gate_up,
        activation,
        small=small,
        b=b,
        down_small=down_small,
        down_a=down_a,
        out=out,
        want_hidden=want_hidden,
    )


def gated_backward_sums(
    dp: Tensor,
    gate_up: Tensor,
    activation: Activation,
    *,
    small: Tensor,
    b: Tensor,
    down_small: Tensor,
    down_a: Tensor,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """``gated_backward``, and the sums over tokens that the adapters' gradients are, where no dropout lies between.

    Args:
        dp: as for ``gated_backward``; what it holds afterwards is left open.
        gate_up: likewise.
        activation: likewise.
        small: likewise.
        b: likewise.
        down_small: likewise.
        down_a: likewise.
        out: likewise.

    Returns:
        (T, 2 F) gradients of gate and up; in fp32 (2 F, r), theirs times ``small``, summed over tokens; and (r, F),
        ``down_small`` times the hidden state, likewise.
    """
    if uses_triton(dp, gate_up, small, b, down_small, down_a, out) and _is_held(b.shape[1]) and _is_held(len(down_a)):
        from fintune.kernels import gated_columns_triton

        return gated_columns_triton.gated_backward_sums(dp, gate_up, activation, small, b, down_small, down_a, out)
    found = gated_backward(dp, gate_up, activation, small=small, b=b, down_small=down_small, down_a=down_a, out=out)
    return _with_sums(*found, small, down_small)


def _with_sums(
    d_gate_up: Tensor, hidden: Tensor | None, small: Tensor, down_small: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    assert hidden is not None
    halves = zip(d_gate_up.chunk(2, 1), small.chunk(2, 1), strict=True)
    d_b = torch.cat([wide_product(gradient.T, z) for gradient, z in halves])
    return d_gate_up, d_b, wide_product(down_small.T, hidden)


def _is_held(rank: int) -> bool:
    return rank <= MOST_HELD_RANK and rank & (rank - 1) == 0


def gated_plain(
    gate_up: Tensor, activation: Activation, *, small: Tensor | None = None, b: Tensor | None = None
) -> Tensor:
    """The plain twin of ``gated``."""
    gate, up = _gate_and_up(gate_up, small, b)
    return (_activate(gate, activation) * up).to(gate_up.dtype)


def gated_backward_plain(
    dp: Tensor,
    gate_up: Tensor,
    activation: Activation,
    *,
    small: Tensor | None = None,
    b: Tensor | None = None,
    down_small: Tensor | None = None,
    down_a: Tensor | None = None,
    out: Tensor | None = None,
    want_hidden: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """The plain twin of ``gated_backward``."""
    gate, up = _gate_and_up(gate_up, small, b)
    gradient = dp.to(gate.dtype)
    if down_small is not None and down_a is not None:
        gradient = gradient + down_small.to(gate.dtype) @ down_a.to(gate.dtype)
    activated = _activate(gate, activation)
    both = torch.cat([_activation_gradient(gradient * up, gate, activation), gradient * activated], 1)
    hidden = activated * up if want_hidden else None  # before ``out`` is written, of which gate and up may be views
    result = both.to(gate_up.dtype) if out is None else out.copy_(both)
    return result, None if hidden is None else dp.copy_(hidden)


def gated_backward_sums_plain(
    dp: Tensor,
    gate_up: Tensor,
    activation: Activation,
    *,
    small: Tensor,
    b: Tensor,
    down_small: Tensor,
    down_a: Tensor,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The plain twin of ``gated_backward_sums``."""
    found = gated_backward_plain(
        dp, gate_up, activation, small=small, b=b, down_small=down_small, down_a=down_a, out=out
    )
    return _with_sums(*found, small, down_small)


def _gate_and_up(gate_up: Tensor, small: Tensor | None, b: Tensor | None) -> tuple[Tensor, Tensor]:
    gate, up = gate_up.to(wide(gate_up.dtype)).chunk(2, 1)
    if small is None or b is None:
        return gate, up
    small_gate, small_up = small.to(gate.dtype).chunk(2, 1)
    b_gate, b_up = b.to(gate.dtype).chunk(2, 0)
    return gate + small_gate @ b_gate.T, up + small_up @ b_up.T


def _activate(gate: Tensor, activation: Activation) -> Tensor:
    if activation == "silu":
        return torch.nn.functional.silu(gate)
    return torch.nn.functional.gelu(gate, approximate="tanh")


def _activation_gradient(gradient: Tensor, gate: Tensor, activation: Activation) -> Tensor:
    result: Tensor
    if activation == "silu":
        result = torch.ops.aten.silu_backward(gradient, gate)
    else:
        result = torch.ops.aten.gelu_backward(gradient, gate, approximate="tanh")
    return result
