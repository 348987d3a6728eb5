# mypy: ignore-errors
"""Triton: a product over the rank of adapters, added to a tile that a kernel holds anyway.

Enters: a (rows, columns) tile in fp32, the small factors in memory. Leaves: the tile with their product added.
"""

import triton
import triton.language as tl

from fintune.schema.errors import InternalError

LEAST_RANK = 16  # of a product on tensor cores


def rank_chunk(rank: int) -> int:
    """Ranks multiplied at a time: the largest power of two that divides the rank, up to 64."""
    if rank % LEAST_RANK:
        raise InternalError(f"Adapters of rank {rank} were not padded to a multiple of {LEAST_RANK}.")
    return min(64, rank & -rank)


@triton.jit
def add_rank_product(
    tile,
    left_ptr,
    left_stride,
    rows,
    rows_inside,
    right_ptr,
    rank_stride,
    column_stride,
    columns,
    columns_inside,
    RANK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """``tile + left right``: left (rows, RANK), right (RANK, columns) with the strides given, in the type of left."""
    for start in tl.static_range(0, RANK, CHUNK):
        rank = start + tl.arange(0, CHUNK)
        left = tl.load(left_ptr + rows[:, None] * left_stride + rank[None, :], mask=rows_inside[:, None], other=0.0)
        right = tl.load(
            right_ptr + rank[:, None] * rank_stride + columns[None, :] * column_stride,
            mask=columns_inside[None, :],
            other=0.0,
        )
        tile = tl.dot(left, right.to(left.dtype), tile, input_precision="ieee")
    return tile
