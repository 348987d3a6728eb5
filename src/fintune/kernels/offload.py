"""Moves what layers keep for the backward pass to the host, and back before it is needed, beside the computation.

Enters: layers run one after the other inside ``Offload.layer``. Leaves: the same gradients; on the device lie only the
kept tensors of the layers under way and of those that stay, the last ones. Whole storages move, so tensors that share
memory move once. Elsewhere than on CUDA nothing moves.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

LEAST_BYTES = 2**20
AHEAD = 2  # layers whose tensors may lie on the device while their copies are under way


@dataclass(eq=False)
class _Kept:
    """One storage: on the device, on the host, or both.

    Attributes:
        device: its bytes there, None once they are copied and released.
        host: pinned copy.
        moved: when the copy under way is complete.
    """

    device: Tensor | None
    host: Tensor
    moved: torch.cuda.Event


@dataclass(frozen=True)
class _View:
    """A tensor as a view of a kept storage."""

    kept: _Kept
    layer: int
    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]
    offset: Any


@dataclass(frozen=True)
class _Stays:
    """A tensor that does not move, of one of the layers whose backward passes come first.

    Attributes:
        tensor: itself.
        layer: number of its layer.
        version: autograd's, of the tensor as it was kept: behind hooks autograd does not compare it.
    """

    tensor: Tensor
    layer: int
    version: int

    def take(self) -> Tensor:
        """The tensor.

        Raises:
            RuntimeError: a backward pass has been here already and has written over it.
        """
        if self.tensor._version != self.version:
            raise RuntimeError(
                "A layer's kept values have been written over: a second backward pass over one forward pass is not "
                "possible here."
            )
        return self.tensor


@dataclass(eq=False)
class Offload:
    """Moves the tensors of one forward pass after another; holds its pinned memory between them.

    Attributes:
        free: pinned buffers by size, to be used again.
        layers: what each layer of the pass under way keeps.
    """

    free: dict[int, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    layers: dict[int, dict[int, _Kept]] = field(default_factory=lambda: defaultdict(dict))
    _stream: Any = None

    @contextmanager
    def layer(self, index: int, *, stays: bool = False) -> Iterator[None]:
        """Runs the block, layer ``index``, moving what it keeps unless it ``stays``; layers count upwards from 0."""
        if not torch.cuda.is_available():
            yield
            return
        if self._stream is None:
            make_stream: Any = torch.cuda.Stream
            self._stream = make_stream()
        if index == 0:
            self.layers.clear()
        self._release(index - AHEAD)
        pack = self._stay if stays else self._pack
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: pack(tensor, index), self._unpack):
            yield

    def _stay(self, tensor: Tensor, layer: int) -> _Stays:
        return _Stays(tensor, layer, tensor._version)

    def _pack(self, tensor: Tensor, layer: int) -> Any:
        storage = tensor.untyped_storage()
        if tensor.device.type != "cuda" or storage.nbytes() < LEAST_BYTES or tensor.is_leaf and tensor.requires_grad:
            return tensor
        kept = self.layers[layer].get(storage.data_ptr())
        if kept is None:
            kept = self.layers[layer][storage.data_ptr()] = self._send(storage, tensor.device)
        return _View(kept, layer, tensor.dtype, tensor.size(), tensor.stride(), tensor.storage_offset())

    def _send(self, storage: Any, device: torch.device) -> _Kept:
        whole = torch.empty(0, dtype=torch.uint8, device=device).set_(storage)
        buffers = self.free[whole.numel()]
        host = buffers.pop() if buffers else torch.empty(whole.numel(), dtype=torch.uint8, pin_memory=True)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            host.copy_(whole, non_blocking=True)
            return _Kept(whole, host, self._stream.record_event())

    def _release(self, layer: int) -> None:
        """Lets go of a layer's device memory; whoever gets it next on this stream waits for the copy."""
        for kept in self.layers.get(layer, {}).values():
            torch.cuda.current_stream().wait_event(kept.moved)
            kept.device = None

    def _unpack(self, packed: Any) -> Tensor:
        if isinstance(packed, _Stays):
            self._fetch(packed.layer - 1)
            return packed.take()
        if not isinstance(packed, _View):
            tensor: Tensor = packed
            return tensor
        for layer in (packed.layer, packed.layer - 1):
            self._fetch(layer)
        kept = packed.kept
        assert kept.device is not None
        torch.cuda.current_stream().wait_event(kept.moved)
        whole = kept.device.view(packed.dtype)
        return whole.as_strided(packed.size, packed.stride, packed.offset)

    def _fetch(self, layer: int) -> None:
        """Starts to bring a layer's tensors back, once; its buffers are free for the next pass, on the same stream."""
        for kept in self.layers.pop(layer, {}).values():
            if kept.device is None:
                kept.device = torch.empty_like(kept.host, device=torch.cuda.current_device(), pin_memory=False)
                self._stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(self._stream):
                    kept.device.copy_(kept.host, non_blocking=True)
                    kept.moved = self._stream.record_event()
            self.free[kept.host.numel()].append(kept.host)
