"""Which weights of a GPT are of which kind, for optimisers that treat them differently.

Enters: a GPT. Leaves: its trained weights by kind, each exactly once. Muon is for matrices that map hidden states to
hidden states; what is looked up by token, or maps to tokens, is better off with AdamW (Jordan et al. 2024,
kellerjordan.github.io/posts/muon).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from fintune.models.gpt.model import GPTForCausalLM


@dataclass(frozen=True)
class WeightKinds:
    """The trained weights of a GPT.

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


def weight_kinds(model: GPTForCausalLM) -> WeightKinds:
    """The trained weights of ``model`` by kind."""
    kinds = WeightKinds([], [], [], [])
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in embeddings:
            kinds.embeddings.append(parameter)
        elif parameter is model.lm_head.weight:
            kinds.head.append(parameter)
        elif parameter.ndim == 2:
            kinds.matrices.append(parameter)
        else:
            kinds.vectors.append(parameter)
    return kinds
