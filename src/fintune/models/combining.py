"""Several adapters of one base made into one, by peft; no base model is loaded.

What peft computes reads the factors and the shapes of the layers, never their weights, so the layers stand on zeros
that take no memory. Enters: adapter folders, weights and a method. Leaves: an ordinary adapter folder.

TIES: arXiv 2306.01708; DARE: arXiv 2311.03099; the methods are peft's ``add_weighted_adapter``.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from fintune.models.adapter_files import sort_targets
from fintune.models.adapter_weights import require_one_base
from fintune.models.adapters import peft_quiet, seeded
from fintune.models.foreign import first_line
from fintune.models.stored_updates import CONFIG, WEIGHTS, StoredUpdates, plain_name
from fintune.schema.errors import AdapterError

Method = Literal["linear", "svd", "cat", "ties", "dare_linear", "dare_ties"]
METHODS: tuple[Method, ...] = get_args(Method)
PRUNING = ("ties", "dare_linear", "dare_ties")
_NEW = "combined"
# A combination has its own answers to the validation rows, and is described by its lineage.
_OF_ONE_PARENT = (CONFIG, WEIGHTS, "README.md", "recipe.yaml", "fintune_validation.json")


def combine_adapters(
    parents: Sequence[Path],
    weights: Sequence[float],
    method: Method,
    target: Path,
    *,
    rank: int | None = None,
    density: float = 0.5,
    seed: int = 17,
) -> Path:
    """Writes the combination of adapters into a new folder, with the tokenizer of the first.

    Args:
        parents: two or more LoRA adapters of one base.
        weights: one number for each.
        method: ``cat`` and, at full rank, ``svd`` give the weighted sum of the updates; ``linear`` weighs the factors,
            which only comes near it; ``ties`` and ``dare_*`` drop part of the factors first.
        target: folder to make.
        rank: of the result, for ``svd``; the largest of the parents' when None.
        density: share that is kept, for ``ties`` and ``dare_*``.
        seed: decides what ``dare_*`` drops.

    Raises:
        AdapterError: the adapters are of different bases, or peft cannot combine them in this way.
    """
    _require_sensible(parents, weights, method, density)
    require_one_base(parents)
    with peft_quiet(), seeded(seed, torch.device("cpu")):
        model = _on_zeros(parents)
        try:
            model.base_model.add_weighted_adapter(
                [_named(index) for index in range(len(parents))],
                list(weights),
                _NEW,
                combination_type=method,
                density=density if method in PRUNING else None,
                svd_rank=rank,
                svd_full_matrices=False,
            )
        except (ValueError, TypeError, RuntimeError) as exc:
            raise AdapterError(
                f"peft cannot combine these adapters by {method} ({first_line(exc)}).",
                "svd and cat take adapters of any rank; the others need equal ranks.",
            ) from exc
    return _save(model, parents[0], target)


def _require_sensible(parents: Sequence[Path], weights: Sequence[float], method: str, density: float) -> None:
    if method not in METHODS:
        raise AdapterError(f"There is no method called {method}.", f"Choose one of {', '.join(METHODS)}.")
    if len(parents) < 2 or len(parents) != len(weights):
        raise AdapterError(
            f"{len(parents)} adapters and {len(weights)} weights were given.", "Name two or more, with a weight each."
        )
    if not 0 < density < 1:
        raise AdapterError(f"The density is {density:g}.", "Give the share to keep, between 0 and 1.")


def _on_zeros(parents: Sequence[Path]) -> Any:
    """A peft model of the adapters, named by their positions, on layers whose weights are one shared zero."""
    from peft import LoraConfig, PeftModel, set_peft_model_state_dict
    from safetensors.torch import load_file

    with ExitStack() as stack:
        updates = [stack.enter_context(StoredUpdates(folder)) for folder in parents]
        for one in updates:
            _require_plain(one)
        shapes = {plain_name(m): one.shape(m) for one in updates for m in one.modules}
        skeleton = _skeleton(shapes)
        model: Any = None
        for index, folder in enumerate(parents):
            config: Any = LoraConfig.from_pretrained(str(folder))
            config.inference_mode = True
            if model is None:
                model = PeftModel(skeleton, config, adapter_name=_named(index), autocast_adapter_dtype=False)
            else:
                model.add_adapter(_named(index), config)
            set_peft_model_state_dict(model, load_file(folder / WEIGHTS), adapter_name=_named(index))
            # peft sets alpha to the new rank but keeps use_rslora, whose scale would then be sqrt(rank), not 1.
            model.peft_config[_named(index)] = replace(config, use_rslora=False)
    return model


def _named(index: int) -> str:
    return f"parent{index}"  # a bare number would also match the numbers of layers


def _require_plain(updates: StoredUpdates) -> None:
    if updates.config.get("use_dora"):
        raise AdapterError(
            f"{updates.folder} is a DoRA adapter, whose magnitudes have no weighted sum.",
            "Combine LoRA adapters without DoRA.",
        )
    if updates.other_tensors:
        raise AdapterError(
            f"{updates.folder} holds layers saved whole beside its LoRA factors, which cannot be combined.",
            "Combine adapters without modules_to_save and biases.",
        )


def _skeleton(shapes: dict[str, tuple[int, int]]) -> nn.Module:
    """Linear layers of these (out, in) shapes under their dotted names."""
    root = nn.Module()
    for name, (rows, columns) in shapes.items():
        *path, last = name.split(".")
        parent = root
        for part in path:
            if part not in parent._modules:
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        linear = nn.Linear(columns, rows, bias=False, device="meta")
        linear.weight = nn.Parameter(torch.zeros(1).expand(rows, columns), requires_grad=False)
        parent.add_module(last, linear)
    return root


def _save(model: Any, first: Path, target: Path) -> Path:
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    tensors = get_peft_model_state_dict(model, adapter_name=_NEW, save_embedding_layers=False)
    target.mkdir(parents=True)
    for file in first.iterdir():
        if file.is_file() and file.name not in _OF_ONE_PARENT and file.suffix in (".json", ".jinja", ".model", ".txt"):
            shutil.copyfile(file, target / file.name)
    save_file({key: value.contiguous().clone() for key, value in tensors.items()}, target / WEIGHTS, {"format": "pt"})
    model.peft_config[_NEW].save_pretrained(str(target))
    sort_targets(target / CONFIG)
    return target
