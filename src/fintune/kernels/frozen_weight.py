"""A frozen weight in the representation it is stored in, and the two products that training on top of it needs.

Enters: a dense matrix or bitsandbytes' packed ``Params4bit`` (``frozen_weight``). Leaves: ``x W^T`` forward and
``dy W`` backward; a gradient of the weight does not exist. The fp8 representation is in ``fp8_weight``.

Nothing here is recorded by autograd: the Functions of ``lora_linear`` and ``lora_mlp`` are.

Shapes: T tokens, I input features, O output features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fintune.schema.errors import ModelError


class FrozenWeight(Protocol):
    """A frozen (O, I) weight."""

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I)."""

    @property
    def stored_bytes(self) -> int:
        """Memory of everything kept, scales and second copies included."""

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x W^T + bias``: (T, I) to (T, O), in a tensor of its own, in the type of ``x``."""

    def input_gradient(self, dy: Tensor, into: Tensor | None = None) -> Tensor:
        """``dy W``: (T, O) to (T, I); added in place to ``into`` where given."""

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The (O, I) matrix the products use."""


@dataclass(frozen=True, eq=False)
class DenseWeight:
    """A weight stored as it is computed with, or cast on every use where the types differ."""

    data: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I)."""
        return self.data.shape[0], self.data.shape[1]

    @property
    def stored_bytes(self) -> int:
        """Memory of the matrix."""
        return self.data.numel() * self.data.element_size()

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x W^T + bias``."""
        return torch.nn.functional.linear(x, self.dense(x.dtype), None if bias is None else bias.to(x.dtype))

    def input_gradient(self, dy: Tensor, into: Tensor | None = None) -> Tensor:
        """``dy W``, added to ``into`` where given."""
        weight = self.dense(dy.dtype)
        return dy @ weight if into is None else into.addmm_(dy, weight)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The matrix itself where the type agrees."""
        return self.data.to(dtype)


@dataclass(frozen=True, eq=False)
class Nf4Weight:
    """A weight packed by bitsandbytes, four bits each, unpacked into one buffer per device and type for every product.

    Attributes:
        packed: uint8, two weights a byte.
        absmax: one scale a block: fp32, or uint8 where the scales are quantised too.
        absmax_code: (256,) values of the quantised scales; with the next three, None where they are not quantised.
        absmax_scale: one fp32 scale for every ``absmax_block`` scales.
        absmax_offset: 0-d mean that was taken off the scales.
        block: weights that share a scale.
        absmax_block: scales that share a scale.
        code: ``nf4`` or ``fp4``.
        shape: (O, I).
    """

    packed: Tensor
    absmax: Tensor
    absmax_code: Tensor | None
    absmax_scale: Tensor | None
    absmax_offset: Tensor | None
    block: int
    absmax_block: int
    code: str
    shape: tuple[int, int]

    @property
    def stored_bytes(self) -> int:
        """Memory of the packed weight and its scales."""
        parts = (self.packed, self.absmax, self.absmax_code, self.absmax_scale, self.absmax_offset)
        return sum(part.numel() * part.element_size() for part in parts if part is not None)

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x W^T + bias``."""
        if torch.compiler.is_compiling():
            y: Tensor = _packed_product(x, *self._fields(), False)
            return y if bias is None else y + bias.to(x.dtype)
        return torch.nn.functional.linear(x, self._unpacked(x.dtype), None if bias is None else bias.to(x.dtype))

    def input_gradient(self, dy: Tensor, into: Tensor | None = None) -> Tensor:
        """``dy W``, added to ``into`` where given."""
        if torch.compiler.is_compiling():
            dx: Tensor = _packed_product(dy, *self._fields(), True)
            return dx if into is None else into.add_(dx)
        weight = self._unpacked(dy.dtype)
        return dy @ weight if into is None else into.addmm_(dy, weight)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The unpacked matrix, in memory of its own."""
        return self._unpacked(dtype).clone()

    def _unpacked(self, dtype: torch.dtype) -> Tensor:
        """(O, I) in the shared buffer: valid until the next weight is unpacked, so never to be saved."""
        absmax = self.absmax
        if self.absmax_code is not None:
            absmax = torch.ops.bitsandbytes.dequantize_blockwise(
                absmax, self.absmax_scale, self.absmax_code, self.absmax_block, torch.float32
            )
            absmax += self.absmax_offset
        arguments = (self.packed, absmax, self.block, self.code, list(self.shape), dtype)
        if self.packed.device.type != "cuda":  # bitsandbytes unpacks into given memory on CUDA only
            unpacked: Tensor = torch.ops.bitsandbytes.dequantize_4bit(*arguments)
            return unpacked
        out = shared_buffer(self.shape, dtype, self.packed.device)
        torch.ops.bitsandbytes.dequantize_4bit.out(*arguments, out=out)
        return out

    def _fields(self) -> tuple[Any, ...]:
        scales = (self.absmax, self.absmax_code, self.absmax_scale, self.absmax_offset)
        return (self.packed, *scales, self.block, self.absmax_block, self.code, *self.shape)


# One operation that unpacks and multiplies. Were unpacking visible to the compiler, it would find it done twice, in the
# forward and the backward pass, and keep the unpacked weight in between.
@torch.library.custom_op(
    "fintune::packed_product",
    mutates_args=(),
    schema="(Tensor rows, Tensor packed, Tensor absmax, Tensor? absmax_code, Tensor? absmax_scale, "
    "Tensor? absmax_offset, int block, int absmax_block, str code, int outputs, int inputs, bool backward) -> Tensor",
)
def _packed_product(
    rows: Tensor,
    packed: Tensor,
    absmax: Tensor,
    absmax_code: Tensor | None,
    absmax_scale: Tensor | None,
    absmax_offset: Tensor | None,
    block: int,
    absmax_block: int,
    code: str,
    outputs: int,
    inputs: int,
    backward: bool,
) -> Tensor:
    scales = (absmax_code, absmax_scale, absmax_offset)
    weight = Nf4Weight(packed, absmax, *scales, block, absmax_block, code, (outputs, inputs))._unpacked(rows.dtype)
    return rows @ (weight if backward else weight.T)


@_packed_product.register_fake
def _packed_product_shape(rows: Tensor, *fields: Any) -> Tensor:
    outputs, inputs, backward = fields[-3:]
    return rows.new_empty(rows.shape[0], inputs if backward else outputs)


_buffers: dict[tuple[torch.device, torch.dtype, int], Tensor] = {}


def shared_buffer(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Scratch memory of the device, one piece per type and CUDA stream, grown to the largest request and reused.

    Its contents last until the next request on the same stream; the order of work on a stream keeps uses apart.
    """
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    key, size = (device, dtype, stream), torch.Size(shape).numel()
    held = _buffers.get(key)
    if held is None or held.numel() < size:
        _buffers.pop(key, None)
        del held
        # A buffer made in inference mode could not be written outside it.
        with torch.inference_mode(False):
            held = _buffers[key] = torch.empty(size, dtype=dtype, device=device)
    return held[:size].view(shape)


