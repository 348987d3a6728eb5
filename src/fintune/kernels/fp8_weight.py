"""A frozen weight in fp8 (e4m3): half the bytes of bf16 and, on Ada and Hopper cards, about twice the speed.

Enters: a dense weight. Leaves: the two products of ``FrozenWeight``, with the other operand rounded to fp8 by a scale
per token. On the CPU the same rounding is done and the product computed in fp32, so both devices agree.

The card multiplies (T, K) row by row with (K, N) column by column, that is, with N rows of K numbers in memory.
Forward, K is I and the stored (O, I) matrix is right as it lies. Backward, K is O and the transpose must lie in
memory: either transposed on the fly into a shared buffer, or kept as well, for O x I bytes more. Both hold the same
numbers. The weight's scales then lie along the summed dimension, where the product takes none, so they are multiplied
into the other operand before it is rounded.

Shapes: T tokens, I input features, O output features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fintune.kernels.frozen_weight import SmallProduct, shared_buffer
from fintune.kernels.triton_use import uses_triton
from fintune.schema.errors import ModelError

FP8 = torch.float8_e4m3fn
LARGEST = 448.0
LEAST_CAPABILITY = (8, 9)
ALIGNMENT = 16
ASKED_BY, REMEDY = "model.quantization=fp8", "Set model.quantization=nf4 or none."

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
    if scaling == "row" and uses_triton(matrix):
        from fintune.kernels.quantize import quantize_rows_fp8

        return quantize_rows_fp8(matrix)
    return quantize_rows_plain(matrix, scaling)


def quantize_rows_plain(matrix: Tensor, scaling: Scaling = "row") -> Fp8Rows:
    """The plain twin of ``quantize_rows``."""
    amax = (
        matrix.abs().amax(dim=1, keepdim=True).float() if matrix.numel() else matrix.new_zeros(len(matrix), 1).float()
    )
    if scaling == "tensor" and matrix.numel():
        amax = amax.amax().expand(amax.shape)
    # A number instead of a tensor would be divided by on CUDA with a reciprocal, and the devices would disagree.
    scale = (amax / amax.new_full((), LARGEST)).clamp(min=1e-12).contiguous()  # a row of zeros needs a scale too
    # Contiguous even for a transposed matrix: the kernels take rows only.
    return Fp8Rows((matrix.float() / scale).clamp(-LARGEST, LARGEST).to(FP8).contiguous(), scale)


@dataclass(eq=False)
class Fp8Weight:
    """A weight in fp8.

    Attributes:
        data: (O, I) e4m3.
        scale: (O, 1) fp32, one number repeated where the scale is the tensor's.
        transposed: (I, O) e4m3, the same numbers transposed, or None.
        fast_accumulation: sums in the tensor cores' own, shorter accumulators.
    """

    data: Tensor
    scale: Tensor
    transposed: Tensor | None = None
    fast_accumulation: bool = True

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I)."""
        return self.data.shape[0], self.data.shape[1]

    @property
    def stored_bytes(self) -> int:
        """Memory of one or two copies and their scales."""
        parts = (self.data, self.scale, self.transposed)
        return sum(part.numel() * part.element_size() for part in parts if part is not None)

    def product(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """``x W^T``, ``x`` rounded to fp8; written to ``out`` where it is given."""
        return self.product_of(quantize_rows(x), x.dtype, out)

    def product_of(self, rows: Fp8Rows, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
        """The same for an input that is rounded already."""
        return _multiply(rows, Fp8Rows(self.data, self.scale), dtype, self.fast_accumulation, out)

    def input_gradient(self, dy: Tensor, plus: SmallProduct | None = None) -> Tensor:
        """``dy W + plus``, ``dy`` rounded to fp8."""
        from fintune.kernels.quantize import quantize_rows_fp8

        rows = quantize_rows_fp8(dy, column_scale=self.scale[:, 0])
        ones = torch.ones(self.shape[1], 1, device=self.data.device)
        dx = _multiply(rows, Fp8Rows(self._transposed(), ones), dy.dtype, self.fast_accumulation)
        return dx if plus is None else dx.addmm_(plus.left, plus.right)  # products in fp8 add to nothing

    def _transposed(self) -> Tensor:
        """(I, O), kept or in the shared buffer: then valid until the next weight is unpacked."""
        from fintune.kernels.quantize import transpose_bytes

        if self.transposed is not None:
            return self.transposed
        buffer = shared_buffer((self.shape[1], self.shape[0]), torch.uint8, self.data.device)
        return transpose_bytes(self.data.view(torch.uint8), buffer).view(FP8)

    def hold_ready(self, dtype: torch.dtype) -> None:
        """Keeps the transpose."""
        if self.transposed is None:
            self.transposed = self._transposed().clone()

    def drop_ready(self) -> None:
        """Lets go of the transpose."""
        self.transposed = None

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight the forward product uses, unrounded."""
        return Fp8Rows(self.data, self.scale).dense(dtype)


def fp8_weight(
    weight: Tensor, *, scaling: Scaling = "row", asked_by: str = ASKED_BY, remedy: str = REMEDY
) -> Fp8Weight:
    """Rounds a dense (O, I) weight to fp8.

    Args:
        weight: the weight, on the device it stays on.
        scaling: one scale per output feature, or one for all.
        asked_by: what needs it, for an error's sentence.
        remedy: for the same.

    Raises:
        ModelError: the card has no fp8, or the shape does not fit its kernels.
    """
    require_fp8(weight.device, asked_by, remedy)
    if any(size % ALIGNMENT for size in weight.shape):
        raise ModelError(
            f"A weight of shape {tuple(weight.shape)} cannot be held in fp8, which needs multiples of {ALIGNMENT}.",
            remedy,
        )
    return Fp8Weight(*quantize_rows(weight.detach(), scaling))


def stack_fp8(weights: Sequence[Fp8Weight]) -> Fp8Weight:
    """Weights with the same input features on top of each other, in memory of their own."""
    if len(weights) == 1:
        return weights[0]
    data = torch.cat([weight.data.view(torch.uint8) for weight in weights]).view(FP8)
    return Fp8Weight(data, torch.cat([weight.scale for weight in weights]))


def require_fp8(device: torch.device, asked_by: str = ASKED_BY, remedy: str = REMEDY) -> None:
    """Refuses devices whose cores cannot multiply fp8; the CPU does the same arithmetic in fp32.

    Raises:
        ModelError: the card is older than Ada.
    """
    if device.type != "cuda":
        return
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        raise ModelError(
            f"{asked_by} needs an Ada, Hopper or newer card (compute capability 8.9), and "
            f"{torch.cuda.get_device_name(device)} has {capability[0]}.{capability[1]}.",
            remedy,
        )


def _multiply(
    left: Fp8Rows, right: Fp8Rows, dtype: torch.dtype, fast_accumulation: bool, out: Tensor | None = None
) -> Tensor:
    """(R, K) times the transpose of (N, K), both with a scale per row: (R, N)."""
    if left.data.device.type != "cuda":
        wide = torch.promote_types(dtype, torch.float32)
        product = (left.dense(wide) @ right.dense(wide).T).to(dtype)
        return product if out is None else out.copy_(product)
    if left.data.shape[0] == 0:
        return torch.empty(0, right.data.shape[0], dtype=dtype, device=left.data.device) if out is None else out
    takes_it = out is not None and out.dtype == torch.bfloat16
    product = torch._scaled_mm(
        left.data,
        right.data.T,
        scale_a=left.scale,
        scale_b=right.scale.T,
        out_dtype=torch.bfloat16,  # the only type the kernels with a scale per row write
        use_fast_accum=fast_accumulation,
        **({"out": out} if takes_it else {}),
    )
    return product.to(dtype) if out is None or takes_it else out.copy_(product)
