# mypy: ignore-errors
"""What the Triton kernels of tree attention share: addresses and factors on the host, tiles and the mask on the card.

Enters: states, tiles, a tree's work. Leaves: arguments of kernels, and functions that kernels call. Scores are in units
of log 2, so that exponentials are powers of two.
"""

from typing import TYPE_CHECKING

import triton
import triton.language as tl
from torch import Tensor

from fintune.kernels.row_tile import next_power_of_two

if TYPE_CHECKING:
    from fintune.kernels.tree_flash import TreeWork

LOG2_E = 1.4426950408889634
# Not infinite: a row whose first block hides all its keys must not become NaN. A power of two: its product with a
# factor is exact, so that a fused multiply-add of it and the rounded product leaves 0, no error that exp2 blows up.
HIDDEN = tl.constexpr(-(2.0**100))
DYNAMIC = ["tokens", "list_stride", "window"]  # arguments that are no reason to compile anew


def head_strides(*states: Tensor) -> list[int]:
    """Distances from head to head."""
    return [part.stride(1) for part in states]


def row_strides(**states: Tensor) -> dict[str, int]:
    """Constants, because many rows' addresses are then one register and as many known distances."""
    return {f"{name}_STRIDE": part.stride(2) for name, part in states.items()}


def score_factors(scaling: float, softcap: float | None) -> tuple[float, float]:
    """What products are multiplied by, and what the hyperbolic tangent of that is multiplied by where there is one."""
    if softcap is None:
        return float(scaling) * LOG2_E, 1.0
    return 2 * LOG2_E * float(scaling) / softcap, float(softcap) * LOG2_E


def launch_constants(query: Tensor, key: Tensor, work: "TreeWork", softcap: float | None) -> dict[str, int | bool]:
    """What is compiled in."""
    size = query.shape[3]
    return {
        "SIZE": size,
        "BLOCK_D": max(16, next_power_of_two(size)),
        "GROUP": query.shape[1] // key.shape[1],
        "GROUPS": key.shape[1],
        "WINDOW": work.window is not None,
        "SOFTCAP": softcap is not None,
    }


def tile_options(tile) -> dict[str, int]:
    """How Triton takes a tile."""
    return {"QUERIES": tile.queries, "KEYS": tile.keys, "num_warps": tile.warps, "num_stages": tile.stages}


@triton.jit
def load_rows(
    pointer, stride, start, rows, columns, tokens, SIZE: tl.constexpr, BLOCK_D: tl.constexpr, WHOLE: tl.constexpr
):
    """(rows, columns) of one head from token ``start`` on; zeros behind the last token, unless known to be WHOLE."""
    at = pointer + start.to(tl.int64) * stride + rows[:, None] * stride + columns[None, :]
    if WHOLE and SIZE == BLOCK_D:
        tile = tl.load(at)
    elif WHOLE:
        tile = tl.load(at, mask=(columns < SIZE)[None, :], other=0.0)
    elif SIZE == BLOCK_D:
        tile = tl.load(at, mask=(start + rows < tokens)[:, None], other=0.0)
    else:
        tile = tl.load(at, mask=(start + rows < tokens)[:, None] & (columns < SIZE)[None, :], other=0.0)
    return tile


@triton.jit
def store_rows(pointer, stride, start, rows, columns, tokens, tile, SIZE: tl.constexpr):
    """Writes what ``load_rows`` reads."""
    at = pointer + start.to(tl.int64) * stride + rows[:, None] * stride + columns[None, :]
    inside = (start + rows < tokens)[:, None] & (columns < SIZE)[None, :]
    tl.store(at, tile.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def bounded(products, factor):
    """The hyperbolic tangent, of products times a factor that holds 2 log2(e)."""
    return 1.0 - 2.0 / (tl.exp2(products * factor) + 1.0)


@triton.jit
def is_seen(q, k, end, q_depth, k_depth, window, WINDOW: tl.constexpr):
    """Which queries see which keys; queries and keys, and what is known of each, along their own dimension."""
    seen = (k <= q) & (q < end)
    if WINDOW:
        seen = seen & (q_depth - k_depth < window)
    return seen


@triton.jit
def load_keys(end_ptr, depth_ptr, start, rows, tokens, WINDOW: tl.constexpr):
    """Ends of the subtrees and depths; behind the last token an end that hides the key."""
    inside = start + rows < tokens
    end = tl.load(end_ptr + start + rows, mask=inside, other=0)
    depth = end
    if WINDOW:
        depth = tl.load(depth_ptr + start + rows, mask=inside, other=0)
    return end, depth
