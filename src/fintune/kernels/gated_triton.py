# mypy: ignore-errors
"""Triton kernels of ``gated``: a program holds a tile of gate and up, and multiplies the adapters' ranks for it alone.

Enters and leaves: what the functions of ``gated`` take and give.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fintune.kernels.rank_product_triton import add_rank_product, rank_chunk
from fintune.kernels.triton_use import launch

# Tile and warps without and with adapters. With them, a square reads the least of the small factors.
_PLAIN = {"BLOCK_T": 8, "BLOCK_F": 512, "num_warps": 8}
_WITH_ADAPTERS = {"BLOCK_T": 16, "BLOCK_F": 128, "num_warps": 4}


def gated(gate_up: Tensor, activation: str, small: Tensor | None, b: Tensor | None) -> Tensor:
    """(T, F)."""
    tokens, features = gate_up.shape[0], gate_up.shape[1] // 2
    hidden = torch.empty(tokens, features, dtype=gate_up.dtype, device=gate_up.device)
    tile = _PLAIN if small is None else _WITH_ADAPTERS
    launch(
        _forward_kernel,
        _programs(tokens, features, tile),
        gate_up.device,
        gate_up,
        small,
        b,
        hidden,
        gate_up.stride(0),
        _stride(small),
        _stride(b),
        tokens,
        FEATURES=features,
        RANK=0 if small is None else small.shape[1] // 2,
        CHUNK=0 if small is None else rank_chunk(small.shape[1] // 2),
        GELU=activation == "gelu_tanh",
        **tile,
    )
    return hidden


def gated_backward(
    dp: Tensor,
    gate_up: Tensor,
    activation: str,
    small: Tensor | None,
    b: Tensor | None,
    down_small: Tensor | None,
    down_a: Tensor | None,
    out: Tensor | None,
    want_hidden: bool,
) -> tuple[Tensor, Tensor | None]:
    """(T, 2 F), and (T, F) or None."""
    tokens, features = dp.shape
    out = torch.empty(gate_up.shape, dtype=gate_up.dtype, device=gate_up.device) if out is None else out
    tile = _PLAIN if small is None and down_small is None else _WITH_ADAPTERS
    launch(
        _backward_kernel,
        _programs(tokens, features, tile),
        dp.device,
        dp,
        gate_up,
        small,
        b,
        down_small,
        down_a,
        out,
        dp.stride(0),
        gate_up.stride(0),
        _stride(small),
        _stride(b),
        _stride(down_small),
        _stride(down_a),
        out.stride(0),
        tokens,
        FEATURES=features,
        RANK=0 if small is None else small.shape[1] // 2,
        CHUNK=0 if small is None else rank_chunk(small.shape[1] // 2),
        DOWN_RANK=0 if down_small is None else down_small.shape[1],
        DOWN_CHUNK=0 if down_small is None else rank_chunk(down_small.shape[1]),
        GELU=activation == "gelu_tanh",
        WANT_HIDDEN=want_hidden,
        **tile,
    )
    return out, dp if want_hidden else None


def _stride(matrix: Tensor | None) -> int:
    return 0 if matrix is None else matrix.stride(0)


def _programs(tokens: int, features: int, tile: dict[str, int]) -> tuple[int, int]:
    return triton.cdiv(features, tile["BLOCK_F"]), triton.cdiv(tokens, tile["BLOCK_T"])


@triton.jit
def sigmoid_argument(gate, GELU: tl.constexpr):
    """Z and dz/dgate such that the activation is gate * sigmoid(z): tanh is a sigmoid of twice its argument."""
    if GELU:
        square = gate * gate
        z = gate * (1.5957691216057308 + 0.07135481627260025 * square)  # 2 sqrt(2 / pi) (1 + 0.044715 square)
        return z, 1.5957691216057308 + 0.21406444881780073 * square
    return gate, tl.full(gate.shape, 1.0, tl.float32)


@triton.jit
def _gate_and_up(
    gate_up_ptr,
    gate_up_stride,
    small_ptr,
    small_stride,
    b_ptr,
    b_stride,
    row_start,
    rows,
    rows_inside,
    columns,
    columns_inside,
    FEATURES: tl.constexpr,
    RANK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    inside = rows_inside[:, None] & columns_inside[None, :]
    at = gate_up_ptr + row_start * gate_up_stride + rows[:, None] * gate_up_stride + columns[None, :]
    gate = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(at + FEATURES, mask=inside, other=0.0).to(tl.float32)
    if RANK > 0:
        left = small_ptr + row_start * small_stride
        gate = add_rank_product(
            gate, left, small_stride, rows, rows_inside,
            b_ptr, 1, b_stride, columns, columns_inside, RANK, CHUNK,
        )  # fmt: skip
        up = add_rank_product(
            up, left + RANK, small_stride, rows, rows_inside,
            b_ptr + FEATURES * b_stride, 1, b_stride, columns, columns_inside, RANK, CHUNK,
        )  # fmt: skip
    return gate, up


@triton.jit(do_not_specialize=["tokens"])
def _forward_kernel(
    gate_up_ptr,
    small_ptr,
    b_ptr,
    hidden_ptr,
    gate_up_stride,
    small_stride,
    b_stride,
    tokens,
    FEATURES: tl.constexpr,
    RANK: tl.constexpr,
    CHUNK: tl.constexpr,
    GELU: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    row_start = tl.program_id(1).to(tl.int64) * BLOCK_T
    rows = tl.arange(0, BLOCK_T)
    columns = tl.program_id(0) * BLOCK_F + tl.arange(0, BLOCK_F)
    rows_inside, columns_inside = row_start + rows < tokens, columns < FEATURES
    gate, up = _gate_and_up(
        gate_up_ptr, gate_up_stride, small_ptr, small_stride, b_ptr, b_stride,
        row_start, rows, rows_inside, columns, columns_inside, FEATURES, RANK, CHUNK,
    )  # fmt: skip
    z, _ = sigmoid_argument(gate, GELU)
    hidden = gate * tl.sigmoid(z) * up
    at = hidden_ptr + row_start * FEATURES + rows[:, None] * FEATURES + columns[None, :]
    tl.store(at, hidden.to(hidden_ptr.dtype.element_ty), mask=rows_inside[:, None] & columns_inside[None, :])


@triton.jit(do_not_specialize=["tokens"])
def _backward_kernel(
    dp_ptr,
    gate_up_ptr,
    small_ptr,
    b_ptr,
    down_small_ptr,
    down_a_ptr,
    out_ptr,
    dp_stride,
    gate_up_stride,
    small_stride,
    b_stride,
    down_small_stride,
    down_a_stride,
    out_stride,
    tokens,
    FEATURES: tl.constexpr,
    RANK: tl.constexpr,
    CHUNK: tl.constexpr,
    DOWN_RANK: tl.constexpr,
    DOWN_CHUNK: tl.constexpr,
    GELU: tl.constexpr,
    WANT_HIDDEN: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    row_start = tl.program_id(1).to(tl.int64) * BLOCK_T
    rows = tl.arange(0, BLOCK_T)
    columns = tl.program_id(0) * BLOCK_F + tl.arange(0, BLOCK_F)
    rows_inside, columns_inside = row_start + rows < tokens, columns < FEATURES
    inside = rows_inside[:, None] & columns_inside[None, :]
    gradient_at = dp_ptr + row_start * dp_stride + rows[:, None] * dp_stride + columns[None, :]
    gradient = tl.load(gradient_at, mask=inside, other=0.0).to(tl.float32)
    gate, up = _gate_and_up(
        gate_up_ptr, gate_up_stride, small_ptr, small_stride, b_ptr, b_stride,
        row_start, rows, rows_inside, columns, columns_inside, FEATURES, RANK, CHUNK,
    )  # fmt: skip
    if DOWN_RANK > 0:
        gradient = add_rank_product(
            gradient, down_small_ptr + row_start * down_small_stride, down_small_stride, rows, rows_inside,
            down_a_ptr, down_a_stride, 1, columns, columns_inside, DOWN_RANK, DOWN_CHUNK,
        )  # fmt: skip
    z, slope = sigmoid_argument(gate, GELU)
    sigmoid = tl.sigmoid(z)
    activated = gate * sigmoid
    d_gate = gradient * up * (sigmoid + activated * (1.0 - sigmoid) * slope)
    out_at = out_ptr + row_start * out_stride + rows[:, None] * out_stride + columns[None, :]
    tl.store(out_at, d_gate.to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(out_at + FEATURES, (gradient * activated).to(out_ptr.dtype.element_ty), mask=inside)
    if WANT_HIDDEN:
        tl.store(gradient_at, (activated * up).to(dp_ptr.dtype.element_ty), mask=inside)
