"""One way to run a ``transformers`` model on a batch: logits only where a loss edge starts.

Enters: a model and batches. Leaves: their loss or log-probabilities, where possible without whole logits ever existing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, get_args

import torch
from torch import Tensor, nn

from fintune.inference.heads import OutputHead, find_head, head_replaced, say_plain
from fintune.kernels.edge_loss import edge_cross_entropy, edge_log_probabilities
from fintune.kernels.linear_edge_loss import (
    LinearHead,
    LossEdges,
    linear_edge_cross_entropy,
    linear_edge_log_probabilities,
)
from fintune.kernels.tree_attention import ATTENTION_NAME, BLOCKWISE, Backend, TreeContext, register
from fintune.kernels.tree_flash import MOST_SIZE
from fintune.kernels.triton_use import triton_is_installed
from fintune.models.fast_layers import FastLayers, Memory, fast_layers
from fintune.models.fast_layers import say_plain as say_plain_layers
from fintune.models.load import is_ampere_or_newer
from fintune.models.window import learned_positions
from fintune.schema.errors import InternalError, ModelError
from fintune.schema.recipe import Packing
from fintune.trees.packing import Batch, PaddedBatch

log = logging.getLogger(__name__)

# Rope types whose frequencies look at the longest position of the batch, so a sample would depend on its company.
_BATCH_DEPENDENT_ROPE = {"dynamic", "longrope"}


def choose_backend(attention: str, device: torch.device, config: Any = None) -> Backend:
    """The attention backend for ``auto`` or a backend's name on ``device``.

    Args:
        attention: what the recipe says.
        device: of the model.
        config: of the model, whose heads may be too large for our own kernels; None where they are known not to be.

    Raises:
        ModelError: it has no kernels for the device, or Triton is not installed.
    """
    if attention == "auto":
        if device.type != "cuda" or not is_ampere_or_newer(device):
            return "sdpa"
        return "triton" if triton_is_installed() and _head_size(config) <= MOST_SIZE else "flex"
    backend: Backend = next(known for known in get_args(Backend) if known == attention)
    if backend in BLOCKWISE and device.type != "cuda":
        raise ModelError(f"model.attention={attention} needs a CUDA device.", "Set model.attention=auto or sdpa.")
    if backend == "triton" and not triton_is_installed():
        raise ModelError("model.attention=triton needs Triton, which is not installed.", "Set model.attention=auto.")
    return backend


def _head_size(config: Any) -> int:
    if config is None:
        return 0
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)


def supported_packing(config: Any, wanted: Packing) -> tuple[Packing, str]:
    """The packing a model can use exactly, and why when it is not the one wanted (empty string otherwise)."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    if wanted == "none":
        return wanted, ""
    layer_types = set(getattr(text, "layer_types", None) or ())
    if layer_types - {"full_attention", "sliding_attention"} or getattr(text, "is_recurrent", False):
        return "none", f"{text.model_type} has layers that are not attention, so samples are padded instead of packed"
    if _rope_types(text) & _BATCH_DEPENDENT_ROPE:
        return "none", f"{text.model_type} scales RoPE by the longest position of the batch, so samples are padded"
    experts = getattr(text, "num_local_experts", None) or getattr(text, "num_experts", None)
    if wanted == "tree" and experts and getattr(text, "output_router_logits", False):
        return "sequence", f"{text.model_type} balances its experts per token, so prefixes are not shared"
    return wanted, ""


def _rope_types(config: Any) -> set[str]:
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    nested = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
    return {kind for item in nested if (kind := item.get("rope_type", item.get("type")))}


