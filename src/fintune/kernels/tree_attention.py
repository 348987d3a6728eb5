"""Attention in which a token sees itself and its ancestors, as a ``transformers`` attention function.

Four backends share one definition, ``k <= q < subtree_end[k]``: FlexAttention and our kernels (GPU), SDPA over spans of
queries (anywhere), and ``eager``, the plain twin. Sliding windows are measured in depth, not in index. The model
finds the tree in the keyword argument ``tree``; without it the call fails rather than attend to siblings.

SDPA cuts the tokens into spans of C queries. In depth-first order, whatever a span's tokens see outside it are the
ancestors of its first token, so a span needs its own C keys and at most as many more as its first token is deep:
T (depth + C) products instead of T squared.

Shapes: T tokens, H query heads, G key-value heads, D head size, S spans, C queries a span, K keys a span.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fintune.kernels.tree_flash import TreeWork, tree_flash, tree_work
from fintune.kernels.triton_use import uses_triton
from fintune.schema.errors import InternalError, ModelError

ATTENTION_NAME = "fintune_tree"
MOST_KERNELS = 64
SPAN = 64
BLOCK = 128
Backend = Literal["flex", "triton", "sdpa", "eager"]
BLOCKWISE = ("flex", "triton")  # on GPUs, block by block of a tree; no scores are kept


def ancestor_mask(subtree_end: Tensor, depth: Tensor, window: int | None = None) -> Tensor:
    """The dense (T, T) mask: ``[q, k]`` is True where k is q or its ancestor, less than ``window`` levels up."""
    position = torch.arange(len(subtree_end), device=subtree_end.device)
    mask = (position[None, :] <= position[:, None]) & (position[:, None] < subtree_end[None, :])
    if window is not None:
        mask &= depth[:, None] - depth[None, :] < window
    return mask


@dataclass(frozen=True)
class SpanMask:
    """Which keys each span of queries gets, and which of them each query sees.

    Attributes:
        keys: (S, K) token index of each key; any index, not seen, where a span has fewer.
        seen: (S, 1, C, K) True where the query sees the key.
    """

    keys: Tensor
    seen: Tensor


def span_mask(subtree_end: Tensor, depth: Tensor, window: int | None = None, span: int = SPAN) -> SpanMask:
    """The ancestor mask cut into spans of ``span`` queries; queries past the last token see their own slot only."""
    size, device = len(subtree_end), subtree_end.device
    starts = torch.arange(0, size, span, device=device)
    position = torch.arange(size, device=device)
    outside = (position[None, :] < starts[:, None]) & (subtree_end[None, :] > starts[:, None])  # (S, T)
    most = int(outside.sum(1).max())
    # Ancestors first, in any order, then the span's own tokens.
    above = outside.to(torch.uint8).topk(most, dim=1).indices if most else position.new_zeros(len(starts), 0)
    own = starts[:, None] + torch.arange(span, device=device)
    keys = torch.cat([above, own.clamp(max=size - 1)], dim=1)
    real = torch.cat([outside.gather(1, above), own < size], dim=1)
    q, k = own[:, :, None], keys[:, None, :]
    seen = real[:, None, :] & (k <= q) & (q < subtree_end[k])
    if window is not None:
        seen &= depth[own.clamp(max=size - 1)][:, :, None] - depth[k] < window
    itself = torch.eye(span, dtype=torch.bool, device=device)
    seen[:, :, most:] |= itself & (own >= size)[:, :, None]
    return SpanMask(keys, seen[:, None])


@dataclass
class TreeContext:
    """What attention layers need to know of the batch; masks are built once per window and shared by all layers.

    Attributes:
        subtree_end: (T,) one past each token's last descendant.
        depth: (T,) positions.
        backend: flex, triton, sdpa or eager; triton is eager where there is no Triton.
        rows: where the tokens are samples of one length that share nothing, how many; else 0.
        calls: how often a layer attended over this tree; 0 after a forward pass means the model ignored it.
        layers: what runs in place of the model's layers, noted by them.
    """

    subtree_end: Tensor
    depth: Tensor
    backend: Backend
    rows: int = 0
    calls: int = 0
    layers: Any = None
    _masks: dict[Any, Any] = field(default_factory=dict)

    def mask(self, window: int | None) -> Any:
        """FlexAttention's ``BlockMask``, SDPA's ``SpanMask`` or the (T, T) bool mask, for a sliding window or none."""
        if window not in self._masks:
            build = {"flex": self._block_mask, "sdpa": self._span_mask}.get(self.backend, self._dense_mask)
            self._masks[window] = build(window)
        return self._masks[window]

    def work(self, window: int | None, query: Tensor) -> TreeWork:
        """The lists of blocks that ``tree_flash`` walks for heads like those of ``query``."""
        name = (window, query.shape[3], query.dtype)
        if name not in self._masks:
            self._masks[name] = tree_work(self.subtree_end, self.depth, *name)
        work: TreeWork = self._masks[name]
        return work

    def _span_mask(self, window: int | None) -> SpanMask:
        return span_mask(self.subtree_end, self.depth, window)

    def _dense_mask(self, window: int | None) -> Tensor:
        return ancestor_mask(self.subtree_end, self.depth, window)

    def _block_mask(self, window: int | None) -> Any:
        return block_mask(self.subtree_end, self.depth, window)


def block_mask(subtree_end: Tensor, depth: Tensor, window: int | None = None) -> Any:
    """FlexAttention's mask, block by block from the least and greatest values in each, never token by token.

    A block of keys before a block of queries is seen in part where its last subtree ends behind the first query, and in
    full where its first subtree ends behind the last. Without synchronisation, so it may be recorded in a CUDA graph.
    """
    from torch.nn.attention.flex_attention import BlockMask

    size = len(subtree_end)
    blocks = -(-size // BLOCK)

    def sees(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        seen = (k <= q) & (q < subtree_end[k])
        return seen if window is None else seen & (depth[q] - depth[k] < window)

    def by_block(values: Tensor, filler: int) -> Tensor:
        return nn.functional.pad(values, (0, blocks * BLOCK - size), value=filler).view(blocks, BLOCK)

    number = torch.arange(blocks, device=subtree_end.device)
    first, behind = number * BLOCK, ((number + 1) * BLOCK).clamp(max=size)  # queries of each block
    last_end, first_end = by_block(subtree_end, 0).amax(1), by_block(subtree_end, size).amin(1)
    earlier = number[None, :] < number[:, None]
    seen = (number[None, :] == number[:, None]) | (earlier & (last_end[None, :] > first[:, None]))
    full = earlier & (first_end[None, :] >= behind[:, None])
    if window is not None:
        lowest, highest = by_block(depth, 2**31).amin(1), by_block(depth, -1).amax(1)
        seen &= lowest[:, None] - highest[None, :] < window
        full &= highest[:, None] - lowest[None, :] < window
    return BlockMask.from_kv_blocks(
        *_ordered(seen & ~full), *_ordered(seen & full), BLOCK_SIZE=BLOCK, mask_mod=sees, seq_lengths=(size, size)
    )


def _ordered(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries has (1, 1, Q), and which, those first (1, 1, Q, K)."""
    order = torch.argsort(chosen.to(torch.int8), dim=1, descending=True, stable=True)
    return chosen.sum(1, dtype=torch.int32)[None, None], order.to(torch.int32)[None, None]


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    tree: TreeContext | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention over the tree in ``tree``, in the calling convention of ``transformers`` attention functions.

    Args:
        module: the attention layer (unused beyond the convention).
        query: (1, H, T, D).
        key: (1, G, T, D).
        value: (1, G, T, D).
        attention_mask: ignored; the tree is the mask.
        dropout: attention dropout; must be 0, as a mask shared between samples would tie their noise.
        scaling: factor on the scores; 1/sqrt(D) when None.
        sliding_window: levels of ancestors that are visible, the token itself included.
        softcap: bound of the scores, ``softcap * tanh(scores / softcap)`` (Gemma 2).
        tree: the batch's tree.
        **kwargs: anything else the model passes; attention sinks are refused.

    Returns:
        (1, T, H, D) and None in place of attention weights.

    Raises:
        ModelError: when no tree was given (a missing mask must never be a silent fallback), for attention sinks or
            attention dropout.
        InternalError: the queries are not those of the tree.
    """
    if tree is None:
        raise ModelError(
            f"{type(module).__name__} called tree attention without a tree, so tokens would see other samples.",
            "Set training.packing=none for this architecture.",
        )
    if kwargs.get("s_aux") is not None:
        raise ModelError("This model uses attention sinks, which tree attention lacks.", "Set training.packing=none.")
    if dropout:
        raise ModelError("Attention dropout is not supported over trees.", "Set attention_dropout to 0 in the config.")
    if query.shape[0] != 1 or query.shape[2] != len(tree.subtree_end):
        raise InternalError(f"Queries {tuple(query.shape)} do not match a tree of {len(tree.subtree_end)} tokens.")
    tree.calls += 1
    if tree.backend in BLOCKWISE and tree.rows and sliding_window is None and softcap is None:
        return _over_rows(query, key, value, tree.rows, scaling), None
    if tree.backend == "triton" and uses_triton(query, key, value):
        query, key = query.to(value.dtype), key.to(value.dtype)  # some models turn positions in fp32
        work = tree.work(sliding_window, query)
        out = tree_flash(query, key, value, work, scaling=scaling, softcap=softcap)
        return out.transpose(1, 2), None
    mask = tree.mask(sliding_window)
    if tree.backend == "flex":
        out = _flex(query, key, value, mask, scaling, softcap)
    elif tree.backend == "sdpa":
        out = _over_spans(query, key, value, mask, scaling, softcap)
    else:
        out = _eager(query, key, value, mask, scaling, softcap)
    return out.transpose(1, 2).contiguous(), None


def _over_rows(query: Tensor, key: Tensor, value: Tensor, rows: int, scaling: float | None) -> Tensor:
    """Plain causal attention of samples of one length: the fastest kernel PyTorch has for the card."""
    each = query.shape[2] // rows
    q, k, v = (
        part.squeeze(0).view(part.shape[1], rows, each, part.shape[3]).transpose(0, 1) for part in (query, key, value)
    )
    shares_keys = query.shape[1] != key.shape[1]
    out = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=shares_keys)
    return out.transpose(1, 2).flatten(0, 1).unsqueeze(0)


def _repeat_heads(states: Tensor, heads: int) -> Tensor:
    return states if states.shape[1] == heads else states.repeat_interleave(heads // states.shape[1], dim=1)


def _over_spans(
    query: Tensor, key: Tensor, value: Tensor, mask: SpanMask, scaling: float | None, softcap: float | None
) -> Tensor:
    """Every span as one row of a batch: (S, H, C, D) queries against (S, H, K, D) keys."""
    heads, size, width = query.shape[1:]
    spans, _, span, _ = mask.seen.shape
    padded = nn.functional.pad(query[0], (0, 0, 0, spans * span - size))
    queries = padded.view(heads, spans, span, width).transpose(0, 1)
    keys, values = (_repeat_heads(_of_spans(states, mask.keys), heads) for states in (key, value))
    if softcap is None:
        out = nn.functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask.seen, scale=scaling)
    else:
        out = _eager(queries, keys, values, mask.seen, scaling, softcap)
    return out.transpose(0, 1).reshape(1, heads, spans * span, width)[:, :, :size]


def _of_spans(states: Tensor, keys: Tensor) -> Tensor:
    """(S, G, K, D) rows of (1, G, T, D) states, gathered as an embedding: on the CPU its backward pass, unlike that of
    indexing, adds in a fixed order, without which a resumed run would not repeat to the bit.
    """
    _, groups, size, width = states.shape
    # In fp32, because the gradient of a shared key is a sum over all spans that see it.
    table = states[0].transpose(0, 1).reshape(size, groups * width).float()
    rows = nn.functional.embedding(keys, table).to(states.dtype)
    return rows.view(*keys.shape, groups, width).transpose(1, 2)


def _eager(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None, softcap: float | None
) -> Tensor:
    key, value = _repeat_heads(key, query.shape[1]), _repeat_heads(value, query.shape[1])
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.float().masked_fill(~mask, float("-inf"))
    return scores.softmax(-1).to(query.dtype) @ value


_compiled_flex: Any = None


@lru_cache
def _soft_cap(bound: float) -> Callable[..., Tensor]:
    # One function per bound: a fresh closure each call would recompile until the limit and then run unfused.
    def score_mod(score: Tensor, batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return bound * torch.tanh(score / bound)

    return score_mod


def _flex(query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float | None, softcap: float | None) -> Tensor:
    global _compiled_flex
    from torch.nn.attention.flex_attention import flex_attention

    if _compiled_flex is None:
        # Buckets, windows, heads and training or not each need a kernel; past the limit flex runs unfused.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_KERNELS)
        _compiled_flex = torch.compile(flex_attention, dynamic=False)  # kernels for any length take twice as long
    out: Tensor = _compiled_flex(
        query,
        key,
        value,
        score_mod=None if softcap is None else _soft_cap(softcap),
        block_mask=mask,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out


def register() -> None:
    """Makes ``attn_implementation="fintune_tree"`` known to ``transformers``."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, tree_attention)
