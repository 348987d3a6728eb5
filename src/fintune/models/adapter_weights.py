"""What is in an adapter, and how far two are apart, without a base model and without ever forming a whole update.

The update of a module is ``scale B A`` with ``A`` (r, in) and ``B`` (out, r). With ``B = Q R`` and ``A' = P S`` its
Frobenius norm is that of the small matrix ``R S'``; a difference of updates is one update with the factors side by
side, so the same holds for it. Enters: adapter folders. Leaves: norms and distances, in double precision.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fintune.models.adapter_files import read_adapter_info
from fintune.models.stored_updates import StoredUpdates, plain_name
from fintune.schema.errors import AdapterError

_COMPARED = ("r", "lora_alpha", "target_modules", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern",
             "lora_dropout", "bias", "modules_to_save", "exclude_modules", "layers_to_transform")  # fmt: skip


@dataclass(frozen=True)
class Factors:
    """The update of one module, ``scale B A``; factors of several updates may stand side by side.

    Attributes:
        a: (r, in), double precision.
        b: (out, r) with the scale multiplied in.
    """

    a: Tensor
    b: Tensor

    def norm(self) -> float:
        """Frobenius norm of the product."""
        small = torch.linalg.qr(self.b, mode="r").R @ torch.linalg.qr(self.a.T, mode="r").R.T
        return float(torch.linalg.norm(small))

    def times(self, factor: float) -> Factors:
        """The update multiplied by a number."""
        return Factors(self.a, self.b * factor)


def added(updates: Sequence[Factors]) -> Factors:
    """The sum of updates of one module, as factors side by side."""
    return Factors(torch.cat([one.a for one in updates]), torch.cat([one.b for one in updates], dim=1))


@dataclass(frozen=True)
class AdapterContents:
    """What an adapter consists of.

    Attributes:
        path: its folder.
        rank: of most modules; likewise alpha.
        alpha: numerator of the scale.
        rslora: the scale is alpha / sqrt(rank) instead of alpha / rank.
        dora: magnitudes are learnt too; norms and differences are of ``B A`` alone.
        targets: types of the adapted layers, such as q_proj.
        modules: adapted modules.
        parameters: numbers in the file.
        other_tensors: tensors that are no LoRA factors: magnitudes, or layers saved whole.
        norms: Frobenius norm of the update over all modules of one type, such as q_proj.
    """

    path: Path
    rank: int
    alpha: float
    rslora: bool
    dora: bool
    targets: tuple[str, ...]
    modules: int
    parameters: int
    other_tensors: int
    norms: dict[str, float]


@dataclass(frozen=True)
class ModuleDifference:
    """How the updates of one module differ.

    Attributes:
        module: its name in the base model.
        relative: norm of the difference over that of the first update; None where the first is zero or lacks it.
        norms: of the two updates; 0 where an adapter lacks the module.
    """

    module: str
    relative: float | None
    norms: tuple[float, float]


@dataclass(frozen=True)
class AdapterDifference:
    """How a second adapter differs from a first.

    Attributes:
        configuration: by key, the two values that differ.
        relative: norm of the difference of all updates over that of the first; None where that is zero.
        modules: each adapted module, in the order of their names.
    """

    configuration: dict[str, tuple[Any, Any]]
    relative: float | None
    modules: tuple[ModuleDifference, ...]


def factors(updates: StoredUpdates, module: str) -> Factors:
    """The update of one module."""
    a, b = updates.matrices(module)
    return Factors(a.double(), b.double() * updates.scale(module))


def layer_type(module: str) -> str:
    """The last part of a module's name."""
    return module.rpartition(".")[2]


