"""One block of a GPT: norm, attention, norm, feed-forward, each half added to the residual stream.

::

    x ──┬── norm ── attention ── + ──┬── norm ── feed-forward ── + ──
        └────────────────────────┘   └───────────────────────────┘

Shapes: B rows, T tokens, W width, I width inside the feed-forward block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from fintune.models.gpt.attention import Attention
from fintune.models.gpt.config import GPTConfig
from fintune.models.gpt.positions import Rotation


class RMSNorm(nn.Module):
    """``weight * x / rms(x)`` over the last dimension, in the type of ``x``.

    PyTorch's own module gives up its fused kernel where ``x`` is narrower than the weight.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, hidden: Tensor) -> Tensor:
        """The norm of hidden states of any shape (..., W)."""
        return nn.functional.rms_norm(hidden, self.weight.shape, self.weight.to(hidden.dtype), self.eps)


def make_norm(config: GPTConfig) -> nn.Module:
    """The kind of norm the configuration asks for."""
    if config.norm == "rmsnorm":
        return RMSNorm(config.hidden_size, config.norm_eps)
    return nn.LayerNorm(config.hidden_size, config.norm_eps, bias=config.biases)


class FeedForward(nn.Module):
    """``down(gelu(up(x)))``, ``down(relu(up(x))^2)`` or ``down(silu(gate(x)) * up(x))``."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        assert inner is not None  # the configuration fills it in
        self.activation = config.activation
        self.gate_proj = nn.Linear(width, inner, bias=config.biases) if self.activation == "swiglu" else None
        self.up_proj = nn.Linear(width, inner, bias=config.biases)
        self.down_proj = nn.Linear(inner, width, bias=config.biases)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, T, W) for (B, T, W)."""
        inner = self.up_proj(hidden)
        if self.gate_proj is not None:
            inner = nn.functional.silu(self.gate_proj(hidden)) * inner
        elif self.activation == "relu2":
            inner = nn.functional.relu(inner).square()
        else:
            inner = nn.functional.gelu(inner, approximate="tanh")
        out: Tensor = self.down_proj(inner)
        return out


class Block(GradientCheckpointingLayer):  # type: ignore[no-untyped-call]  # transformers hooks into subclassing
    """Attention and feed-forward, each behind a norm and added to its input."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = make_norm(config)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = make_norm(config)
        self.mlp = FeedForward(config)

    def forward(
        self,
        hidden: Tensor,
        turn: Rotation | None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """(B, T, W) for (B, T, W); arguments as of ``Attention``."""
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), turn, attention_mask, past_key_values, **kwargs)
        hidden = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return hidden
