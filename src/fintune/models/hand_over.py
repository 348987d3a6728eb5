"""An adapter that starts from an earlier one, by a named rule, with the earlier outputs unchanged before training.

::

    pad     A = [A_old; random]   B = [B_old, 0] * s_old/s_new      all of it goes on being trained
    stack   A = [A_old; random]   B = [B_old * s_old/s_new, 0]      the old rows and columns stay as they are

Enters: a loaded base and an adapter section that names the earlier adapter. Leaves: a model with one ordinary PEFT
adapter. ``merge`` is another matter: there the base changes (``merging``).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fintune.models.adapter_files import load_adapter, read_adapter_info, require_same_base
from fintune.models.adapters import attach_adapter, attach_lora, lora_config, target_layers
from fintune.models.earlier import EarlierAdapter, EarlierLayer, read_earlier
from fintune.models.load import LoadedBase
from fintune.schema.adapter_records import given_adapter
from fintune.schema.errors import AdapterError
from fintune.schema.hand_over import RULES, hand_over_problem
from fintune.schema.recipe import AdapterSection

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class FrozenPart:
    """The rows of A and columns of B that ``stack`` took over and that no update may change.

    Attributes:
        matrices: each parameter with the axis it is divided along, and the values of its first entries there.
    """

    matrices: tuple[tuple[nn.Parameter, int, Tensor], ...]

    @property
    def parameters(self) -> int:
        """How many numbers it holds."""
        return sum(kept.numel() for _, _, kept in self.matrices)

    def drop_gradients(self) -> None:
        """Before the gradient's norm is taken: what is not trained has no part in it."""
        for parameter, axis, kept in self.matrices:
            if parameter.grad is not None:
                parameter.grad.narrow(axis, 0, kept.shape[axis]).zero_()

    @torch.no_grad()
    def restore(self) -> None:
        """After an update: weight decay has moved what has no gradient."""
        for parameter, axis, kept in self.matrices:
            parameter.narrow(axis, 0, kept.shape[axis]).copy_(kept)


@dataclass(frozen=True)
class Started:
    """A model ready to be trained, and the part of it that stays as it is; None where all of the adapter is trained."""

    model: PeftModel | PreTrainedModel
    frozen: FrozenPart | None = None


def start_adapter(base: LoadedBase, section: AdapterSection, *, seed: int) -> Started:
    """Attaches what a recipe trains, fresh or from the earlier adapter it names.

    Args:
        base: a freshly loaded base; changed in place.
        section: the adapter section; a ``hand_over`` of merge has been carried out already.
        seed: decides what is random of the new adapter.

    Raises:
        AdapterError: the earlier adapter is damaged, was made for another base, or cannot become this one.
    """
    if section.init_adapter is None or section.hand_over == "merge":
        return Started(attach_adapter(base, section, seed=seed))
    path = given_adapter(section.init_adapter)
    info = read_adapter_info(path)
    require_same_base(base.files, info)
    if (info.kind == "full") != (section.kind == "none"):
        raise _refusal(path, AdapterSection(kind="none" if info.kind == "full" else "lora"), section)
    if info.kind == "full":
        load_adapter(base, path)
        return Started(attach_adapter(base, section, seed=seed))
    earlier = read_earlier(path)
    if section.hand_over == "stack":
        return _stacked(base, section, earlier, seed)
    return Started(_padded(base, section, earlier, seed))


def _padded(base: LoadedBase, section: AdapterSection, earlier: EarlierAdapter, seed: int) -> PeftModel:
    names = target_layers(base.model, section)
    _require_fit(base, section, earlier, names)
    model = attach_lora(base, lora_config(base.model, section), seed=seed)
    _take_over(model, earlier)
    return model


def _stacked(base: LoadedBase, section: AdapterSection, earlier: EarlierAdapter, seed: int) -> Started:
    if earlier.dora:
        raise _refusal(earlier.path, AdapterSection(dora=True), section)
    new = target_layers(base.model, section)
    _require_layers(base, earlier)
    ranks = {name: layer.rank for name, layer in earlier.layers.items()}
    for name in new:
        ranks[name] = ranks.get(name, 0) + section.rank
    model = attach_lora(base, _stacked_config(base, section, ranks), seed=seed)
    return Started(model, FrozenPart(tuple(_take_over(model, earlier))))


