"""Heads of all queries, keys and values in one pass over memory: what a compiled graph needs several for.

Enters: the joined product of queries, keys and values, and the angles of its positions. Leaves: queries and keys of
unit size, turned, and the values. Gradients come back as one matrix. Compilers see two operations and look no further.

Shapes: N tokens (all rows of a batch), H heads of D features, W = H D.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fintune.kernels.rope import HeadLayout, rotate_heads, rotate_heads_backward
from fintune.models.gpt.positions import Rotation

EPS = 1e-6
Heads = tuple[Tensor, Tensor, Tensor]


def angle_table(turn: Rotation, rows: int) -> Rotation:
    """Cosines and sines (N, D) of ``rows`` rows, each half the same, of ``rotation`` of (1, T) positions."""
    cos, sin = (part[0, 0].repeat(rows, 2) for part in turn)
    return cos, sin


def unit_turned_heads(qkv: Tensor, table: Rotation, heads: int) -> Heads:
    """Queries, keys and values (N, H, D); every query and key of root mean square 1, then turned.

    Args:
        qkv: (N, 3 W), queries first, then keys and values.
        table: from ``angle_table``, (N, D) each.
        heads: H.
    """
    apply: Any = _UnitTurnedHeads.apply  # untyped in PyTorch
    query, key, value = apply(qkv, *table, heads)
    return query, key, value


class _UnitTurnedHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Heads:
        turned, rstd = _forward(qkv, cos, sin, heads)
        ctx.save_for_backward(qkv, cos, sin, rstd)
        ctx.heads = heads
        tokens = len(qkv)
        query, key = turned.view(tokens, 2, heads, -1).unbind(1)
        return query, key, qkv.view(tokens, 3, heads, -1)[:, 2]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        qkv, cos, sin, rstd = ctx.saved_tensors
        return _backward(*gradients, qkv, cos, sin, rstd, ctx.heads), None, None, None


@torch.library.custom_op("fintune::unit_turned_heads", mutates_args=())
def _forward(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    layout, one = _layout(qkv, heads)
    query, _, _, rstd = rotate_heads(qkv, cos, sin, layout, query_norm=one, key_norm=one, eps=EPS)
    assert rstd is not None
    width = 2 * heads * layout.size
    return query.as_strided((len(qkv), width), (width, 1)), rstd


@_forward.register_fake
def _(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    tokens, width = qkv.shape
    return qkv.new_empty(tokens, width // 3 * 2), qkv.new_empty(tokens, 2 * heads, dtype=torch.float32)


@torch.library.custom_op("fintune::unit_turned_heads_backward", mutates_args=())
def _backward(
    dq: Tensor, dk: Tensor, dv: Tensor, qkv: Tensor, cos: Tensor, sin: Tensor, rstd: Tensor, heads: int
) -> Tensor:
    layout, one = _layout(qkv, heads)
    return rotate_heads_backward(dq, dk, dv, cos, sin, layout, qkv=qkv, rstd=rstd, query_norm=one, key_norm=one)


@_backward.register_fake
def _(dq: Tensor, dk: Tensor, dv: Tensor, qkv: Tensor, cos: Tensor, sin: Tensor, rstd: Tensor, heads: int) -> Tensor:
    return torch.empty_like(qkv)


def _layout(qkv: Tensor, heads: int) -> tuple[HeadLayout, Tensor]:
    size = qkv.shape[1] // (3 * heads)
    return HeadLayout(heads, heads, size), torch.ones(size, dtype=qkv.dtype, device=qkv.device)
