"""An earlier adapter as numbers: the matrices of every layer with the scale they were trained under.

Enters: an adapter folder. Leaves: ``EarlierAdapter``, on the CPU, in PEFT's meaning of its configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fintune.models.stored_updates import StoredUpdates, is_magnitude, plain_name
from fintune.schema.errors import AdapterError


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
    with StoredUpdates(path) as updates:
        if odd := sorted(key for key in updates.other_tensors if not is_magnitude(key)):
            raise AdapterError(
                f"{path} holds {odd[0]}, which is no matrix of LoRA on a linear layer.",
                "Start from an adapter of linear layers, or set adapter.hand_over=merge.",
            )
        layers = {plain_name(module): _layer(updates, module) for module in updates.modules}
        config = updates.config
    return EarlierAdapter(path, layers, bool(config.get("use_rslora")), bool(config.get("use_dora")))


def _layer(updates: StoredUpdates, module: str) -> EarlierLayer:
    a, b = updates.matrices(module)
    magnitude = updates.magnitude(module)
    return EarlierLayer(a.float(), b.float(), updates.scale(module), None if magnitude is None else magnitude.float())
