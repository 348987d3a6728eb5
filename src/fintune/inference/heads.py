"""The output head of a ``transformers`` model, and running the model with something else in its place.

Enters: a causal language model. Leaves: its head where the logits are exactly ``head(hidden)``, perhaps capped, or the
reason why not; and a context in which the head's place is taken by a function of the hidden states.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor, nn

from fintune.kernels.linear_edge_loss import LinearHead

log = logging.getLogger(__name__)

# Architectures whose forward does nothing to hidden states and logits but slice, apply the head and cap. Others scale
# (Granite, Cohere), cast or reorder logits, which only their own forward knows.
_PLAIN_HEADS = {
    "arcee",
    "ernie4_5",
    "exaone4",
    "fintune_gpt",
    "gemma",
    "gemma2",
    "gemma3_text",
    "glm",
    "glm4",
    "helium",
    "llama",
    "ministral",
    "mistral",
    "mixtral",
    "nemotron",
    "olmo",
    "olmo2",
    "olmo3",
    "phi",
    "phi3",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "seed_oss",
    "smollm3",
    "stablelm",
    "starcoder2",
}
_KNOWN_CODE = ("transformers.models.", "fintune.models.gpt.")
_CAP, _FP8 = "final_logit_softcapping", "fp8_head"


@dataclass(frozen=True)
class OutputHead:
    """A head that may be replaced: the layer, and the configuration that caps its logits."""

    layer: nn.Linear
    config: Any

    def linear(self) -> LinearHead:
        """The head as the kernel takes it."""
        cap, fp8 = getattr(self.config, _CAP, None), getattr(self.config, _FP8, False)
        return LinearHead(self.layer.weight, self.layer.bias, softcap=cap, fp8=fp8)


def find_head(model: Any) -> OutputHead | str:
    """The model's head, or why the loss cannot be computed from hidden states.

    Args:
        model: the ``transformers`` model itself, not its peft wrapper.
    """
    kind = getattr(model.config, "model_type", type(model).__name__)
    known = type(model).__module__.startswith(_KNOWN_CODE)
    if not known or kind not in _PLAIN_HEADS or not type(model).__name__.endswith("ForCausalLM"):
        return f"{type(model).__name__} may change its logits after the head"
    layer: Any = model.get_output_embeddings()
    if type(layer) is not nn.Linear:
        return f"the head is a {type(layer).__name__}, not a plain linear layer"
    expected: Any = getattr(model, "lm_head", None)
    if expected is not layer:
        return "the head is not where the architecture keeps it"
    if "forward" in vars(layer) or layer._forward_hooks or layer._forward_pre_hooks:
        return "something else is hooked into the head"
    if type(layer.weight) is not nn.Parameter or layer.weight.shape != (layer.out_features, layer.in_features):
        return f"the head's weight is a {type(layer.weight).__name__} that is gathered elsewhere"
    return OutputHead(layer, model.config)


@cache
def say_plain(reason: str) -> None:
    """Logs, once per reason, that the plain path computes all logits."""
    log.info("The loss is computed from whole logits: %s.", reason)


@contextmanager
def head_replaced(head: OutputHead, function: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Runs the block with ``function`` of the hidden states in place of the head, its result uncapped.

    The model is still called through whatever wraps it, and all that ``function`` uses lies inside that call, so that
    wrappers which follow the graph from the output (DDP) see every trained weight.
    """
    cap = getattr(head.config, _CAP, None)
    vars(head.layer)["forward"] = function
    if cap is not None:
        setattr(head.config, _CAP, None)
    try:
        yield
    finally:
        del vars(head.layer)["forward"]
        if cap is not None:
            setattr(head.config, _CAP, cap)
