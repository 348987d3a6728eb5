"""What a decoder layer is made of and what one pass over it brings along: plain data for ``decoder_layer``.

Shapes: T tokens, H hidden size, F MLP size, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fintune.kernels.fp8_weight import Fp8Weight
from fintune.kernels.gated import Activation
from fintune.kernels.lora_group import LoraGroup
from fintune.kernels.rms_norm import rms_norm, rms_norm_backward, rms_norm_quantized
from fintune.kernels.rope import HeadLayout


@dataclass(frozen=True, eq=False)
class Norm:
    """A frozen RMSNorm: its (H,) weight, epsilon, and whether the weight is what is added to one (Gemma)."""

    weight: Tensor
    eps: float
    unit_offset: bool = False

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """The normalised rows and (T,) reciprocal root mean squares."""
        return rms_norm(h, self.weight, self.eps, unit_offset=self.unit_offset)

    def forward_into(self, group: LoraGroup, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The normalised rows, (T,) reciprocal root mean squares, and the frozen product of ``group`` with the rows."""
        if isinstance(group.weight, Fp8Weight):
            x, rstd, rounded = rms_norm_quantized(h, self.weight, self.eps, unit_offset=self.unit_offset)
            return x, rstd, group.base(x, rounded=rounded)
        x, rstd = self.forward(h)
        return x, rstd, group.base(x)

    def backward(
        self, dy: Tensor, h: Tensor, rstd: Tensor, residual: Tensor | None = None, out: Tensor | None = None
    ) -> Tensor:
        """The gradient of ``h``, plus ``residual``; written to ``out``, or over ``dy``."""
        out = dy if out is None else out
        return rms_norm_backward(dy, h, rstd, self.weight, unit_offset=self.unit_offset, residual=residual, out=out)

    @property
    def scale(self) -> Tensor:
        """(H,) factor on normalised columns, as exact as the forward pass has it."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        return self.weight.to(wide) + 1.0 if self.unit_offset else self.weight


@dataclass(frozen=True, eq=False)
class DecoderLayer:
    """The frozen parts of a layer and its adapters.

    Attributes:
        qkv: query, key and value layers.
        o: output layer of attention.
        gate_up: the two first layers of the MLP.
        down: its last one.
        layout: heads in the columns of ``qkv``.
        activation: of the gate.
        input_norm: before attention.
        mlp_norm: before the MLP.
        attention_out_norm: on the output of attention, or None.
        mlp_out_norm: on the output of the MLP, or None.
        query_norm: on each query head, or None; likewise ``key_norm``.
        dropout: probability of dropping an input of the adapters, while training.
        below: the layer before this one, which the backward pass comes to next; None for the first.
    """

    qkv: LoraGroup
    o: LoraGroup
    gate_up: LoraGroup
    down: LoraGroup
    layout: HeadLayout
    activation: Activation
    input_norm: Norm
    mlp_norm: Norm
    attention_out_norm: Norm | None = None
    mlp_out_norm: Norm | None = None
    query_norm: Norm | None = None
    key_norm: Norm | None = None
    dropout: float = 0.0
    below: DecoderLayer | None = None

    @property
    def groups(self) -> tuple[LoraGroup, ...]:
        """All groups, in the order they are computed in."""
        return self.qkv, self.o, self.gate_up, self.down


class Pass(NamedTuple):
    """What one forward pass brings along.

    Attributes:
        cos, sin: (T, D) rotation of each token.
        seed: 0-d int64, of this layer's dropout in this step.
        training: whether dropout is on.
        keep_mlp: keep the outputs of gate and up for the backward pass rather than compute them again.
        unpack_ahead: unpack the MLP's NF4 weights during attention, beside it; not while a CUDA graph is recorded.
    """

    cos: Tensor
    sin: Tensor
    seed: Tensor
    training: bool
    keep_mlp: bool = True
    unpack_ahead: bool = False
