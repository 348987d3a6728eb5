"""How much of a card a step uses: the floating-point work of the model itself, from its shapes and the step's batches.

Counted is what the model needs, once: forward, input gradients through frozen weights, everything of the adapters,
attention over the tokens that are seen, and the head where a loss starts. What is computed again to save memory, and
padding, are not. Model FLOP utilisation is that work over what the card's data sheet promises (arXiv 2204.02311).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fintune.models.shape import ModelShape
from fintune.schema.errors import ModelError, RecipeError
from fintune.training.speed import find_card
from fintune.trees.packing import Batch, PaddedBatch

_INPUT_ONLY, _WHOLE = 4, 6  # operations a weight and token: forward and one gradient, or both


@dataclass(frozen=True)
class Work:
    """What batches hold that costs operations.

    Attributes:
        tokens: distinct ones, without padding.
        attended: pairs of a token and one it sees, itself included; a sliding window is not looked at.
        logit_rows: positions whose logits the loss needs.
    """

    tokens: int = 0
    attended: int = 0
    logit_rows: int = 0

    @classmethod
    def of(cls, batches: Iterable[Batch]) -> Work:
        """Adds up batches; fillers, which only keep ranks in step, count nothing."""
        real = [batch for batch in batches if batch.n_samples]
        return cls(sum(batch.real_tokens for batch in real), sum(map(_attended, real)), sum(map(_logit_rows, real)))


def _attended(batch: Batch) -> int:
    if isinstance(batch, PaddedBatch):
        lengths: Tensor = batch.attention_mask.sum(1)
        return int((lengths * (lengths + 1) // 2).sum())
    return int(batch.depth[: batch.real_tokens].sum()) + batch.real_tokens  # a token sees its ancestors and itself


def _logit_rows(batch: Batch) -> int:
    return len(batch.edge_row) if isinstance(batch, PaddedBatch) else len(batch.parents)


@dataclass(frozen=True)
class ModelFlops:
    """Operations of one training step as a function of its work.

    Attributes:
        matrix: weights of the linear layers without the head.
        adapter: weights of all adapters.
        head: weights of the output head.
        width: query heads times their size times layers.
        trains_base: the base's own weights are trained.
    """

    matrix: int
    adapter: int
    head: int
    width: int
    trains_base: bool

    def of(self, work: Work) -> float:
        """Operations, a multiplication and an addition counting as two."""
        own = _WHOLE if self.trains_base else _INPUT_ONLY
        layers = (own * self.matrix + _WHOLE * self.adapter) * work.tokens
        attention = 2 * _WHOLE * self.width * work.attended  # two products forward, four backward
        return float(layers + attention + own * self.head * work.logit_rows)


def model_flops(shape: ModelShape, model: Any) -> ModelFlops:
    """The operations of a model to be trained.

    Args:
        shape: of its base.
        model: the model with its adapters; without any, all weights are taken to be trained.

    Raises:
        ModelError: the base has no attention heads, and what its layers do between their matrices is not known.
    """
    if not shape.heads:
        raise ModelError(
            f"The configuration of this {shape.architecture} model names no attention heads.",
            "Judge its speed by tokens a second.",
        )
    adapters = [p.numel() for name, p in model.named_parameters() if ".lora_A." in name or ".lora_B." in name]
    return ModelFlops(
        matrix=shape.matrix_parameters,
        adapter=sum(adapters),
        head=shape.vocabulary * shape.hidden,
        width=shape.heads * shape.head_size * shape.layers,
        trains_base=not adapters,
    )


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 operations a second by the card's data sheet (``speed.CARDS``); None for others and the CPU."""
    if device.type != "cuda":
        return None
    try:
        return find_card(torch.cuda.get_device_name(device)).bf16_tflops * 1e12
    except RecipeError:
        return None
