"""An earlier adapter as numbers: the matrices of every layer with the scale they were trained under.

Enters: an adapter folder. Leaves: ``EarlierAdapter``, on the CPU, in PEFT's meaning of its configuration.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fintune.models.adapter_files import read_adapter_info
from fintune.models.files import read_json
from fintune.schema.errors import AdapterError

_PREFIX = "base_model.model."
_PARTS = (".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector")


@dataclass(frozen=True)
class EarlierLayer:
    """One layer: ``scale * b @ a`` is added to its weight.

    Attributes:
        a: (rank, in).
        b: (out, rank).
        scale: alpha / rank, or alpha / sqrt(rank) for rsLoRA.
        magnitude: of DoRA, (out,); None without.
    """

    a: Tensor
    b: Tensor
    scale: float
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        """Rank of the update."""
        return len(self.a)


@dataclass(frozen=True)
class EarlierAdapter:
    """All layers of an adapter by their dotted name in the base."""

    path: Path
    layers: Mapping[str, EarlierLayer]
    rslora: bool
    dora: bool


def read_earlier(path: Path) -> EarlierAdapter:
    """Reads an adapter folder.

    Raises:
        AdapterError: it is damaged, no LoRA adapter, or holds more than LoRA matrices.
    """
    from peft.utils.other import get_pattern_key
    from safetensors.torch import load_file

    read_adapter_info(path)  # refuses what is damaged or no adapter
    config = read_json(path / "adapter_config.json")
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in load_file(path / "adapter_model.safetensors").items():
        part = next((part for part in _PARTS if key.endswith(part)), None)
        if part is None or not key.startswith(_PREFIX):
            raise AdapterError(
                f"{path} holds {key}, which is no matrix of LoRA on a linear layer.",
                "Start from an adapter of linear layers, or set adapter.hand_over=merge.",
            )
        parts.setdefault(key.removeprefix(_PREFIX).removesuffix(part), {})[part] = tensor
    alphas: dict[str, float] = config.get("alpha_pattern") or {}
    rslora = bool(config.get("use_rslora"))
    layers = {}
    for name, found in parts.items():
        alpha = float(alphas.get(get_pattern_key(list(alphas), name), config["lora_alpha"]))
        layers[name] = _layer(path, name, found, alpha, rslora)
    return EarlierAdapter(path, layers, rslora, bool(config.get("use_dora")))


def _layer(path: Path, name: str, found: Mapping[str, Tensor], alpha: float, rslora: bool) -> EarlierLayer:
    a, b, magnitude = (found.get(part) for part in _PARTS)
    if a is None or b is None or len(a) != b.shape[1]:
        raise AdapterError(
            f"The matrices of {name} in {path} do not fit each other.",
            "The adapter is damaged; copy or train it again.",
        )
    rank = len(a)
    return EarlierLayer(a.float(), b.float(), alpha / (math.sqrt(rank) if rslora else rank), _float(magnitude))


def _float(tensor: Any) -> Tensor | None:
    return None if tensor is None else tensor.float()
