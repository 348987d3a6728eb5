"""Which blocks of tokens see which in a tree, and how the work of the backward pass is dealt out, all on the device.

Enters: ``subtree_end`` and ``depth`` of T tokens. Leaves: for each block of queries its blocks of keys and the other
way round, those that need no mask first; and units of nearly equal work, into which the long columns of keys that many
samples share are cut. Nothing waits for the device, so all of it may be recorded in a CUDA graph.

Shapes: T tokens, Q blocks of queries, K blocks of keys, B blocks of either, U units.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

_DEEP = 2**30  # deeper than any token


class BlockLists(NamedTuple):
    """For each block of one side, the blocks of the other that it has to do with.

    Attributes:
        blocks: (B, other B) int32; first those seen in full, then those seen in part, then the rest.
        full: (B,) int32, how many are seen in full.
        seen: (B,) int32, how many are seen in full or in part.
    """

    blocks: Tensor
    full: Tensor
    seen: Tensor


class Units(NamedTuple):
    """Work on keys: each unit is some of the query blocks of one key block.

    Attributes:
        table: (U, 4) int32, the longest first: key block, first place in its list, how many places, and the slot its
            sums go to, or -1 where it is the only unit of its key block. The last ones may have nothing to do.
        slots: (K, 2) int32, first slot of each key block and how many it has.
        n_slots: how many slots there are.
    """

    table: Tensor
    slots: Tensor
    n_slots: int


def seen_blocks(
    subtree_end: Tensor, depth: Tensor, window: int | None, query_block: int, key_block: int
) -> tuple[Tensor, Tensor]:
    """(Q, K) bool: which blocks of keys are seen at all, and which in full, from least and greatest values of each.

    A block of keys before a block of queries is seen in part where its last subtree ends behind the first query, and in
    full where its first subtree ends behind the last. An unfinished last block is never seen in full.
    """
    size = len(subtree_end)
    first, behind = _bounds(size, query_block, subtree_end.device)
    key_first, key_behind = _bounds(size, key_block, subtree_end.device)
    last_end, first_end = _by_block(subtree_end, key_block, 0).amax(1), _by_block(subtree_end, key_block, size).amin(1)
    first, behind = first[:, None], behind[:, None]
    earlier = key_behind <= first
    shared = (key_first < behind) & ~earlier  # tokens that are in both blocks see themselves
    seen = shared | (earlier & (last_end > first))
    full = earlier & (first_end >= behind) & (behind - first == query_block)
    if window is not None:
        lowest, highest = _by_block(depth, query_block, _DEEP).amin(1), _by_block(depth, query_block, -1).amax(1)
        key_lowest, key_highest = _by_block(depth, key_block, _DEEP).amin(1), _by_block(depth, key_block, -1).amax(1)
        seen &= lowest[:, None] - key_highest < window
        full &= highest[:, None] - key_lowest < window
    return seen, seen & full


def _bounds(size: int, block: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """First token of each block and one past its last."""
    first = torch.arange(0, size, block, device=device)
    return first, (first + block).clamp(max=size)


def _by_block(values: Tensor, block: int, filler: int) -> Tensor:
    missing = -len(values) % block
    return nn.functional.pad(values, (0, missing), value=filler).view(-1, block)


def block_lists(seen: Tensor, full: Tensor) -> BlockLists:
    """For each row the columns chosen, in order, those in ``full`` first."""
    in_full, in_all = full.sum(1, dtype=torch.int32), seen.sum(1, dtype=torch.int32)
    place = torch.where(
        full,
        full.cumsum(1) - 1,
        torch.where(seen, (seen & ~full).cumsum(1) + (in_full[:, None] - 1), (~seen).cumsum(1) + (in_all[:, None] - 1)),
    )
    number = torch.arange(seen.shape[1], dtype=torch.int32, device=seen.device).expand(seen.shape)
    blocks = torch.empty(seen.shape, dtype=torch.int32, device=seen.device).scatter_(1, place, number)
    return BlockLists(blocks, in_full, in_all)


def deal(lists: BlockLists, groups: int, *, slots: int, least: int, workers: int) -> Units:
    """Cuts each key block's list into units that are no longer than they have to be.

    A unit has at most C places: C is the least of ``least``, twice that, four times that and so on with which the
    pieces of all lists that are cut fit into the slots, and one unit is one part in ``workers`` of the work or more,
    below which cutting only costs memory traffic.

    Args:
        lists: of the key blocks.
        groups: key heads; each does every unit.
        slots: how many pieces of lists that are cut there may be.
        least: places below which no list is cut.
        workers: programs that keep the device busy.
    """
    (columns, most), device = lists.blocks.shape, lists.blocks.device
    lengths = lists.seen.long()
    candidates = least << torch.arange(((most - 1) // least).bit_length() + 1, device=device)
    pieces = -(-lengths // candidates[:, None])
    fits = (torch.where(pieces > 1, pieces, 0).sum(1) <= slots) & (candidates * workers >= lengths.sum() * groups)
    fits |= candidates >= most  # the greatest always does: with it no list is cut
    choice = fits.to(torch.int8).argmax(0, keepdim=True)
    longest, pieces = candidates.index_select(0, choice), pieces.index_select(0, choice)[0]
    own_slots = torch.where(pieces > 1, pieces, 0)
    first_slot = own_slots.cumsum(0) - own_slots

    ends = pieces.cumsum(0)
    number = torch.arange(columns + slots, device=device)
    column = torch.searchsorted(ends, number, right=True).clamp(max=columns - 1)
    piece = number - (ends - pieces)[column]
    count = (lengths[column] - piece * longest).clamp(min=0).minimum(longest)
    slot = torch.where(pieces[column] > 1, first_slot[column] + piece, -1)
    table = torch.stack([column, piece * longest, count, slot], 1).to(torch.int32)
    order = count.argsort(descending=True, stable=True)
    return Units(table[order], torch.stack([first_slot, own_slots], 1).to(torch.int32), slots)
