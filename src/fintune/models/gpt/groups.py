"""Which weights of a model are of which kind, for optimisers that treat them differently.

Enters: a GPT, or a decoder built like Llama. Leaves: its trained weights by kind, each exactly once. Muon is for
matrices that map hidden states to hidden states; what is looked up by token, or maps to tokens, is better off with
AdamW (Jordan et al. 2024, kellerjordan.github.io/posts/muon).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from fintune.schema.errors import ModelError


@dataclass(frozen=True)
class WeightKinds:
    """The trained weights of a model.

    Attributes:
        matrices: of the blocks.
        embeddings: of tokens, which may be the head too, and of positions.
        head: empty where it is tied.
        vectors: of norms, and biases.
    """

    matrices: list[nn.Parameter]
    embeddings: list[nn.Parameter]
    head: list[nn.Parameter]
    vectors: list[nn.Parameter]


def weight_kinds(model: PreTrainedModel) -> WeightKinds:
    """The trained weights of ``model`` by kind.

    Raises:
        ModelError: a weight has more than two dimensions, as those of experts and convolutions.
    """
    kinds = WeightKinds([], [], [], [])
    typed: Any = model
    head = typed.get_output_embeddings()
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim > 2:
            raise ModelError(
                f"{name} has {parameter.ndim} dimensions, and Muon is for matrices.", "Set training.optimizer=adamw."
            )
        if id(parameter) in embeddings:
            kinds.embeddings.append(parameter)
        elif head is not None and parameter is head.weight:
            kinds.head.append(parameter)
        elif parameter.ndim == 2:
            kinds.matrices.append(parameter)
        else:
            kinds.vectors.append(parameter)
    return kinds


def has_unit_embeddings(model: PreTrainedModel) -> bool:
    """Whether embeddings start at unit variance, as those of an optimised GPT; others start fifty times smaller."""
    config: Any = model.config
    return getattr(config, "initialisation", None) == "fan_in" and not config.tie_word_embeddings
