"""How kernels that hold whole rows divide a matrix.

Enters: the number of columns. Leaves: rows a program holds, their padded length and the warps to hold them.
"""

from __future__ import annotations

from typing import NamedTuple

# Sixteen a thread: two loads of 16 bytes in bf16, and registers to spare for a second and a third operand.
_ELEMENTS_PER_WARP = 512
_LEAST_ELEMENTS, _MOST_WARPS = 2048, 16


class RowTile(NamedTuple):
    """Rows a program holds, columns padded to a power of two, and warps."""

    rows: int
    block: int
    warps: int


def row_tile(columns: int) -> RowTile:
    """Narrow rows are taken several at a time, wide ones by more warps."""
    block = next_power_of_two(columns)
    rows = max(1, _LEAST_ELEMENTS // block)
    return RowTile(rows, block, min(_MOST_WARPS, rows * block // _ELEMENTS_PER_WARP))


def next_power_of_two(number: int) -> int:
    """The least power of two that is not below ``number``."""
    return 1 << max(0, number - 1).bit_length()
