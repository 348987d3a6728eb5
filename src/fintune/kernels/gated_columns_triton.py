# mypy: ignore-errors
"""Triton kernels of ``gated`` for small ranks: a program walks down a column of tiles and holds the adapters' factors.

Enters and leaves: what ``gated`` and ``gated_backward_sums`` take and give. Holding the factors spares reading them for
each tile, and lets a program add up its share of the adapters' gradients, which otherwise read everything again.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fintune.kernels.gated_triton import sigmoid_argument
from fintune.kernels.triton_use import launch

_FORWARD = {"BLOCK_T": 16, "BLOCK_F": 128, "STEPS": 8, "num_warps": 4, "num_stages": 3}
_BACKWARD = {"BLOCK_T": 64, "BLOCK_F": 64, "STEPS": 8, "num_warps": 4, "num_stages": 2}
# The tile above would ask for 144 KiB of shared memory in fp32 at rank 32; cards for games have 99.
_BACKWARD_FP32 = _BACKWARD | {"BLOCK_T": 16, "STEPS": 32}


def gated(gate_up: Tensor, activation: str, small: Tensor, b: Tensor) -> Tensor:
    """(T, F)."""
    tokens, features = gate_up.shape[0], gate_up.shape[1] // 2
    hidden = torch.empty(tokens, features, dtype=gate_up.dtype, device=gate_up.device)
    launch(
        _forward_kernel,
        _columns(tokens, features, _FORWARD),
        gate_up.device,
        gate_up,
        small,
        b,
        hidden,
        gate_up.stride(0),
        small.stride(0),
        b.stride(0),
        tokens,
        FEATURES=features,
        RANK=small.shape[1] // 2,
        GELU=activation == "gelu_tanh",
        **_stages(_FORWARD),
    )
    return hidden


def gated_backward_sums(
    dp: Tensor,
    gate_up: Tensor,
    activation: str,
    small: Tensor,
    b: Tensor,
    down_small: Tensor,
    down_a: Tensor,
    out: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(T, 2 F), and in fp32 (2 F, r) and (r, F)."""
    (tokens, features), rank, down_rank = dp.shape, small.shape[1] // 2, down_small.shape[1]
    out = torch.empty(gate_up.shape, dtype=gate_up.dtype, device=gate_up.device) if out is None else out
    tile = backward_tile(dp.dtype)
    programs = _columns(tokens, features, tile)
    sums = torch.empty(programs[1], 2 * rank + down_rank, features, dtype=torch.float32, device=dp.device)
    launch(
        _backward_kernel,
        programs,
        dp.device,
        dp,
        gate_up,
        small,
        b,
        down_small,
        down_a,
        out,
        sums,
        dp.stride(0),
        gate_up.stride(0),
        small.stride(0),
        b.stride(0),
        down_small.stride(0),
        down_a.stride(0),
        out.stride(0),
        tokens,
        FEATURES=features,
        RANK=rank,
        DOWN_RANK=down_rank,
        GELU=activation == "gelu_tanh",
        **_stages(tile),
    )
    total = sums.sum(0)
    d_b = total[: 2 * rank].view(2, rank, features).transpose(1, 2).reshape(2 * features, rank)
    return out, d_b, total[2 * rank :]


def backward_tile(dtype: torch.dtype) -> dict[str, int]:
    """The tile of ``gated_backward_sums``, and how many of them a program walks down."""
    return _BACKWARD_FP32 if dtype == torch.float32 else _BACKWARD


def _columns(tokens: int, features: int, tile: dict[str, int]) -> tuple[int, int]:
    return triton.cdiv(features, tile["BLOCK_F"]), triton.cdiv(tokens, tile["BLOCK_T"] * tile["STEPS"])


def _stages(tile: dict[str, int]) -> dict[str, int]:
    """The tile with its stages as a constant: of the walk, not of products."""
    return {("STAGES" if name == "num_stages" else name): value for name, value in tile.items()}


@triton.jit
def _factor(pointer, rank_stride, column_stride, columns, columns_inside, RANK: tl.constexpr):
    """(RANK, columns) of a factor."""
    rank = tl.arange(0, RANK)
    at = pointer + rank[:, None] * rank_stride + columns[None, :] * column_stride
    return tl.load(at, mask=columns_inside[None, :], other=0.0)


