"""The loss of a GPT over rows of one length, as quick as PyTorch can make it: for pretraining on a stream of tokens.

Enters: a GPT, token ids and their targets. Leaves: their mean cross-entropy. Nothing but shapes decides what is
computed, so that all of it can be one compiled graph. Every way gives the same loss and gradients up to rounding.

Shapes: B rows, T tokens, N = B T, W width, V vocabulary, H heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from fintune.kernels.linear_edge_loss import LinearHead, LossEdges, chunk_rows, linear_edge_cross_entropy
from fintune.kernels.triton_use import triton_is_installed
from fintune.models.gpt.fused_heads import angle_table
from fintune.models.gpt.model import GPTForCausalLM, compile_blocks
from fintune.models.gpt.positions import Rotation
from fintune.schema.errors import ModelError

Compiled = Literal["no", "blocks", "whole"]
RowAttention = Literal["eager", "sdpa", "flash", "cudnn", "flex"]
HeadLoss = Literal["logits", "fused", "fp8"]

IGNORED = -100  # target of a position that has no loss, as in PyTorch
_FLEX = "gpt_flex"
_CHUNK_BYTES = 2**30  # beside the activations of a batch little, and quicker than chunks of a quarter of it
_KERNELS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}


@dataclass(frozen=True)
class RowOptions:
    """How the same loss is computed.

    Attributes:
        compiled: nothing, each block, or everything below the loss in one graph (with ``head="logits"`` the loss too).
        attention: ``eager`` holds all scores; ``sdpa`` leaves the kernel to PyTorch; ``flash`` and ``cudnn`` name it;
            ``flex`` keeps documents of a row apart, where ``end_of_document`` is given.
        head: ``logits`` holds all of them; ``fused`` makes gradients chunk by chunk, by our kernels on a GPU; ``fp8``
            is ``fused`` with products in fp8, as ``GPTConfig.fp8_head`` asks for it.
        chunk_rows: positions of a chunk of the fused head; None: on a GPU as many as ``_CHUNK_BYTES`` of logits are.
        joined: queries, keys and values are one product.
        fused_heads: norms and rotation of queries and keys take one pass over memory, for which the product is joined;
            None: on a GPU. Models without either are computed as always.
        mode: of ``torch.compile``.
        end_of_document: token that ends a document, for ``flex``.
    """

    compiled: Compiled = "whole"
    attention: RowAttention = "sdpa"
    head: HeadLoss = "fused"
    chunk_rows: int | None = None
    joined: bool = True
    fused_heads: bool | None = None
    mode: str | None = None
    end_of_document: int | None = None


class RowLoss:
    """``loss(ids, targets)``, both (B, T), with gradients for the weights of ``model``.

    Targets of ``IGNORED`` have no loss; the mean is over the others, and 0 where there are none.

    Shapes should stay the same from call to call. Call it in autocast for products in bf16.

    Args:
        model: the GPT; its attention is set, and its blocks are compiled in place under ``compiled="blocks"``.
        options: how.

    Raises:
        ModelError: no way of this name.
    """

    def __init__(self, model: GPTForCausalLM, options: RowOptions = RowOptions()) -> None:
        if options.attention not in get_args(RowAttention):
            raise ModelError(
                f"There is no attention over rows called {options.attention}.",
                f"Choose from {', '.join(get_args(RowAttention))}.",
            )
        self.model, self.options = model, options
        name = {"eager": "eager", "flex": _FLEX}.get(options.attention, "sdpa")
        if name == _FLEX:
            ALL_ATTENTION_FUNCTIONS.register(_FLEX, _flex)
        model.set_attn_implementation(name)
        for block in model.model.layers:
            block.self_attn.is_joined = options.joined
        self._hidden: Callable[..., Tensor] = self._plain_hidden
        self._whole: Callable[..., Tensor] = self._plain_loss
        settings: dict[str, Any] = {"dynamic": False, "mode": options.mode}
        if options.compiled == "blocks":
            compile_blocks(model, **settings)
        elif options.compiled == "whole":
            self._hidden = torch.compile(self._plain_hidden, fullgraph=True, **settings)
            self._whole = torch.compile(self._plain_loss, fullgraph=True, **settings)

    def __call__(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy (scalar, fp32) of (B, T) targets behind (B, T) ids."""
        with self._kernel():
            positions = torch.arange(ids.shape[1], device=ids.device)[None]
            # Not in the graph: every kernel that turns heads would compute sines and cosines again.
            turn, mask = self._turn(positions, len(ids)), self._mask(ids)
            if self.options.head == "logits":
                return self._whole(ids, targets, positions, turn, mask)
            return self._fused(self._hidden(ids, positions, turn, mask), targets)

    @contextmanager
    def _kernel(self) -> Iterator[None]:
        chosen = _KERNELS.get(self.options.attention)
        with nullcontext() if chosen is None else sdpa_kernel(chosen):
            yield

    def _turn(self, positions: Tensor, rows: int) -> Rotation | None:
        turn, fused = self.model.model.turn(positions), self.options.fused_heads
        fused = positions.is_cuda and triton_is_installed() if fused is None else fused
        return angle_table(turn, rows) if turn is not None and fused and self.model.config.qk_norm else turn

    def _mask(self, ids: Tensor) -> Any:
        if self.options.attention == "flex":
            return _document_mask(ids, self.options.end_of_document)
        if self.options.attention == "eager":
            size = ids.shape[1]
            return torch.full((1, 1, size, size), -torch.inf, device=ids.device).triu(1)
        return None

    def _plain_hidden(self, ids: Tensor, positions: Tensor, turn: Rotation | None, mask: Any) -> Tensor:
        trunk = self.model.model
        hidden: Tensor = trunk.through_blocks(trunk.embed(ids, positions), turn, mask, None)
        return hidden

    def _plain_loss(self, ids: Tensor, targets: Tensor, positions: Tensor, turn: Rotation | None, mask: Any) -> Tensor:
        logits = self.model.lm_head(self._plain_hidden(ids, positions, turn, mask)).float()
        if (cap := self.model.config.final_logit_softcapping) is not None:
            logits = cap * torch.tanh(logits / cap)
        flat = targets.flatten()
        summed = nn.functional.cross_entropy(logits.flatten(0, 1), flat, ignore_index=IGNORED, reduction="sum")
        return summed / (flat != IGNORED).sum().clamp(min=1)

    def _fused(self, hidden: Tensor, targets: Tensor) -> Tensor:
        config = self.model.config
        fp8 = config.fp8_head or self.options.head == "fp8"
        head = LinearHead(self.model.lm_head.weight, softcap=config.final_logit_softcapping, fp8=fp8)
        flat = targets.flatten()
        kept = flat != IGNORED  # edges of no weight stay, for a selection would wait for the GPU
        edges = LossEdges(
            torch.arange(len(flat), device=flat.device), flat.where(kept, 0), kept / kept.sum().clamp(min=1)
        )
        rows = self.options.chunk_rows
        if rows is None and hidden.device.type == "cuda":
            vocabulary, width = head.weight.shape
            rows = chunk_rows(len(flat), vocabulary, width, _CHUNK_BYTES, logit_bytes=hidden.element_size())
        return linear_edge_cross_entropy(hidden.flatten(0, 1), head, edges, rows=rows)[0]


def _document_mask(ids: Tensor, end_of_document: int | None) -> Any:
    """Causal within each document of a row: ``[q, k]`` is seen where k is no later and no document ends between."""
    from torch.nn.attention.flex_attention import create_block_mask

    ends = torch.zeros_like(ids) if end_of_document is None else (ids == end_of_document).long()
    document = ends.cumsum(1) - ends  # the token that ends a document belongs to it

    def sees(row: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) & (document[row, q] == document[row, k])

    rows, size = ids.shape
    return create_block_mask(sees, rows, None, size, size, device=ids.device.type)


def _flex(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float, **kwargs: Any
) -> tuple[Tensor, None]:
    """FlexAttention by its block mask, in the convention of ``transformers``: (B, T, H, D) of (B, H, T, D) heads."""
    from torch.nn.attention.flex_attention import flex_attention

    mixed: Any = flex_attention(query, key, value, block_mask=attention_mask, scale=scaling)
    return mixed.transpose(1, 2), None