def release_buffers() -> None:
    """Frees the scratch memory, between runs; never while a CUDA graph that used it may still be replayed."""
    _buffers.clear()


def frozen_weight(parameter: Tensor) -> FrozenWeight:
    """Wraps the weight of an ``nn.Linear`` or a bitsandbytes ``Linear4bit`` without copying it.

    Raises:
        ModelError: a representation without a fast path: int8, or four bits not packed yet.
    """
    if type(parameter).__name__ == "Params4bit":
        return _from_params4bit(parameter)
    if not parameter.is_floating_point() or parameter.dim() != 2:
        raise ModelError(
            f"A weight of type {parameter.dtype} and shape {tuple(parameter.shape)} has no fast LoRA path.",
            "Use model.quantization=none or nf4, or the plain path.",
        )
    return DenseWeight(parameter.detach())


def _from_params4bit(parameter: Any) -> Nf4Weight:
    state = parameter.quant_state
    if state is None:
        raise ModelError("A 4-bit weight has not been packed yet.", "Move the model to its device first.")
    nested = state.state2 if state.nested else None
    device = parameter.device
    return Nf4Weight(
        packed=parameter.data.detach(),
        absmax=state.absmax.to(device),
        absmax_code=None if nested is None else nested.code.to(device),
        absmax_scale=None if nested is None else nested.absmax.to(device),
        absmax_offset=None if nested is None else state.offset.to(device),
        block=int(state.blocksize),
        absmax_block=0 if nested is None else int(nested.blocksize),
        code=str(state.quant_type),
        shape=(int(state.shape[0]), int(state.shape[1])),
    )
