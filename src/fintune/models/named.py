"""What a caller names in words, checked before anything is loaded: a device, types of weights, a size of files.

Enters: words. Leaves: what they mean, or a sentence with the words that would do.
"""

from __future__ import annotations

import re
from typing import Literal, get_args

import torch

from fintune.models.foreign import first_line
from fintune.schema.errors import ModelError
from fintune.schema.recipe import ModelSection, Quantization

Half = Literal["bfloat16", "float16"]
_HALVES: dict[str, Half] = {name: name for name in get_args(Half)}
_QUANTIZATIONS: dict[str, Quantization] = {name: name for name in get_args(Quantization)}
_BYTES = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def named_device(name: str) -> torch.device:
    """The torch device of that name.

    Raises:
        ModelError: there is no such device here.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(
            f"{name!r} is no device.", "Choose cpu, cuda, or of several GPUs one such as cuda:1."
        ) from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ModelError(
                f"The device {name} was asked for, but PyTorch finds {count or 'no'} CUDA device{'s' * (count != 1)}.",
                "Choose another, or cpu; `fintune doctor` says what is here.",
            )
    elif device.type != "cpu":
        try:
            torch.zeros(1, device=device).tolist()
        except (RuntimeError, AssertionError, ImportError) as error:
            raise ModelError(
                f"The device {name} does not work ({first_line(error)}).", "Choose cpu or cuda."
            ) from error
    return device


def named_dtype(name: str) -> Half:
    """The type of 16 bits of that name.

    Raises:
        ModelError: it is none.
    """
    if name not in _HALVES:
        raise ModelError(f"{name} is not a type of 16 bits.", f"Choose {' or '.join(_HALVES)}.")
    return _HALVES[name]


def named_quantization(name: str) -> Quantization:
    """The storage of weights of that name.

    Raises:
        ModelError: there is no such storage.
    """
    if name not in _QUANTIZATIONS:
        raise ModelError(f"{name!r} is no quantization.", f"Choose from {', '.join(_QUANTIZATIONS)}.")
    return _QUANTIZATIONS[name]


def held_as(section: ModelSection, quantization: str | None) -> ModelSection:
    """The section with its weights held as named; as it is when None.

    Raises:
        ModelError: there is no such storage.
    """
    if quantization is None:
        return section
    return ModelSection.model_validate({**section.model_dump(), "quantization": named_quantization(quantization)})


def named_bytes(size: str) -> int:
    """A size such as 5GB, in bytes; units are powers of ten, as the hub's.

    Raises:
        ModelError: it is no size, or less than a byte.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]B)\s*", size, re.ASCII | re.IGNORECASE)
    count = int(float(match[1]) * _BYTES[match[2].upper()]) if match else 0
    if count < 1:
        raise ModelError(
            f"{size!r} is no size of a file.", "Write a number above 0 with KB, MB, GB or TB, such as 5GB."
        )
    return count