@triton.jit
def _left(pointer, stride, rows, rows_inside, RANK: tl.constexpr):
    """(rows, RANK) of what multiplies a factor."""
    rank = tl.arange(0, RANK)
    return tl.load(pointer + rows[:, None] * stride + rank[None, :], mask=rows_inside[:, None], other=0.0)


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
    GELU: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_F: tl.constexpr,
    STEPS: tl.constexpr,
    STAGES: tl.constexpr,
):
    rows, columns = tl.arange(0, BLOCK_T), tl.program_id(0) * BLOCK_F + tl.arange(0, BLOCK_F)
    columns_inside = columns < FEATURES
    b_gate = _factor(b_ptr, 1, b_stride, columns, columns_inside, RANK)
    b_up = _factor(b_ptr + FEATURES * b_stride, 1, b_stride, columns, columns_inside, RANK)
    first = tl.program_id(1).to(tl.int64) * (BLOCK_T * STEPS)
    for step in tl.range(0, STEPS, num_stages=STAGES):
        start = first + step * BLOCK_T
        rows_inside = start + rows < tokens
        inside = rows_inside[:, None] & columns_inside[None, :]
        at = gate_up_ptr + start * gate_up_stride + rows[:, None] * gate_up_stride + columns[None, :]
        gate = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(at + FEATURES, mask=inside, other=0.0).to(tl.float32)
        small_at = small_ptr + start * small_stride
        z_gate = _left(small_at, small_stride, rows, rows_inside, RANK)
        z_up = _left(small_at + RANK, small_stride, rows, rows_inside, RANK)
        gate = tl.dot(z_gate, b_gate, gate, input_precision="ieee")
        up = tl.dot(z_up, b_up, up, input_precision="ieee")
        argument, _ = sigmoid_argument(gate, GELU)
        hidden = gate * tl.sigmoid(argument) * up
        to = hidden_ptr + start * FEATURES + rows[:, None] * FEATURES + columns[None, :]
        tl.store(to, hidden.to(hidden_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["tokens"])
def _backward_kernel(
    dp_ptr,
    gate_up_ptr,
    small_ptr,
    b_ptr,
    down_small_ptr,
    down_a_ptr,
    out_ptr,
    sums_ptr,
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
    DOWN_RANK: tl.constexpr,
    GELU: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_F: tl.constexpr,
    STEPS: tl.constexpr,
    STAGES: tl.constexpr,
):
    rows, columns = tl.arange(0, BLOCK_T), tl.program_id(0) * BLOCK_F + tl.arange(0, BLOCK_F)
    columns_inside = columns < FEATURES
    b_gate = _factor(b_ptr, 1, b_stride, columns, columns_inside, RANK)
    b_up = _factor(b_ptr + FEATURES * b_stride, 1, b_stride, columns, columns_inside, RANK)
    a_down = _factor(down_a_ptr, down_a_stride, 1, columns, columns_inside, DOWN_RANK)
    sum_gate = tl.zeros([RANK, BLOCK_F], tl.float32)
    sum_up = tl.zeros([RANK, BLOCK_F], tl.float32)
    sum_down = tl.zeros([DOWN_RANK, BLOCK_F], tl.float32)
    first = tl.program_id(1).to(tl.int64) * (BLOCK_T * STEPS)
    for step in tl.range(0, STEPS, num_stages=STAGES):
        start = first + step * BLOCK_T
        rows_inside = start + rows < tokens
        inside = rows_inside[:, None] & columns_inside[None, :]
        at = gate_up_ptr + start * gate_up_stride + rows[:, None] * gate_up_stride + columns[None, :]
        gate = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(at + FEATURES, mask=inside, other=0.0).to(tl.float32)
        gradient_at = dp_ptr + start * dp_stride + rows[:, None] * dp_stride + columns[None, :]
        gradient = tl.load(gradient_at, mask=inside, other=0.0).to(tl.float32)
        small_at = small_ptr + start * small_stride
        z_gate = _left(small_at, small_stride, rows, rows_inside, RANK)
        z_up = _left(small_at + RANK, small_stride, rows, rows_inside, RANK)
        d_z = _left(down_small_ptr + start * down_small_stride, down_small_stride, rows, rows_inside, DOWN_RANK)
        gate = tl.dot(z_gate, b_gate, gate, input_precision="ieee")
        up = tl.dot(z_up, b_up, up, input_precision="ieee")
        gradient = tl.dot(d_z, a_down, gradient, input_precision="ieee")
        argument, slope = sigmoid_argument(gate, GELU)
        sigmoid = tl.sigmoid(argument)
        activated = gate * sigmoid
        d_gate = (gradient * up * (sigmoid + activated * (1.0 - sigmoid) * slope)).to(out_ptr.dtype.element_ty)
        d_up = (gradient * activated).to(out_ptr.dtype.element_ty)
        to = out_ptr + start * out_stride + rows[:, None] * out_stride + columns[None, :]
        tl.store(to, d_gate, mask=inside)
        tl.store(to + FEATURES, d_up, mask=inside)
        hidden = (activated * up).to(out_ptr.dtype.element_ty)
        sum_gate = tl.dot(tl.trans(z_gate), d_gate, sum_gate, input_precision="ieee")
        sum_up = tl.dot(tl.trans(z_up), d_up, sum_up, input_precision="ieee")
        sum_down = tl.dot(tl.trans(d_z), hidden, sum_down, input_precision="ieee")
    sums_at = sums_ptr + tl.program_id(1).to(tl.int64) * ((2 * RANK + DOWN_RANK) * FEATURES) + columns[None, :]
    rank, down_rank = tl.arange(0, RANK), tl.arange(0, DOWN_RANK)
    tl.store(sums_at + rank[:, None] * FEATURES, sum_gate, mask=columns_inside[None, :])
    tl.store(sums_at + (RANK + rank)[:, None] * FEATURES, sum_up, mask=columns_inside[None, :])
    tl.store(sums_at + (2 * RANK + down_rank)[:, None] * FEATURES, sum_down, mask=columns_inside[None, :])
