"""A frozen weight in the representation it is stored in, and the two products that training on top of it needs.

Enters: dense matrices or bitsandbytes' packed ``Params4bit``, one or several on top of each other (``frozen_weight``).
Leaves: ``x W^T`` forward and ``dy W`` backward; a gradient of the weight does not exist. The fp8 representation is in
``fp8_weight``. Nothing here is recorded by autograd: the Functions of ``decoder_layer`` are.

Shapes: T tokens, I input features, O output features.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fintune.kernels.triton_use import triton_is_installed
from fintune.kernels.unpack_nf4 import unpack_nf4
from fintune.schema.errors import ModelError


class SmallProduct(NamedTuple):
    """A product over few columns, such as the rank of adapters.

    Attributes:
        left: (T, r).
        right: (r, I).
    """

    left: Tensor
    right: Tensor


class FrozenWeight(Protocol):
    """A frozen (O, I) weight."""

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I)."""

    @property
    def stored_bytes(self) -> int:
        """Memory of everything kept, scales and second copies included."""

    def product(self, x: Tensor) -> Tensor:
        """``x W^T``: (T, I) to (T, O) in the type of ``x``."""

    def input_gradient(self, dy: Tensor, plus: SmallProduct | None = None) -> Tensor:
        """``dy W``: (T, O) to (T, I), and ``left right`` of a small product added where given."""

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The (O, I) matrix the products use."""

    def hold_ready(self, dtype: torch.dtype) -> None:
        """Keeps from now on what products in ``dtype`` are made of, as they take it: more memory and less time."""

    def drop_ready(self) -> None:
        """Lets go of it; it is made for every product again. Never while a CUDA graph may still read it."""


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

    def product(self, x: Tensor) -> Tensor:
        """``x W^T``."""
        return x @ self.dense(x.dtype).T

    def input_gradient(self, dy: Tensor, plus: SmallProduct | None = None) -> Tensor:
        """``dy W + plus``."""
        return _multiply_onto(plus, dy, self.dense(dy.dtype))

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The matrix itself where the type agrees."""
        return self.data.to(dtype)

    def hold_ready(self, dtype: torch.dtype) -> None:
        """Nothing: it is ready as it lies."""

    def drop_ready(self) -> None:
        """Nothing either."""


