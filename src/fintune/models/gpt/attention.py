"""Causal self-attention of one block.

Enters: normalised hidden states, and how positions turn heads. Leaves: what attention adds to the residual stream.
The products of queries and keys are left to an attention function of ``transformers``: SDPA, the plain one below, or
our tree attention, in which documents of one row do not see each other. Names of matrices are Llama's, so peft's usual
targets fit.

Shapes: B rows, T tokens, S keys (those in the cache included), H heads, D head size, W = H D.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from fintune.models.gpt.config import GPTConfig
from fintune.models.gpt.fused_heads import EPS, unit_turned_heads
from fintune.models.gpt.positions import Rotation, rotate


class Attention(nn.Module):
    """``x -> o(softmax(q k^T / sqrt(D)) v)`` with q, k and v linear in x."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer
        self.scaling = config.head_size**-0.5
        self.is_causal = True  # for SDPA without a mask
        self.is_joined = False  # one product for queries, keys and values: the same, and quicker in a compiled graph
        width = config.hidden_size
        self.q_proj = nn.Linear(width, width, bias=config.biases)
        self.k_proj = nn.Linear(width, width, bias=config.biases)
        self.v_proj = nn.Linear(width, width, bias=config.biases)
        self.o_proj = nn.Linear(width, width, bias=config.biases)

    def forward(
        self,
        hidden: Tensor,
        turn: Rotation | None,
        attention_mask: Tensor | None,
        past_key_values: Cache | None,
        **kwargs: Any,
    ) -> Tensor:
        """(B, T, W) for (B, T, W).

        Args:
            hidden: normalised hidden states.
            turn: rotation of the heads, or ``angle_table`` of it where norms and rotation are to take one pass over
                memory; None with learned positions.
            attention_mask: (B, 1, T, S) added to the scores, or None.
            past_key_values: keys and values of earlier tokens, extended in place; None without a cache.
            **kwargs: for the attention function; our tree attention finds ``tree`` here.
        """
        query, key, value = self._turned_heads(hidden, turn)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, plain_attention)
        call = _outside_graphs if self.config._attn_implementation.startswith("fintune_") else _directly
        mixed = call(attend, self, query, key, value, attention_mask, scaling=self.scaling, dropout=0.0, **kwargs)
        out: Tensor = self.o_proj(mixed.reshape(hidden.shape))
        return out

    def _turned_heads(self, hidden: Tensor, turn: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (B, H, T, D) each; queries and keys as the scores take them."""
        if turn is not None and turn[0].dim() == 2:
            heads = unit_turned_heads(self._joined(hidden).flatten(0, 1), turn, self.config.num_attention_heads)
            query, key, value = (part.view(*hidden.shape[:2], *part.shape[1:]).transpose(1, 2) for part in heads)
            return query, key, value
        columns = self._joined(hidden).chunk(3, dim=-1) if self.is_joined else [one(hidden) for one in self._layers()]
        query, key, value = map(self._heads, columns)
        if self.config.qk_norm:
            query, key = _unit_heads(query), _unit_heads(key)
        if turn is not None:
            query, key = rotate(query, turn), rotate(key, turn)
        return query.to(value.dtype), key.to(value.dtype), value  # autocast may compute a norm in fp32

    def _joined(self, hidden: Tensor) -> Tensor:
        """(B, T, 3 W): queries, keys and values as one product."""
        biases: list[Tensor] = [layer.bias for layer in self._layers() if layer.bias is not None]
        weight = torch.cat([layer.weight for layer in self._layers()])
        return nn.functional.linear(hidden, weight, torch.cat(biases) if biases else None)

    def _layers(self) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
        return self.q_proj, self.k_proj, self.v_proj

    def _heads(self, columns: Tensor) -> Tensor:
        """(B, H, T, D) of (B, T, W)."""
        return columns.view(*columns.shape[:2], self.config.num_attention_heads, self.config.head_size).transpose(1, 2)


def _unit_heads(heads: Tensor) -> Tensor:
    return nn.functional.rms_norm(heads, (heads.shape[-1],), eps=EPS)


def _directly(attend: Any, *args: Any, **kwargs: Any) -> Tensor:
    mixed: Tensor = attend(*args, **kwargs)[0]
    return mixed


@torch.compiler.disable  # type: ignore[untyped-decorator]  # PyTorch leaves it untyped
def _outside_graphs(attend: Any, *args: Any, **kwargs: Any) -> Tensor:
    """Our attention has kernels of its own, and masks that differ by batch: a compiled block steps out for it."""
    return _directly(attend, *args, **kwargs)


def plain_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Softmax attention written out: all scores exist at once.

    Args:
        module: the attention layer (unused beyond the convention).
        query: (B, H, T, D).
        key: (B, H, S, D).
        value: (B, H, S, D).
        attention_mask: (B, 1, T, S) added to the scores.
        scaling: factor on the scores.
        **kwargs: unused beyond the convention.

    Returns:
        (B, T, H, D), and the weights (B, H, T, S).
    """
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
    return (weights @ value).transpose(1, 2), weights
