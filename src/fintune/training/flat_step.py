"""A step as one piece of memory and an outline in JSON, for the way from process to process and to the device.

Enters: a ``Step``, or the ``StepDataset`` it comes from. Leaves: bytes that hold numbers and names, never code.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fintune.training.steps import StepDataset
from fintune.trees.batch import TreeBatch
from fintune.trees.mixture import Mixture
from fintune.trees.packing import PaddedBatch
from fintune.trees.plan import Step, StepPlan
from fintune.trees.stored import StoredSamples
from fintune.trees.task_edges import TaskCounts, TaskEdges

_ALIGNMENT = 64  # bytes; kernels are compiled anew for addresses that are less aligned
_TYPES = {kind.__name__: kind for kind in (Step, TreeBatch, PaddedBatch, TaskEdges, TaskCounts, StepPlan, Mixture)}
_DTYPES = {str(dtype): dtype for dtype in (torch.int64, torch.float32)}

Describe = Callable[[Any], Any]


@dataclass(frozen=True)
class FlatStep:
    """A step whose tensors lie in one piece of memory, so that they move in one copy.

    Attributes:
        outline: the step in JSON, with places in ``memory`` instead of tensors.
        memory: (B,) uint8.
    """

    outline: bytes
    memory: Tensor


def flatten(step: Step) -> FlatStep:
    """The step with its tensors copied into one piece of memory."""
    on_host = {id(edges.weight) for edges in step.by_task}  # what is only added up there
    tensors: list[tuple[int, Tensor]] = []
    size = 0

    def place(tensor: Tensor) -> dict[str, Any]:
        nonlocal size
        start = size
        tensors.append((start, tensor))
        size += -(-tensor.numel() * tensor.element_size() // _ALIGNMENT) * _ALIGNMENT
        shape = list(tensor.shape)
        return {"host": id(tensor) in on_host, "dtype": str(tensor.dtype), "start": start, "shape": shape}

    outline = json.dumps(_described(step, place)).encode()
    memory = torch.empty(size, dtype=torch.uint8)
    for start, tensor in tensors:
        end = start + tensor.numel() * tensor.element_size()
        memory[start:end].view(tensor.dtype).copy_(tensor.flatten())
    return FlatStep(outline, memory)


def unflatten(flat: FlatStep, device: torch.device) -> Step:
    """The step with its batches on ``device``; what is only added up there is left on the host, weights by task."""
    moved = flat.memory.to(device, non_blocking=True)

    def tensor(place: dict[str, Any]) -> Tensor:
        dtype = _DTYPES[place["dtype"]]
        memory = flat.memory if place["host"] else moved
        end = place["start"] + int(np.prod(place["shape"], dtype=np.int64)) * dtype.itemsize
        return memory[place["start"] : end].view(dtype).view(place["shape"])

    step: Step = _restored(json.loads(flat.outline), tensor)
    return step


def write_data_set(steps: StepDataset, samples: StoredSamples, file: Path) -> None:
    """Writes what a worker needs to make the same steps; the samples stay where they are stored."""
    settings = {name: value for name, value in vars(steps).items() if not name.startswith("_") and name != "samples"}
    outline = {name: _described(value, _refuse) for name, value in settings.items()}
    file.write_text(json.dumps({**outline, "samples": str(samples.folder)}), encoding="utf-8")


def read_data_set(file: Path) -> StepDataset:
    """The data set of steps that ``write_data_set`` has written."""
    outline = json.loads(file.read_text(encoding="utf-8"))
    samples = StoredSamples(Path(outline.pop("samples")))
    return StepDataset(samples=samples, **{name: _restored(value, _refuse) for name, value in outline.items()})


def _refuse(value: Any) -> Any:
    raise TypeError(f"a data set of steps holds no {type(value).__name__}")


def _described(value: Any, place: Describe) -> Any:
    """As JSON: dataclasses by name, sequences as lists, arrays with their type, tensors as ``place`` says."""
    if is_dataclass(value):
        parts = {item.name: _described(getattr(value, item.name), place) for item in fields(value)}
        return {"type": type(value).__name__, "fields": parts}
    if isinstance(value, Tensor):
        return {"place": place(value)}
    if isinstance(value, np.ndarray):
        return {"array": value.tolist(), "dtype": str(value.dtype)}
    if isinstance(value, tuple | list):
        return [_described(item, place) if is_dataclass(item) else item for item in value]
    return value


def _restored(value: Any, tensor: Callable[[dict[str, Any]], Any]) -> Any:
    """What ``_described`` was given; sequences become tuples."""
    if isinstance(value, list):
        return tuple(_restored(item, tensor) if isinstance(item, dict) else item for item in value)
    if not isinstance(value, dict):
        return value
    if "type" in value:
        kind: Any = _TYPES[value["type"]]
        return kind(**{name: _restored(part, tensor) for name, part in value["fields"].items()})
    if "place" in value:
        return tensor(value["place"])
    return np.asarray(value["array"], dtype=value["dtype"])
