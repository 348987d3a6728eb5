"""The weights a GPT starts from, before it has read anything.

``gpt2`` draws every matrix with one spread (0.02), the 2 L that write to the residual stream with 1/sqrt(2 L) of it,
so that the stream's variance does not grow with depth (Radford et al. 2019). ``fan_in`` lets every matrix keep the size
of what it maps (Yang et al., arXiv 2310.17813, as nanochat does); embeddings then have unit variance.
``zero_outputs`` starts blocks as the identity and an untied head as indifferent: the first loss is exactly ln(V).
"""

from __future__ import annotations

import math
from typing import Literal

from torch import nn
from transformers import initialization as init

from fintune.models.gpt.blocks import RMSNorm
from fintune.models.gpt.config import GPTConfig

Role = Literal["head", "output", "inner"]


def initialise(module: nn.Module, config: GPTConfig, role: Role) -> None:
    """Sets the own weights of one module; ``transformers`` goes through all of them.

    Functions of ``transformers.initialization`` leave alone what was just read from a checkpoint.

    Args:
        module: any module of a GPT.
        config: of the GPT.
        role: of a linear layer: the output head, the end of a block's half, or neither.
    """
    if isinstance(module, nn.Linear):
        _initialise_linear(module, config, role)
    elif isinstance(module, nn.Embedding):
        init.normal_(module.weight, std=_embedding_spread(config))
    elif isinstance(module, (nn.LayerNorm, RMSNorm)):
        init.ones_(module.weight)
        if isinstance(module, nn.LayerNorm) and module.bias is not None:
            init.zeros_(module.bias)


def _initialise_linear(linear: nn.Linear, config: GPTConfig, role: Role) -> None:
    is_tied = role == "head" and config.tie_word_embeddings
    if config.zero_outputs and role != "inner" and not is_tied:
        init.zeros_(linear.weight)
    else:
        init.normal_(linear.weight, std=_matrix_spread(linear, config, role))
    if linear.bias is not None:
        init.zeros_(linear.bias)


def _matrix_spread(linear: nn.Linear, config: GPTConfig, role: Role) -> float:
    if config.initialisation == "gpt2":
        halves = 2 * config.num_hidden_layers if role == "output" else 1
        return config.initializer_range / math.sqrt(halves)
    return float(linear.in_features**-0.5 * min(1.0, math.sqrt(linear.out_features / linear.in_features)))


def _embedding_spread(config: GPTConfig) -> float:
    # A tied head multiplies by the embedding: at unit variance its first logits would be as large as the width's root.
    return config.initializer_range if config.initialisation == "gpt2" or config.tie_word_embeddings else 1.0
