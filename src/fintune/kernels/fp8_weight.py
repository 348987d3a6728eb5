"""A frozen weight in fp8 (e4m3): half the bytes of bf16 and, on Ada and Hopper cards, about twice the speed.

Enters: a dense weight. Leaves: the two products of ``FrozenWeight``, with the other operand rounded to fp8 by a scale
per token. On the CPU the same rounding is done and the product computed in fp32, so both devices agree.

The card multiplies (T, K) row by row with (K, N) column by column, that is, with N rows of K numbers in memory.
Forward, K is I and the stored (O, I) matrix is right as it lies. Backward, K is O and the transpose must lie in memory:
either transposed on the fly into a shared buffer (``copies=1``), or kept as a second matrix with scales of its own
(``copies=2``), for O x I bytes more.

Shapes: T tokens, I input features, O output features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fintune.kernels.frozen_weight import FrozenWeight, shared_buffer
from fintune.schema.errors import ModelError

FP8 = torch.float8_e4m3fn
LARGEST = 448.0
LEAST_CAPABILITY = (8, 9)
ALIGNMENT = 16

Scaling = Literal["tensor", "row"]


class Fp8Rows(NamedTuple):
    """A matrix in fp8 with a scale per row.

    Attributes:
        data: (R, K) e4m3.
        scale: (R, 1) fp32; the matrix is ``data * scale``.
    """

    data: Tensor
    scale: Tensor

    def dense(self, dtype: torch.dtype) -> Tensor:
        """(R, K) in ``dtype``."""
        return (self.data.float() * self.scale).to(dtype)


def quantize_rows(matrix: Tensor, scaling: Scaling = "row") -> Fp8Rows:
    """Rounds a matrix to fp8, its largest absolute value per row (or overall) becoming the largest of the type."""
    amax = (
        matrix.abs().amax(dim=1, keepdim=True).float() if matrix.numel() else matrix.new_zeros(len(matrix), 1).float()
    )
    if scaling == "tensor" and matrix.numel():
        amax = amax.amax().expand(amax.shape)
    scale = (amax / LARGEST).clamp(min=1e-12).contiguous()  # a row of zeros needs a scale too
    # Contiguous even for a transposed matrix: the kernels take rows only.
    return Fp8Rows((matrix.float() / scale).clamp(-LARGEST, LARGEST).to(FP8).contiguous(), scale)


@dataclass(frozen=True, eq=False)
class Fp8Weight:
    """A weight in fp8.

    Attributes:
        data: (O, I) e4m3.
        scale: (O, 1) fp32, one number repeated where the scale is the tensor's.
        transposed: (I, O) second copy for the backward product, or None.
        fast_accumulation: sums in the tensor cores' own, shorter accumulators.
    """

    data: Tensor
    scale: Tensor
    transposed: Fp8Rows | None = None
    fast_accumulation: bool = True

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I)."""
        return self.data.shape[0], self.data.shape[1]

    @property
    def stored_bytes(self) -> int:
        """Memory of one or two copies and their scales."""
        parts = [self.data, self.scale, *(self.transposed or ())]
        return sum(part.numel() * part.element_size() for part in parts)

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x W^T + bias``, ``x`` rounded to fp8."""
        return self.product_of(quantize_rows(x), x.dtype, bias)

    def product_of(self, rows: Fp8Rows, dtype: torch.dtype, bias: Tensor | None = None) -> Tensor:
        """The same for an input that is rounded already, as weights sharing an input need it only once."""
        y = _multiply(rows, Fp8Rows(self.data, self.scale), dtype, self.fast_accumulation)
        return y if bias is None else y.add_(bias.to(dtype))

    def input_gradient(self, dy: Tensor, into: Tensor | None = None) -> Tensor:
        """``dy W``, ``dy`` rounded to fp8, added to ``into`` where given."""
        if self.transposed is not None:
            dx = _multiply(quantize_rows(dy), self.transposed, dy.dtype, self.fast_accumulation)
        else:
            # The weight's scales lie along the summed dimension, where the product takes none: they go into dy.
            rows = quantize_rows(dy * self.scale.T)
            multiply = _transposing_op if torch.compiler.is_compiling() else _multiply_transposing
            dx = multiply(rows.data, rows.scale, self.data, dy.dtype, self.fast_accumulation)
        return dx if into is None else into.add_(dx)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight the forward product uses, unrounded."""
        return Fp8Rows(self.data, self.scale).dense(dtype)


