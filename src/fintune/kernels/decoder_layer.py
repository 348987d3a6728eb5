"""A decoder layer of a Llama-like model with LoRA on frozen weights, as three autograd Functions around attention.

::

    h ─┬─ norm ─ q k v ─ rotate ─ attention ─ o ─ (norm) ─ + ─┬─ norm ─ gate up ─ act * ─ down ─ (norm) ─ + ─ h
       └────────────────────── residual ───────────────────┘  └─────────────────── residual ──────────────┘

Enters: hidden states of T tokens. Leaves: those after the layer. Gradients exist for hidden states and adapters. Kept
for the backward pass: h at both norms, what attention keeps, the small products of the adapters, what the norms in
brackets and those of heads take in, and, unless memory is short, the outputs of gate and up; normalised and activated
values are computed again from them, in kernels that read them anyway.

The norms after attention and MLP are Gemma's (arXiv 2408.00118), those of query and key heads Qwen3's (2505.09388).

Shapes: T tokens, H hidden size, F MLP size, D head size, R the ranks of a group.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from fintune.kernels.add_output import add_output
from fintune.kernels.frozen_weight import unpack_ahead, unpacked_together
from fintune.kernels.gated import gated, gated_backward, gated_backward_sums
from fintune.kernels.hashed_dropout import add_dropped_, fold_seed
from fintune.kernels.layer_parts import DecoderLayer, Norm, Pass
from fintune.kernels.lora_group import LoraGroup
from fintune.kernels.rms_norm import rms_norm_backward
from fintune.kernels.rope import rotate_heads, rotate_heads_backward

MLP_ROWS = 4096  # rows at a time where the MLP is to need little memory: enough to keep the matrix products busy
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def decoder_layer(h: Tensor, layer: DecoderLayer, given: Pass, attend: Attend) -> Tensor:
    """The layer's output.

    Args:
        h: (T, H) hidden states in the compute type.
        layer: the layer.
        given: rotation, seed and what to keep.
        attend: attention over (1, heads, T, D) queries, keys and values, to (T, heads D) with the heads side by side.

    Returns:
        (T, H).
    """
    enter: Any = _EnterAttention.apply
    leave: Any = _LeaveAttention.apply
    mlp: Any = _Mlp.apply
    query, key, value, residual = enter(h, layer, given, *layer.qkv.trained)
    attended = attend(*(states.transpose(0, 1).unsqueeze(0) for states in (query, key, value)))
    h = leave(attended, residual, layer, given, *layer.o.trained)
    output: Tensor = mlp(h, layer, given, *layer.gate_up.trained, *layer.down.trained)
    return output


def final_norm(h: Tensor, norm: Norm) -> Tensor:
    """The norm behind the last layer: (T, H) to (T, H)."""
    apply: Any = _FinalNorm.apply
    y: Tensor = apply(h, norm)
    return y


class _FinalNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, norm: Norm) -> Tensor:
        y, rstd = norm.forward(h)
        ctx.norm = norm
        ctx.save_for_backward(h, rstd)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        h, rstd = ctx.saved_tensors
        return _through_norm(ctx.norm, gradients[0], h, rstd), None


def _dropout(layer: DecoderLayer, given: Pass) -> float:
    return layer.dropout if given.training else 0.0


class _EnterAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, layer: DecoderLayer, given: Pass, *_: Tensor) -> tuple[Tensor, ...]:
        group, dropout = layer.qkv, _dropout(layer, given)
        _unpack_mlp_ahead(layer, given, h.dtype)
        seed = fold_seed(given.seed, 0) if dropout else given.seed
        x, rstd, qkv = layer.input_norm.forward_into(group, h)
        small = group.small(x, seed, dropout)
        query, key, value, head_rstd = rotate_heads(
            qkv,
            given.cos,
            given.sin,
            layer.layout,
            small=small,
            b=None if group.stack is None else group.stack.b,
            **_head_norms(layer),
        )
        has_norms = layer.query_norm is not None
        ctx.layer, ctx.given, ctx.dropout = layer, given, dropout
        ctx.save_for_backward(h, rstd, small, seed, qkv if has_norms else None, head_rstd)
        return query, key, value, h

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        d_query, d_key, d_value, d_residual = gradients
        h, rstd, small, seed, qkv, head_rstd = ctx.saved_tensors
        layer: DecoderLayer = ctx.layer
        given: Pass = ctx.given
        norms = _head_norms(layer)
        norms.pop("eps", None)
        dy = rotate_heads_backward(
            d_query, d_key, d_value, given.cos, given.sin, layer.layout, qkv=qkv, rstd=head_rstd, **norms
        )
        group, norm = layer.qkv, layer.input_norm
        d_small = group.d_small(dy)
        d_adapters = group.adapter_gradients(
            dy, h, small, d_small, seed, ctx.dropout, row_scale=rstd, column_scale=norm.scale
        )
        if not ctx.needs_input_grad[0]:
            return None, None, None, *d_adapters
        dx = group.input_gradient(dy, d_small, seed, ctx.dropout)
        return norm.backward(dx, h, rstd, d_residual), None, None, *d_adapters


def _head_norms(layer: DecoderLayer) -> dict[str, Any]:
    if layer.query_norm is None or layer.key_norm is None:
        return {}
    return {
        "query_norm": layer.query_norm.weight,
        "key_norm": layer.key_norm.weight,
        "eps": layer.query_norm.eps,
        "unit_offset": layer.query_norm.unit_offset,
    }


class _LeaveAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, attended: Tensor, h: Tensor, layer: DecoderLayer, given: Pass, *_: Tensor) -> Tensor:
        ctx.layer, ctx.given, ctx.dropout = layer, given, _dropout(layer, given)
        seed = fold_seed(given.seed, 1) if ctx.dropout else given.seed
        y, *kept = _add_output(attended, h, layer.o, layer.attention_out_norm, seed, ctx.dropout)
        ctx.save_for_backward(attended, seed, *kept)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        attended, seed, small, out, rstd = ctx.saved_tensors
        group: LoraGroup = ctx.layer.o
        (dh,) = gradients
        _unpack_mlp_ahead(ctx.layer.below, ctx.given, dh.dtype)
        dy = _through_norm(ctx.layer.attention_out_norm, dh, out, rstd)
        d_small = group.d_small(dy)
        d_adapters = group.adapter_gradients(dy, attended, small, d_small, seed, ctx.dropout)
        return group.input_gradient(dy, d_small, seed, ctx.dropout), dh, None, None, *d_adapters


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, layer: DecoderLayer, given: Pass, *_: Tensor) -> Tensor:
        dropout = _dropout(layer, given)
        seeds = [fold_seed(given.seed, part) if dropout else given.seed for part in (2, 3)]
        ctx.layer, ctx.dropout, ctx.rows, ctx.given = layer, dropout, len(h), given
        if not given.keep_mlp and not dropout:  # a mask depends on the number of its row
            ctx.rows = MLP_ROWS
        pieces = torch.split(h, max(ctx.rows, 1))
        with _unpacked_mlp(layer, given, h.dtype):
            parts = [_mlp_forward(layer, rows, seeds, dropout, given.keep_mlp) for rows in pieces]
        y, *kept = (_joined(column) for column in zip(*parts, strict=True))
        ctx.save_for_backward(h, *seeds, *kept)
        assert y is not None
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        h, *rest = ctx.saved_tensors  # asked for once: under recomputation a second time is an error
        seeds, kept = rest[:2], rest[2:]
        layer: DecoderLayer = ctx.layer
        dy, d_adapters = gradients[0], list[Tensor]()
        dh = torch.empty_like(h) if len(h) > ctx.rows else None
        rows = dy
        with _unpacked_mlp(layer, ctx.given, h.dtype):
            for start in range(0, max(len(h), 1), max(ctx.rows, 1)):
                own = slice(start, start + ctx.rows)
                mine = [None if part is None else part[own] for part in kept]
                out = None if dh is None else dh[own]
                rows, found = _mlp_backward(layer, dy[own], h[own], seeds, ctx.dropout, mine, out)
                if start == 0:
                    d_adapters = found
                elif found:
                    torch._foreach_add_(d_adapters, found)
        return rows if dh is None else dh, None, None, *d_adapters


def _unpacked_mlp(layer: DecoderLayer, given: Pass, dtype: torch.dtype) -> AbstractContextManager[None]:
    """For rows in pieces, or gate and up twice: weights are unpacked once. Else each is as it is needed."""
    is_once = given.unpack_ahead or not given.keep_mlp
    return unpacked_together(dtype, layer.gate_up.weight, layer.down.weight) if is_once else nullcontext()


def _unpack_mlp_ahead(layer: DecoderLayer | None, given: Pass, dtype: torch.dtype) -> None:
    if given.unpack_ahead and layer is not None:
        unpack_ahead(dtype, layer.gate_up.weight, layer.down.weight)


def _joined(parts: tuple[Tensor | None, ...]) -> Tensor | None:
    given = [part for part in parts if part is not None]
    return None if not given else given[0] if len(given) == 1 else torch.cat(given)


def _mlp_forward(
    layer: DecoderLayer, h: Tensor, seeds: list[Tensor], dropout: float, keep: bool
) -> tuple[Tensor | None, ...]:
    """The output for rows ``h``, and what ``_mlp_backward`` takes as ``kept``."""
    x, rstd, gate_up = layer.mlp_norm.forward_into(layer.gate_up, h)
    small = layer.gate_up.small(x, seeds[0], dropout)
    del x
    hidden = gated(gate_up, layer.activation, small=small, b=_b(layer.gate_up))
    y, *down = _add_output(hidden, h, layer.down, layer.mlp_out_norm, seeds[1], dropout)
    return y, rstd, gate_up if keep else None, small, *down


def _mlp_backward(
    layer: DecoderLayer,
    dy: Tensor,
    h: Tensor,
    seeds: list[Tensor],
    dropout: float,
    kept: list[Tensor | None],
    out: Tensor | None,
) -> tuple[Tensor, list[Tensor]]:
    """The gradients of rows ``h``, in ``out`` where given, and of the adapters."""
    rstd, gate_up, small, down_small, down_out, out_rstd = kept
    assert rstd is not None
    first, second = layer.gate_up, layer.down
    if gate_up is None:
        gate_up = layer.mlp_norm.forward_into(first, h)[2]
    d_out = _through_norm(layer.mlp_out_norm, dy, down_out, out_rstd)
    d_hidden_small = second.d_small(d_out)
    d_hidden = second.weight.input_gradient(d_out)
    gradients = (d_out, d_hidden, d_hidden_small)
    d_gate_up, d_b, d_down = _gate_backward(layer, gradients, gate_up, (small, down_small), seeds[1], dropout)
    torch.autograd.graph.increment_version(gate_up)  # so that a second backward pass is refused
    del d_hidden, gradients
    d_small = first.d_small(d_gate_up)
    scales = {"row_scale": rstd, "column_scale": layer.mlp_norm.scale}
    d_first = first.adapter_gradients(d_gate_up, h, small, d_small, seeds[0], dropout, **scales, d_b=d_b)
    dx = first.input_gradient(d_gate_up, d_small, seeds[0], dropout)
    return layer.mlp_norm.backward(dx, h, rstd, dy, out), [*d_first, *d_down]


def _gate_backward(
    layer: DecoderLayer,
    gradients: tuple[Tensor, Tensor, Tensor | None],
    gate_up: Tensor,
    smalls: tuple[Tensor | None, Tensor | None],
    seed: Tensor,
    dropout: float,
) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    """The gradients of gate and up, written over them; of their B matrices where they come along; of the down adapter.

    Args:
        layer: the layer.
        gradients: of the output of the down projection, of its input through the frozen weight, of its small product.
        gate_up: (T, 2 F).
        smalls: the small products of gate and up, and of the down projection.
        seed: of the dropout in front of the down projection's adapter.
        dropout: its probability.
    """
    (d_out, d_hidden, d_hidden_small), (small, down_small), second = gradients, smalls, layer.down
    b = _b(layer.gate_up)
    if d_hidden_small is None or second.stack is None or down_small is None:
        d_gate_up, _ = gated_backward(
            d_hidden, gate_up, layer.activation, small=small, b=b, out=gate_up, want_hidden=False
        )
        return d_gate_up, None, []
    if dropout:
        add_dropped_(d_hidden, d_hidden_small @ second.stack.a, seed, dropout)
    if dropout or small is None or b is None:
        d_gate_up, hidden = gated_backward(
            d_hidden,
            gate_up,
            layer.activation,
            small=small,
            b=b,
            down_small=None if dropout else d_hidden_small,
            down_a=None if dropout else second.stack.a,
            out=gate_up,
        )
        assert hidden is not None
        return d_gate_up, None, second.adapter_gradients(d_out, hidden, down_small, d_hidden_small, seed, dropout)
    d_gate_up, d_b, d_a = gated_backward_sums(
        d_hidden,
        gate_up,
        layer.activation,
        small=small,
        b=b,
        down_small=d_hidden_small,
        down_a=second.stack.a,
        out=gate_up,
    )
    return d_gate_up, d_b, second.gradients_of(d_a, second.d_b(d_out, down_small))


def _b(group: LoraGroup) -> Tensor | None:
    return None if group.stack is None else group.stack.b


def _add_output(
    x: Tensor, h: Tensor, group: LoraGroup, norm: Norm | None, seed: Tensor, dropout: float
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """``h + norm(group(x))``; the small product, and with a norm what its backward pass needs."""
    small = group.small(x, seed, dropout)
    out = group.base(x)
    if norm is None:
        return add_output(out, h, small, _b(group)), small, None, None
    add_output(out, None, small, _b(group))
    y, rstd = norm.forward(out)
    return y.add_(h), small, out, rstd


def _through_norm(norm: Norm | None, dy: Tensor, out: Tensor | None, rstd: Tensor | None) -> Tensor:
    if norm is None or out is None or rstd is None:
        return dy
    return rms_norm_backward(dy, out, rstd, norm.weight, unit_offset=norm.unit_offset)
