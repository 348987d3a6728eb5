"""Attention over a tree by our own Triton kernels, forward and backward.

::

            keys                       forward, dq: a program per block of queries and head walks a row;
          0 1 2 3 4 5                  dk, dv: a program per block of keys and key head walks a column.
        0 p
        1 f p                          p: seen in part, f: seen in full, so no mask is calculated.
    q   2 f . p                        Column 0, a prefix that all samples share, is long: it is cut into units
        3 f . p p                      that work side by side and whose sums are added up in a fixed order.
        4 f . . . p
        5 f . . . p p

Enters: (1, H, T, D) queries and (1, G, T, D) keys and values, with any strides but features side by side. Leaves: the
outputs, (T, H, D) in memory, as the output layer wants them. The same call gives the same bits, lengths do not
recompile, and nothing waits for the device, so the calls may be recorded in a CUDA graph.

Shapes: T tokens, H query heads, G key-value heads, D head size.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fintune.kernels.tree_blocks import BlockLists, Units, block_lists, deal, seen_blocks
from fintune.schema.errors import ModelError

MOST_SIZE = 256  # features of a head
HOPPER_SHARED_BYTES = 227 * 1024  # what a program can have; 163 KiB on an A100, 99 on smaller cards
WORKERS = 512  # programs that keep a device of some 130 processors busy to the end
LEAST_ITEMS = 16  # blocks of queries times heads of a group; shorter work is not cut
_SLOT_BYTES = 1 << 25  # of partial sums
_FEWEST_SLOTS, _SLOTS_PER_BLOCK = 32, 4


class Tile(NamedTuple):
    """How many queries and keys a kernel takes at a time, its warps, and how many tiles are in flight."""

    queries: int
    keys: int
    warps: int
    stages: int


class Tiling(NamedTuple):
    """The tiles of the kernels for outputs, for gradients of queries, and for those of keys and values."""

    forward: Tile
    query_gradient: Tile
    key_gradient: Tile


def tiling(size: int, dtype: torch.dtype, shared_bytes: int = HOPPER_SHARED_BYTES) -> Tiling:
    """Tiles whose sums stay in registers and whose operands fit into the shared memory of a card.

    Measured on an H200 only; on cards with less shared memory large heads get tiles that fit.
    """
    if dtype == torch.float32:  # without tensor cores, whose fp32 is cut off: for comparisons, not for speed
        tile = Tile(32, 32, 8, 1) if size <= 64 else Tile(16, 16, 4, 1)
        return Tiling(tile, tile, tile)
    if size <= 64:
        return Tiling(Tile(128, 64, 4, 3), Tile(128, 64, 8, 3), Tile(64, 64, 4, 3))
    if size <= 128:
        return Tiling(Tile(128, 64, 8, 3), Tile(128, 64, 8, 2), Tile(64, 64, 4, 2))
    if shared_bytes < HOPPER_SHARED_BYTES:
        return Tiling(Tile(64, 32, 4, 2), Tile(32, 32, 4, 2), Tile(32, 32, 4, 2))
    return Tiling(Tile(128, 64, 8, 2), Tile(128, 32, 8, 2), Tile(32, 64, 8, 2))


@dataclass(frozen=True, eq=False)
class TreeWork:
    """Who sees whom, in blocks; what is asked for is worked out once and shared by all layers.

    Attributes:
        subtree_end: (T,) int32.
        depth: (T,) int32.
        window: levels of ancestors that are visible, the token itself included; None for all.
        tiling: of the kernels.
        slots: how many partial sums of the backward pass there are; by their size in memory when None.
        least_items: blocks of queries times heads of a group below which the work of a key block is not cut.
        workers: programs that keep the device busy.
    """

    subtree_end: Tensor
    depth: Tensor
    window: int | None
    tiling: Tiling
    slots: int | None = None
    least_items: int = LEAST_ITEMS
    workers: int = WORKERS
    _known: dict[Any, Any] = field(default_factory=dict)

    def keys(self, tile: Tile) -> BlockLists:
        """For each block of queries, its blocks of keys."""
        name = ("keys", tile.queries, tile.keys)
        if name not in self._known:
            self._known[name] = block_lists(*self._seen(tile))
        known: BlockLists = self._known[name]
        return known

    def queries(self, tile: Tile) -> BlockLists:
        """For each block of keys, its blocks of queries."""
        name = ("queries", tile.queries, tile.keys)
        if name not in self._known:
            self._known[name] = block_lists(*(chosen.T for chosen in self._seen(tile)))
        known: BlockLists = self._known[name]
        return known

    def units(self, heads: int, groups: int, size: int) -> Units:
        """The work on the keys and values of ``groups`` heads of ``size`` features, seen by ``heads`` query heads."""
        name = ("units", heads, groups, size)
        if name not in self._known:
            tile = self.tiling.key_gradient
            lists = self.queries(tile)
            slots = self.slots
            if slots is None:
                slot_bytes = 8 * groups * tile.keys * size
                slots = max(_FEWEST_SLOTS, min(_SLOTS_PER_BLOCK * len(lists.seen), _SLOT_BYTES // slot_bytes))
            least = max(1, self.least_items * groups // heads)
            self._known[name] = deal(lists, groups, slots=slots, least=least, workers=self.workers)
        known: Units = self._known[name]
        return known

    def _seen(self, tile: Tile) -> tuple[Tensor, Tensor]:
        return seen_blocks(self.subtree_end, self.depth, self.window, tile.queries, tile.keys)


def tree_work(subtree_end: Tensor, depth: Tensor, window: int | None, size: int, dtype: torch.dtype) -> TreeWork:
    """The work on a tree with heads of ``size`` features of a type.

    Raises:
        ModelError: heads are larger than the kernels' tiles.
    """
    if size > MOST_SIZE:
        raise ModelError(
            f"Attention heads of {size} features are more than the {MOST_SIZE} our kernels take.",
            "Set model.attention=flex.",
        )
    tiles = tiling(size, dtype, _shared_bytes(subtree_end.device))
    return TreeWork(subtree_end.to(torch.int32), depth.to(torch.int32), window, tiles)


@functools.cache
def _shared_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return HOPPER_SHARED_BYTES  # in the interpreter nothing is too large
    properties: Any = torch.cuda.get_device_properties(device)
    return int(properties.shared_memory_per_block_optin)


def tree_flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    work: TreeWork,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
) -> Tensor:
    """The attention of every query to itself and its ancestors.

    Args:
        query: (1, H, T, D), bf16, fp16 or fp32, on a device that Triton knows.
        key: (1, G, T, D), in the same type.
        value: (1, G, T, D), likewise.
        work: of the tree.
        scaling: factor on the scores, positive; 1/sqrt(D) when None.
        softcap: bound of the scores, ``softcap * tanh(scores / softcap)``.

    Returns:
        (1, H, T, D), a view of (T, H, D) in memory. So are the gradients.
    """
    scaling = query.shape[3] ** -0.5 if scaling is None else scaling
    states = _with_whole_rows(query), _with_whole_rows(key), _with_whole_rows(value)
    if torch.is_grad_enabled() and any(part.requires_grad for part in states):
        function: Any = _TreeFlash.apply
        out: Tensor = function(*states, work, scaling, softcap)
        return out
    return tree_flash_forward(*states, work, scaling, softcap, want_lse=False)[0]


def tree_flash_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    work: TreeWork,
    scaling: float,
    softcap: float | None,
    *,
    want_lse: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """The outputs of ``tree_flash``, and where wanted the (H, T) fp32 base-2 logarithms of the sums in the softmax."""
    from fintune.kernels import tree_flash_triton

    rows, lse = tree_flash_triton.forward(query, key, value, work, scaling, softcap, want_lse)
    return _by_head(rows), lse


class _TreeFlash(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, work: TreeWork, scaling: float, softcap: float | None
    ) -> Tensor:
        out, lse = tree_flash_forward(query, key, value, work, scaling, softcap)
        ctx.work, ctx.scaling, ctx.softcap = work, scaling, softcap
        ctx.save_for_backward(query, key, value, out, lse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        from fintune.kernels import tree_flash_keys_triton, tree_flash_triton

        query, key, value, out, lse = ctx.saved_tensors
        d_out, how = _with_whole_rows(d_out), (ctx.work, ctx.scaling, ctx.softcap)
        d_query, delta = tree_flash_triton.query_gradient(d_out, query, key, value, out, lse, *how)
        gradients = (d_query, *tree_flash_keys_triton.key_gradients(d_out, query, key, value, lse, delta, *how))
        return *(_by_head(part) for part in gradients), None, None, None


def _by_head(rows: Tensor) -> Tensor:
    """(1, H, T, D) of (T, H, D)."""
    return rows.transpose(0, 1).unsqueeze(0)


def _with_whole_rows(states: Tensor) -> Tensor:
    """With the features of a head side by side, as the kernels read them; a copy where they are not."""
    return states if states.stride(3) == 1 else states.contiguous()
