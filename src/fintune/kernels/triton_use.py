"""Whether a tensor's work goes to the Triton kernels, and their launch.

Enters: tensors. Leaves: an answer, or a launched kernel. Triton itself is imported by the modules named ``*_triton``
only, which nothing imports before the answer is yes: users without a GPU lack it.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

FLOATS = (torch.bfloat16, torch.float16, torch.float32)


@functools.cache
def triton_is_installed() -> bool:
    """Torch for Windows and some builds for Linux come without it."""
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether Triton is asked to run its kernels in Python, on the CPU; it must be asked before it is imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def uses_triton(*tensors: Tensor | None) -> bool:
    """Whether the kernels take these tensors; a compiler gets the plain operations, which it can see through."""
    if torch.compiler.is_compiling():
        return False
    given = [tensor for tensor in tensors if tensor is not None]
    if not (all(tensor.is_cuda for tensor in given) or interpreted()):
        return False
    return triton_is_installed() and all(tensor.dtype in FLOATS for tensor in given)


def launch(kernel: Any, programs: tuple[int, ...], device: torch.device, *arguments: Any, **options: Any) -> None:
    """Runs a kernel on ``device``, which need not be the current one: Triton itself asks no tensor where it lies."""
    if 0 in programs:
        return
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[programs](*arguments, **options)
    else:
        kernel[programs](*arguments, **options)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type to calculate in: fp32, or fp64 for fp64."""
    return torch.promote_types(dtype, torch.float32)