def inspect_adapter(folder: Path) -> AdapterContents:
    """Counts and measures an adapter.

    Raises:
        AdapterError: it is no intact LoRA adapter.
    """
    with StoredUpdates(folder) as updates:
        squares: dict[str, float] = defaultdict(float)
        for module in updates.modules:
            squares[layer_type(module)] += factors(updates, module).norm() ** 2
        config = updates.config
        return AdapterContents(
            path=folder,
            rank=config["r"],
            alpha=config["lora_alpha"],
            rslora=bool(config.get("use_rslora")),
            dora=bool(config.get("use_dora")),
            targets=tuple(sorted(squares)),
            modules=len(updates.modules),
            parameters=sum(updates.sizes()),
            other_tensors=len(updates.other_tensors),
            norms={kind: math.sqrt(square) for kind, square in sorted(squares.items())},
        )


def compare_adapters(first: Path, second: Path) -> AdapterDifference:
    """Compares two adapters of one base, which need be neither of one rank nor on the same modules.

    Raises:
        AdapterError: one is no intact LoRA adapter, or they are of different bases.
    """
    require_one_base([first, second])
    with StoredUpdates(first) as one, StoredUpdates(second) as other:
        rows, difference, whole = [], 0.0, 0.0
        for module in sorted({*one.modules, *other.modules}):
            mine, theirs = (factors(side, module) if module in side.modules else None for side in (one, other))
            _require_one_shape(module, mine, theirs)
            present = ([mine] if mine else []) + ([theirs.times(-1.0)] if theirs else [])
            norms = (mine.norm() if mine else 0.0, theirs.norm() if theirs else 0.0)
            distance = added(present).norm()
            difference, whole = difference + distance**2, whole + norms[0] ** 2
            rows.append(ModuleDifference(plain_name(module), distance / norms[0] if norms[0] else None, norms))
        return AdapterDifference(
            configuration={
                key: pair
                for key in _COMPARED
                if (pair := (_comparable(one.config.get(key)), _comparable(other.config.get(key))))[0] != pair[1]
            },
            relative=math.sqrt(difference / whole) if whole else None,
            modules=tuple(rows),
        )


def distance_from_sum(combined: Path, parents: Sequence[Path], weights: Sequence[float]) -> float | None:
    """How far a combination is from the weighted sum of its parents' updates, relative to that sum; None if it is 0."""
    with ExitStack() as stack:
        sides = [stack.enter_context(StoredUpdates(folder)) for folder in (combined, *parents)]
        signed = [1.0, *(-weight for weight in weights)]
        distance = whole = 0.0
        for module in sorted({module for side in sides for module in side.modules}):
            terms = [
                factors(side, module).times(sign)
                for side, sign in zip(sides, signed, strict=True)
                if module in side.modules
            ]
            distance += added(terms).norm() ** 2
            summands = terms[1:] if module in sides[0].modules else terms
            whole += added(summands).norm() ** 2 if summands else 0.0
    return math.sqrt(distance / whole) if whole else None


def require_one_base(folders: Iterable[Path]) -> None:
    """Refuses adapters that say they were trained on different weights."""
    infos = [read_adapter_info(folder) for folder in folders]
    for info in infos[1:]:
        hashes = (infos[0].base_content_hash, info.base_content_hash)
        differ = hashes[0] != hashes[1] if None not in hashes else _stem(infos[0].base) != _stem(info.base)
        if differ:
            raise AdapterError(
                f"{infos[0].path} was trained on {infos[0].base or 'an unknown base'}, but {info.path} on "
                f"{info.base or 'an unknown base'}, or on other weights of that name.",
                "Only adapters of one base can be compared or combined.",
            )


def _stem(base: str) -> str:
    return Path(base).name.lower()


def _require_one_shape(module: str, one: Factors | None, other: Factors | None) -> None:
    if one and other and (one.a.shape[1], one.b.shape[0]) != (other.a.shape[1], other.b.shape[0]):
        raise AdapterError(
            f"{plain_name(module)} has another shape in the two adapters.", "Only adapters of one base can be compared."
        )


def _comparable(value: Any) -> Any:
    """Lists in one order, and one word for nothing set."""
    empty: tuple[Any, ...] = (None, [], {}, False)
    return False if value in empty else sorted(value) if isinstance(value, list) else value
