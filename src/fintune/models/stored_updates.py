"""The matrices of a stored adapter, read module by module, with the scale they were trained under.

The update of a module is ``scale B A`` with ``A`` (r, in) and ``B`` (out, r). Enters: an adapter folder. Leaves: its
factors, on the CPU, in PEFT's meaning of its configuration.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from fintune.models.adapter_files import read_adapter_info
from fintune.models.files import read_json
from fintune.schema.errors import AdapterError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX, _A, _B, _MAGNITUDE = "base_model.model.", ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"


class StoredUpdates:
    """The updates of an adapter folder.

    Args:
        folder: a LoRA adapter in safetensors form; opened by ``with``.
    """

    def __init__(self, folder: Path) -> None:
        info = read_adapter_info(folder)
        if info.kind != "lora":
            raise AdapterError(f"{folder} holds a wholly trained model, which has no low-rank update.", "Check it.")
        self.folder = folder
        self.config = read_json(folder / CONFIG)
        self._stack = ExitStack()

    def __enter__(self) -> StoredUpdates:
        self._file = self._stack.enter_context(safe_open(self.folder / WEIGHTS, framework="pt"))
        self.tensors = set(self._file.keys())
        self.modules = sorted(key.removesuffix(_A) for key in self.tensors if key.endswith(_A))
        for module in self.modules:
            self._require_both(module)
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def _require_both(self, module: str) -> None:
        if module + _B in self.tensors and self._shape(module + _A)[:1] == self._shape(module + _B)[1:2]:
            return
        raise AdapterError(
            f"{self.folder / WEIGHTS} has {module}{_A} without another factor that fits it.",
            "The adapter is damaged; copy or train it again.",
        )

    @property
    def other_tensors(self) -> set[str]:
        """Names of the tensors that are no factors of an update: magnitudes, or layers saved whole."""
        return self.tensors - {module + part for module in self.modules for part in (_A, _B)}

    def matrices(self, module: str) -> tuple[Tensor, Tensor]:
        """A (r, in) and B (out, r) of one module, as stored."""
        return self._file.get_tensor(module + _A), self._file.get_tensor(module + _B)

    def magnitude(self, module: str) -> Tensor | None:
        """Of DoRA, (out,); None without."""
        return self._file.get_tensor(module + _MAGNITUDE) if module + _MAGNITUDE in self.tensors else None

    def scale(self, module: str) -> float:
        """What ``B A`` is multiplied by."""
        rank = self._shape(module + _A)[0]
        alpha = _pattern_value(self.config.get("alpha_pattern"), plain_name(module), self.config["lora_alpha"])
        return float(alpha) / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def sizes(self) -> Iterator[int]:
        """Numbers of each tensor."""
        for key in self.tensors:
            yield math.prod(self._shape(key))

    def shape(self, module: str) -> tuple[int, int]:
        """(out, in) of a module."""
        return int(self._shape(module + _B)[0]), int(self._shape(module + _A)[1])

    def _shape(self, key: str) -> list[int]:
        shape: list[int] = self._file.get_slice(key).get_shape()
        return shape


def plain_name(module: str) -> str:
    """The module's name in the base model."""
    return module.removeprefix(_PREFIX)


def is_magnitude(key: str) -> bool:
    """Whether a tensor's name is that of a DoRA magnitude."""
    return key.endswith(_MAGNITUDE)


def _pattern_value(pattern: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """As peft looks up ``alpha_pattern``: keys match the end of a module's name."""
    from peft.utils.other import get_pattern_key

    if not pattern:
        return default
    return pattern.get(get_pattern_key(list(pattern), module), default)