@dataclass(frozen=True, eq=False)
class PackedMatrix:
    """A matrix packed by bitsandbytes, four bits a weight.

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

    def unpack(self, out: Tensor) -> None:
        """Writes the (O, I) matrix into ``out``."""
        if self.packed.device.type == "cuda" and self.code == "nf4":
            scales = (self.absmax, self.absmax_code, self.absmax_scale, self.absmax_offset)
            unpack_nf4(self.packed, *scales, self.block, self.absmax_block, out)
            return
        absmax = self.absmax
        if self.absmax_code is not None:
            absmax = torch.ops.bitsandbytes.dequantize_blockwise(
                absmax, self.absmax_scale, self.absmax_code, self.absmax_block, torch.float32
            )
            absmax += self.absmax_offset
        arguments = (self.packed, absmax, self.block, self.code, list(self.shape), out.dtype)
        out.copy_(torch.ops.bitsandbytes.dequantize_4bit(*arguments))


@dataclass(eq=False)
class Nf4Weight:
    """Packed matrices on top of each other, unpacked for every product into a buffer that all weights share.

    Attributes:
        parts: the matrices, from top to bottom.
        ready: (O, I) unpacked, once and for all or inside ``unpacked_together``; or None.
    """

    parts: tuple[PackedMatrix, ...]
    ready: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I)."""
        return sum(part.shape[0] for part in self.parts), self.parts[0].shape[1]

    @property
    def stored_bytes(self) -> int:
        """Memory of the packed weights and their scales, and of the unpacked ones if they are held."""
        held = 0 if self.ready is None else self.ready.numel() * self.ready.element_size()
        return held + sum(part.stored_bytes for part in self.parts)

    def product(self, x: Tensor) -> Tensor:
        """``x W^T``."""
        return x @ self._unpacked(x.dtype).T

    def input_gradient(self, dy: Tensor, plus: SmallProduct | None = None) -> Tensor:
        """``dy W + plus``."""
        return _multiply_onto(plus, dy, self._unpacked(dy.dtype))

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The unpacked matrix, in memory of its own."""
        return self._unpacked(dtype).clone()

    def hold_ready(self, dtype: torch.dtype) -> None:
        """Keeps the unpacked matrix."""
        if not self.is_ready(dtype):
            self.ready = None
            self.ready = self.dense(dtype)

    def drop_ready(self) -> None:
        """Lets go of the unpacked matrix."""
        self.ready = None

    def is_ready(self, dtype: torch.dtype) -> bool:
        """Whether products in ``dtype`` find it unpacked."""
        return self.ready is not None and self.ready.dtype == dtype

    def _unpacked(self, dtype: torch.dtype) -> Tensor:
        """(O, I), held or in the shared buffer: then valid until the next weight is unpacked, so never to be saved."""
        if self.ready is not None and self.ready.dtype == dtype:
            return self.ready
        return self.unpack(shared_buffer(self.shape, dtype, self.parts[0].packed.device))

    def unpack(self, out: Tensor) -> Tensor:
        """Writes the (O, I) matrix into ``out`` and returns it."""
        for part, rows in zip(self.parts, torch.split(out, [part.shape[0] for part in self.parts]), strict=True):
            part.unpack(rows)
        return out


@dataclass(frozen=True, eq=False)
class _Unpacked:
    """NF4 weights side by side in the buffer of the stream that unpacked them.

    Attributes:
        weights: which; not held alive by it.
        matrices: (O, I) of each.
        done: when they are there.
    """

    weights: list[weakref.ref[Nf4Weight]]
    matrices: list[Tensor]
    done: torch.cuda.Event


_Key = tuple[torch.device, int]  # a device and the number of a stream
_ahead: dict[_Key, _Unpacked] = {}  # by the stream of the products: what the buffer beside it holds, or soon will


def unpack_ahead(dtype: torch.dtype, *weights: FrozenWeight) -> None:
    """Begins what ``unpacked_together`` needs beside other work on a CUDA device; nothing elsewhere.

    Everything that still reads what was unpacked ahead before must have been started on the current stream. Not inside
    ``unpacked_together`` nor while a graph is recorded.
    """
    if own := _not_ready(dtype, weights):
        _unpack_beside(own, dtype)


def _unpack_beside(weights: list[Nf4Weight], dtype: torch.dtype) -> _Unpacked | None:
    """The weights, unpacked on a stream of their own or already there; None where they cannot be."""
    if not all(_can_be_unpacked_beside(part) for weight in weights for part in weight.parts):
        return None
    device = weights[0].parts[0].packed.device
    current = torch.cuda.current_stream(device)
    key = (device, current.cuda_stream)
    held = _ahead.get(key)
    if held is not None and [weight() for weight in held.weights] == weights and held.matrices[0].dtype == dtype:
        return held
    _ahead.pop(key, None)  # at once: should unpacking fail, nothing vouches for what the buffer holds
    stream = _side_stream(key)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        matrices = _unpack_together(weights, dtype)
        _ahead[key] = _Unpacked([weakref.ref(weight) for weight in weights], matrices, stream.record_event())
    return _ahead[key]


@contextmanager
def unpacked_together(dtype: torch.dtype, *weights: FrozenWeight) -> Iterator[None]:
    """Unpacks NF4 weights once for all products inside the block, side by side in one buffer.

    Inside it nothing else may be unpacked together or ahead, nor on the CPU for a product: it would be written over
    them.
    """
    own = _not_ready(dtype, weights)
    earlier = [weight.ready for weight in own]
    try:
        if own:
            held = _unpack_beside(own, dtype)
            if held is not None:
                torch.cuda.current_stream(held.matrices[0].device).wait_event(held.done)
            matrices = _unpack_together(own, dtype) if held is None else held.matrices
            for weight, matrix in zip(own, matrices, strict=True):
                weight.ready = matrix
        yield
    finally:
        for weight, ready in zip(own, earlier, strict=True):
            weight.ready = ready


def _can_be_unpacked_beside(part: PackedMatrix) -> bool:
    """By our kernel: other ways take memory that the stream of the products could not use afterwards."""
    return part.packed.device.type == "cuda" and triton_is_installed() and part.code == "nf4"


def _not_ready(dtype: torch.dtype, weights: Sequence[FrozenWeight]) -> list[Nf4Weight]:
    return [weight for weight in weights if isinstance(weight, Nf4Weight) and not weight.is_ready(dtype)]


def _unpack_together(weights: Sequence[Nf4Weight], dtype: torch.dtype) -> list[Tensor]:
    sizes = [torch.Size(weight.shape).numel() for weight in weights]
    whole = shared_buffer((sum(sizes),), dtype, weights[0].parts[0].packed.device)
    parts = zip(weights, torch.split(whole, sizes), strict=True)
    return [weight.unpack(part.view(weight.shape)) for weight, part in parts]


@cache
def _side_stream(key: _Key) -> torch.cuda.Stream:
    make: Any = torch.cuda.Stream
    stream: torch.cuda.Stream = make(key[0])
    return stream


def _multiply_onto(plus: SmallProduct | None, left: Tensor, right: Tensor) -> Tensor:
    """The large product adds to the small one as it is written; the other way round is one more pass over memory."""
    return left @ right if plus is None else (plus.left @ plus.right).addmm_(left, right)


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
    _ahead.clear()


def frozen_weight(parameters: Sequence[Tensor]) -> FrozenWeight:
    """The weights of layers that share an input as one weight.

    Packed weights are used where they lie. Dense ones become views of one new matrix, each ``parameter.data`` included,
    so that they keep working as before and take no more memory than before.

    Args:
        parameters: weights of ``nn.Linear`` or bitsandbytes ``Linear4bit`` layers, all (O, I) with the same I.

    Raises:
        ModelError: a representation without a fast path: int8, four bits not packed yet, or several at once.
    """
    packed = [type(parameter).__name__ == "Params4bit" for parameter in parameters]
    if all(packed):
        return Nf4Weight(tuple(_from_params4bit(parameter) for parameter in parameters))
    first = parameters[0]
    for parameter in parameters:
        if any(packed) or not parameter.is_floating_point() or parameter.dim() != 2 or parameter.dtype != first.dtype:
            raise ModelError(
                f"A weight of type {parameter.dtype} and shape {tuple(parameter.shape)} has no fast LoRA path.",
                "Use model.quantization=none, nf4 or fp8, or the plain path.",
            )
    if len(parameters) == 1:
        return DenseWeight(first.detach())
    return DenseWeight(_in_one_piece(parameters))


def _in_one_piece(parameters: Sequence[Tensor]) -> Tensor:
    """The matrices on top of each other; each parameter becomes a view of its rows, unless it is one already."""
    first = parameters[0].detach()
    rows = [len(parameter) for parameter in parameters]
    starts = [sum(rows[:i]) * first.stride(0) + first.storage_offset() for i in range(len(rows))]
    storage = first.untyped_storage().data_ptr()
    if first.is_contiguous() and all(
        parameter.untyped_storage().data_ptr() == storage and parameter.storage_offset() == start
        for parameter, start in zip(parameters, starts, strict=True)
    ):
        return first.as_strided((sum(rows), first.shape[1]), first.stride())
    whole = torch.cat([parameter.detach() for parameter in parameters])
    for parameter, own in zip(parameters, torch.split(whole, rows), strict=True):
        parameter.data = own
    return whole


def _from_params4bit(parameter: Any) -> PackedMatrix:
    state = parameter.quant_state
    if state is None:
        raise ModelError("A 4-bit weight has not been packed yet.", "Move the model to its device first.")
    nested = state.state2 if state.nested else None
    device = parameter.device
    return PackedMatrix(
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