class EdgeModel:
    """A model prepared to run on batches: tree attention for ``TreeBatch``, the model's own for ``PaddedBatch``.

    Args:
        model: causal language model of ``transformers``, with or without peft adapters.
        backend: attention backend for trees.
        compute_dtype: precision of matrix products; below fp32 they run under autocast, so that fp32 adapters
            multiply in the base's type.
        fast: run decoder layers by our own kernels and compute losses from hidden states, wherever the architecture
            allows; False is the plain path throughout: transformers' layers, peft's adapters and whole logits.
    """

    def __init__(
        self, model: Any, backend: Backend, compute_dtype: torch.dtype = torch.float32, *, fast: bool = True
    ) -> None:
        register()
        self.model = model
        self.backend = backend
        self.compute_dtype = compute_dtype
        self.fast = fast
        self.memory: Memory = "keep"
        self.whole_layers = 0

    @property
    def device(self) -> torch.device:
        """Where the model's inputs belong."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def is_blockwise(self) -> bool:
        """Whether attention walks blocks on a GPU: sizes should then be few, for each is compiled or recorded."""
        return self.backend in BLOCKWISE

    def logits(self, batch: Batch, model: nn.Module | None = None) -> tuple[Tensor, Tensor]:
        """Logits where edges start, and for each edge its row in them.

        Args:
            batch: batch on the model's device.
            model: the wrapped model to call (DDP and the like); the model itself when None.

        Returns:
            (P, V) logits and (E,) rows.
        """
        inputs, rows = self._inputs(batch)
        return self._call(inputs, model).flatten(0, 1), rows

    def precision(self) -> AbstractContextManager[Any]:
        """What the model is to be called in, so that matrix products are computed in its type."""
        if self.compute_dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.compute_dtype)

    def _call(self, inputs: dict[str, Any], model: nn.Module | None) -> Tensor:
        """The output of the head, or of what stands in its place."""
        call = model if model is not None else self.model
        tree = inputs.get("tree")
        layers = self.fast_layers() if tree is not None else None
        with self.precision(), nullcontext() if layers is None else layers.active(self.memory, self.whole_layers):
            output: Tensor = call(**inputs, use_cache=False).logits
        if tree is not None and not tree.calls:
            raise ModelError(
                f"The attention of {type(self._unwrapped).__name__} cannot be replaced, so it ignored the token tree.",
                "Set training.packing=none.",
            )
        return output

    def _inputs(self, batch: Batch) -> tuple[dict[str, Any], Tensor]:
        """What to call the model with, and for each edge its row among the positions kept."""
        if isinstance(batch, PaddedBatch):
            self.use_plain_attention()
            columns, edge_column = torch.unique(batch.edge_column, return_inverse=True)
            inputs = {"input_ids": batch.tokens, "attention_mask": batch.attention_mask, "logits_to_keep": columns}
            return inputs, batch.edge_row * len(columns) + edge_column
        self._require_positions(batch.depth)
        self.set_attention(ATTENTION_NAME)
        return {
            "input_ids": batch.tokens[None],
            "position_ids": batch.depth[None],
            "logits_to_keep": batch.parents,
            "tree": TreeContext(batch.subtree_end, batch.depth, self.backend, batch.equal_rows),
        }, batch.edge_parent

    def _require_positions(self, depth: Tensor) -> None:
        """Refuses positions that were never learned; on a GPU, where to look is to wait, the lookup itself fails."""
        most = learned_positions(self.model.config)
        if most is None or len(depth) <= most or depth.device.type == "cuda":
            return
        if (longest := int(depth.max()) + 1) > most:
            raise ModelError(
                f"The batch holds a text of {longest:,} tokens, but the model learned {most:,} positions.",
                f"Set training.max_length={most}.",
            )

    def loss_sum(self, batch: Batch, model: nn.Module | None = None) -> Tensor:
        """Weighted sum of the edges' cross-entropy; the caller divides by the step's total weight."""
        return self.loss_by_edge(batch, model)[0]

    def loss_by_edge(self, batch: Batch, model: nn.Module | None = None) -> tuple[Tensor, Tensor]:
        """``loss_sum``, and each edge's unweighted loss (E,) without gradient."""
        head = self.output_head()
        if head is None:
            logits, rows = self.logits(batch, model)
            whole, log_p = edge_cross_entropy(logits, rows, batch.edge_target, batch.edge_weight)
            return whole, -log_p
        found: list[Tensor] = []

        def loss(hidden: Tensor, linear: LinearHead, rows: Tensor) -> Tensor:
            total, log_p = linear_edge_cross_entropy(
                hidden, linear, LossEdges(rows, batch.edge_target, batch.edge_weight)
            )
            found.append(-log_p)
            return total

        return self._in_place_of_head(head, batch, model, loss).sum(), found[0]

    @torch.no_grad()  # not inference_mode, whose tensors compiled FlexAttention refuses
    def edge_log_probabilities(self, batch: Batch) -> Tensor:
        """(E,) fp32 log-probabilities of the edges' targets."""
        head = self.output_head()
        if head is None:
            logits, rows = self.logits(batch)
            return edge_log_probabilities(logits, rows, batch.edge_target)
        return self._in_place_of_head(
            head,
            batch,
            None,
            lambda hidden, linear, rows: linear_edge_log_probabilities(hidden, linear, rows, batch.edge_target),
        ).flatten()

    def output_head(self) -> OutputHead | None:
        """The head where losses are computed from hidden states; None, and a line in the log, where they cannot be."""
        if not self.fast:
            return None
        found = find_head(self._unwrapped)
        if isinstance(found, str):
            say_plain(found)
            return None
        return found

    def _in_place_of_head(
        self,
        head: OutputHead,
        batch: Batch,
        model: nn.Module | None,
        function: Callable[[Tensor, LinearHead, Tensor], Tensor],
    ) -> Tensor:
        """Runs the model with ``function`` of (P, H) hidden states, the head and (E,) rows where the head would be."""
        inputs, rows = self._inputs(batch)
        linear, calls = head.linear(), 0

        def replacement(hidden: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            hidden, own_rows = hidden.flatten(0, 1), rows
            if isinstance(batch, PaddedBatch):  # not every row of the batch has an edge in every column kept
                used, own_rows = torch.unique(rows, return_inverse=True)
                hidden = hidden.index_select(0, used)
            return function(hidden, linear, own_rows).view(1, 1, -1)

        with head_replaced(head, replacement):
            output = self._call(inputs, model)
        if calls != 1:
            raise InternalError(
                f"The head of {type(self._unwrapped).__name__} was called {calls} times in one forward pass.",
                "Report it; until then whole logits can be had with EdgeModel(..., fast=False).",
            )
        return output

    def fast_layers(self) -> FastLayers | None:
        """The decoder layers where our kernels can run them; None, and a line in the log, where they cannot."""
        if not self.fast:
            return None
        found = fast_layers(self.model, self.compute_dtype)
        if isinstance(found, str):
            say_plain_layers(type(self._unwrapped).__name__, found)
            return None
        return found

    def end_training(self) -> None:
        """Puts the model into evaluation mode and gives back the memory that only training is quicker with."""
        self.model.eval()
        layers = self.fast_layers()
        if layers is not None:
            layers.release()

    def use_plain_attention(self) -> None:
        """Puts the architecture's own attention back, for padded rows and for code that knows nothing of trees."""
        self.set_attention("sdpa" if self._unwrapped._supports_sdpa else "eager")

    @property
    def _unwrapped(self) -> Any:
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def set_attention(self, name: str) -> None:
        """Makes all layers use the attention registered under ``name``."""
        if self.model.config._attn_implementation != name:
            self._unwrapped.set_attn_implementation(name)