def _stacked_config(base: LoadedBase, section: AdapterSection, ranks: Mapping[str, int]) -> LoraConfig:
    """One adapter with the ranks given, all of them at the scale that the section gives its own rank."""
    config = lora_config(base.model, section)
    scale = section.alpha / _divisor(section.rank, section.rslora)
    every = Counter(map(_end, target_layers(base.model, section.model_copy(update={"targets": "all-linear"}))))
    have = Counter(map(_end, ranks))
    kinds = Counter(_end(name) for name, _ in {(_end(name), rank) for name, rank in ranks.items()})
    keys = {
        name: _end(name) if have[_end(name)] == every[_end(name)] and kinds[_end(name)] == 1 else name for name in ranks
    }
    config.target_modules = sorted(set(keys.values()))
    config.r = Counter(ranks.values()).most_common(1)[0][0]
    config.lora_alpha = _alpha(scale, config.r, section.rslora)
    odd = {keys[name]: rank for name, rank in sorted(ranks.items()) if rank != config.r}
    config.rank_pattern = odd
    config.alpha_pattern = {key: _alpha(scale, rank, section.rslora) for key, rank in odd.items()}
    return config


def _take_over(model: PeftModel, earlier: EarlierAdapter) -> list[tuple[nn.Parameter, int, Tensor]]:
    """Writes the earlier matrices into the first rows of A and columns of B; returns what was written, and where."""
    taken = []
    with torch.no_grad():
        for name, layer in earlier.layers.items():
            module: Any = model.get_base_model().get_submodule(name)
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            rows, columns = a.narrow(0, 0, layer.rank), b.narrow(1, 0, layer.rank)
            rows.copy_(layer.a)
            columns.copy_(layer.b * (layer.scale / module.scaling["default"]))
            if layer.magnitude is not None:
                module.lora_magnitude_vector["default"].weight.copy_(layer.magnitude)
            taken += [(a, 0, rows.clone()), (b, 1, columns.clone())]
    return taken


# --- what does not fit ---------------------------------------------------------------------------------------------


def _require_fit(base: LoadedBase, section: AdapterSection, earlier: EarlierAdapter, names: Sequence[str]) -> None:
    """Refuses an earlier adapter that cannot go on as the section's own, layer by layer."""
    _require_layers(base, earlier)
    ranks = {layer.rank for layer in earlier.layers.values()}
    before = section.model_copy(
        update={
            "rank": max(ranks) if section.hand_over == "pad" or len(ranks) == 1 else 0,
            "targets": section.targets if set(names) == set(earlier.layers) else _ends(earlier.layers),
            "rslora": earlier.rslora,
            "dora": earlier.dora,
        }
    )
    after = section if set(names) == set(earlier.layers) else section.model_copy(update={"targets": _ends(names)})
    if hand_over_problem(before, after) is not None:
        raise _refusal(earlier.path, before, after)
    differing = set(earlier.layers) ^ set(names)
    if differing and section.hand_over is None:
        raise AdapterError(f"The adapter {earlier.path} and the recipe's differ in {min(differing)}.", RULES)
    if dropped := sorted(set(earlier.layers) - set(names)):
        raise AdapterError(
            f"adapter.targets leaves out {dropped[0]}, which the adapter {earlier.path} changes.",
            "Name that layer too, or set adapter.hand_over to stack or merge.",
        )


def _require_layers(base: LoadedBase, earlier: EarlierAdapter) -> None:
    known = dict(base.model.named_modules())
    for name, layer in earlier.layers.items():
        weight: Any = known.get(name)
        fits = weight is not None and (weight.in_features, weight.out_features) == _shape(layer)
        if not fits:
            raise AdapterError(
                f"The adapter {earlier.path} changes {name}, which {base.files.source} has not or in another shape.",
                "Start from an adapter of this base.",
            )


def _shape(layer: EarlierLayer) -> tuple[int, int]:
    return layer.a.shape[1], layer.b.shape[0]


def _refusal(path: Path, before: AdapterSection, after: AdapterSection) -> AdapterError:
    problem = hand_over_problem(before, after)
    assert problem is not None, "only what does not fit is refused"
    return AdapterError(f"{path} cannot be started from: {problem.reason}", problem.remedy)


def _end(name: str) -> str:
    return name.rpartition(".")[2]


def _ends(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({_end(name) for name in names}))


def _divisor(rank: int, rslora: bool) -> float:
    return math.sqrt(rank) if rslora else rank


def _alpha(scale: float, rank: int, rslora: bool) -> Any:
    """The alpha that gives ``scale`` at ``rank``; a whole number is kept one for other readers of the file."""
    alpha = scale * _divisor(rank, rslora)
    return int(alpha) if alpha.is_integer() else alpha