def fp8_weight(weight: Tensor, *, scaling: Scaling = "row", copies: Literal[1, 2] = 1) -> Fp8Weight:
    """Rounds a dense (O, I) weight to fp8.

    Args:
        weight: the weight, on the device it stays on.
        scaling: one scale per output feature, or one for all.
        copies: 1 to transpose in every backward pass, 2 to keep the transpose with scales per input feature.

    Raises:
        ModelError: the card has no fp8, or the shape does not fit its kernels.
    """
    _require_fp8(weight)
    weight = weight.detach()
    data, scale = quantize_rows(weight, scaling)
    return Fp8Weight(data, scale, quantize_rows(weight.T, scaling) if copies == 2 else None)


def _require_fp8(weight: Tensor) -> None:
    if weight.device.type != "cuda":
        return
    capability = torch.cuda.get_device_capability(weight.device)
    if capability < LEAST_CAPABILITY:
        name = torch.cuda.get_device_name(weight.device)
        raise ModelError(
            f"model.quantization=fp8 needs an Ada, Hopper or newer card (compute capability 8.9), and {name} has "
            f"{capability[0]}.{capability[1]}.",
            "Set model.quantization=nf4 or none.",
        )
    if any(size % ALIGNMENT for size in weight.shape):
        raise ModelError(
            f"A weight of shape {tuple(weight.shape)} cannot be held in fp8, which needs multiples of {ALIGNMENT}.",
            "Set model.quantization=nf4 or none.",
        )


def products(x: Tensor, weights: Sequence[FrozenWeight], biases: Sequence[Tensor | None]) -> list[Tensor]:
    """``x W^T + bias`` for weights that share an input, which is rounded to fp8 once where any needs it."""
    rows: Fp8Rows | None = None
    results = []
    for weight, bias in zip(weights, biases, strict=True):
        if isinstance(weight, Fp8Weight):
            rows = quantize_rows(x) if rows is None else rows
            results.append(weight.product_of(rows, x.dtype, bias))
        else:
            results.append(weight.product(x, bias))
    return results


def _multiply(left: Fp8Rows, right: Fp8Rows, dtype: torch.dtype, fast_accumulation: bool) -> Tensor:
    """(R, K) times the transpose of (N, K), both with a scale per row: (R, N)."""
    if left.data.device.type != "cuda":
        wide = torch.promote_types(dtype, torch.float32)
        return (left.dense(wide) @ right.dense(wide).T).to(dtype)
    if left.data.shape[0] == 0:
        return torch.empty(0, right.data.shape[0], dtype=dtype, device=left.data.device)
    out = torch._scaled_mm(
        left.data,
        right.data.T,
        scale_a=left.scale,
        scale_b=right.scale.T,
        out_dtype=torch.bfloat16,  # the only type the kernels with a scale per row write
        use_fast_accum=fast_accumulation,
    )
    return out.to(dtype)


def _multiply_transposing(
    rows: Tensor, row_scale: Tensor, data: Tensor, dtype: torch.dtype, fast_accumulation: bool
) -> Tensor:
    """(T, O) with a scale per row times (O, I) without scales, transposed into the shared buffer first: (T, I)."""
    buffer = shared_buffer((data.shape[1], data.shape[0]), torch.uint8, data.device)
    buffer.copy_(data.view(torch.uint8).T)
    right = Fp8Rows(buffer.view(FP8), torch.ones(data.shape[1], 1, device=data.device))
    return _multiply(Fp8Rows(rows, row_scale), right, dtype, fast_accumulation)


# Opaque to the compiler, which could otherwise transpose in the forward pass and keep the result for the backward pass.
_transposing_op = torch.library.custom_op(
    "fintune::fp8_multiply_transposing",
    _multiply_transposing,
    mutates_args=(),
    schema="(Tensor rows, Tensor row_scale, Tensor data, ScalarType dtype, bool fast_accumulation) -> Tensor",
)


@_transposing_op.register_fake
def _transposing_shape(
    rows: Tensor, row_scale: Tensor, data: Tensor, dtype: torch.dtype, fast_accumulation: bool
) -> Tensor:
    return torch.empty(rows.shape[0], data.shape[1], dtype=dtype, device=rows.device)
