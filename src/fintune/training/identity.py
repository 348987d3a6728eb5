"""Which run is this: may a directory be gone on with, does a checkpoint belong to it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from fintune.models.adapter_files import read_adapter_info
from fintune.schema.adapter_records import given_adapter
from fintune.schema.errors import AdapterError, RunError
from fintune.schema.loading import load_recipe
from fintune.schema.recipe import Recipe
from fintune.schema.run_directory import RunDirectory
from fintune.schema.stages import SECTIONS, whole_recipe
from fintune.trees.chat import EncodedSet

_FREE_KEYS = (
    ("data", "require_licence"),
    *(("training", key) for key in ("log_steps", "keep_checkpoints", "save_steps", "tracking")),
)
# Keys newer than some checkpoints, with what these were made with: there they say nothing about identity.
_LATER_KEYS: dict[str, dict[str, Any]] = {
    "data": {"mixture": "proportional", "mixture_temperature": 2.0, "remove_same_document": True},
    "adapter": {"init_hash": None, "hand_over": None},
    "training": {
        "plateau_factor": 0.5,
        "plateau_patience": 2,
        "plateau_threshold": 0.0,
        "plateau_minimum": 0.0,
        "decay_ratio": 0.4,
    },
}
_LATER_TASK_KEYS = {"weight": None, "proportion": 1.0, "epochs": 1.0, "conversations": None}
_NUMERIC_KEYS = (
    ("model", "dtype"),
    ("model", "attention"),
    ("training", "packing"),
    ("training", "tokens_per_batch"),
    ("training", "gradient_checkpointing"),
    ("training", "compile"),
)


def run_fingerprint(recipe: Recipe, train_set: EncodedSet, base_hash: str) -> dict[str, str]:
    """What must be unchanged for a checkpoint to be continued: hashes of recipe, training tokens and base weights."""
    tokens = hashlib.sha256()
    for encoded in train_set.encoded:
        for part in (encoded.prompt, encoded.completion):
            tokens.update(len(part).to_bytes(8, "big"))
            tokens.update(part.tobytes())
    return {
        "recipe": hash_of(_training_identity(recipe)),
        "data": tokens.hexdigest(),
        "base": base_hash,
    }


def _training_identity(recipe: Recipe) -> dict[str, Any]:
    """The parts of a recipe that steer training; what is logged, kept or evaluated may change on resume.

    So may what changes only the last bits: training goes on with a warning.
    """
    whole = _dumped(recipe, "seed", "model", *SECTIONS)
    for section, key in _NUMERIC_KEYS:
        if section == "model":
            del whole["model"][key]
    if not recipe.stages:
        return whole | _steering({name: whole[name] for name in SECTIONS})
    stages = [{"name": stage.name} | _steering(_dumped(stage, *SECTIONS)) for stage in recipe.stages]
    mixed = _steering(_dumped(whole_recipe(recipe), *SECTIONS)) if recipe.stage_order == "mixed" else {}
    staged = {"seed": whole["seed"], "model": whole["model"], "stage_order": recipe.stage_order, "stages": stages}
    return staged | {key: section for key, section in mixed.items() if key == "training"}


def _dumped(section: BaseModel, *keys: str) -> dict[str, Any]:
    return section.model_dump(mode="json", include=set(keys))


def _steering(sections: dict[str, Any]) -> dict[str, Any]:
    """What of data, adapter and training steers the result, by keys that older runs have too."""
    for section, key in (*_FREE_KEYS, *_NUMERIC_KEYS):
        if section in sections:
            del sections[section][key]
    del sections["adapter"]["init_adapter"]  # a place; what lies there has the hash beside it
    for part, defaults in _LATER_KEYS.items():
        _drop_defaults(sections[part], defaults)
    for task in sections["data"]["tasks"]:
        _drop_defaults(task, _LATER_TASK_KEYS)
        for own in ("table", "conversations"):
            if task.get(own) is not None:
                del task[own]["licence"]  # terms may be stated later
    return sections


def _drop_defaults(section: dict[str, Any], defaults: dict[str, Any]) -> None:
    for key, default in defaults.items():
        if section[key] == default:
            del section[key]


def require_same_recipe(run: RunDirectory, recipe: Recipe, *, resolved: bool) -> None:
    """Refuses to go on in a directory that holds another run.

    Args:
        run: the run directory.
        recipe: the recipe asked for.
        resolved: its sources and hashes are pinned; before that, keys that are still null say nothing.
    """
    if not run.recipe.is_file():
        return
    before, now = _leaves(_training_identity(load_recipe(run.recipe))), _leaves(_training_identity(recipe))
    changed = [
        key
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and (resolved or now.get(key) is not None)
    ]
    if changed:
        raise RunError(
            f"{run.path} holds a run with another {', '.join(changed)}.",
            "Choose another --output-dir, or --no-resume to start beside it.",
        )


def pinned_start(recipe: Recipe) -> Recipe:
    """The recipe with the hash of the adapter it starts from.

    Raises:
        AdapterError: there is none, or it is not the one that the recipe pins.
    """
    adapter = recipe.adapter
    if adapter.init_adapter is None:
        return recipe
    found = adapter_hash(given_adapter(adapter.init_adapter))
    if adapter.init_hash not in (None, found):
        raise AdapterError(
            f"The adapter {adapter.init_adapter} has the hash {found[:12]}…, but the recipe pins "
            f"{str(adapter.init_hash)[:12]}….",
            "Restore the adapter, or clear adapter.init_hash to accept this one.",
        )
    return recipe.model_copy(update={"adapter": adapter.model_copy(update={"init_hash": found})})


def adapter_hash(folder: Path) -> str:
    """What an adapter does depends on its weights and on the scale that its configuration gives them."""
    config = folder / "adapter_config.json"
    scale = config.read_text(encoding="utf-8") if config.is_file() else ""
    return hash_of([read_adapter_info(folder).content_hash, scale])


def _leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings and lists as dotted keys."""
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, list):
        pairs = {str(i): item for i, item in enumerate(value)}.items()
    else:
        return {prefix: value}
    dot = f"{prefix}." if prefix else ""
    return {key: leaf for name, item in pairs for key, leaf in _leaves(item, f"{dot}{name}").items()}


def hash_of(value: Any) -> str:
    """SHA-256 of anything JSON can hold, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
