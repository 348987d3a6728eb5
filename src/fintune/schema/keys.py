"""Every key a recipe can have, read off the pydantic schema: what it accepts, its default, and its nearest neighbour.

Enters: a key path as YAML or pydantic names it. Leaves: words for error messages and for the reference page.
"""

from __future__ import annotations

import types
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher, get_close_matches
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fintune.schema.recipe import Recipe

# What other toolkits call the same thing; their users arrive with these names.
FOREIGN_NAMES: dict[str, str] = {
    "base_model": "model.base",
    "batch_size": "training.samples_per_step",
    "bf16": "model.dtype",
    "bnb_4bit_use_double_quant": "model.double_quant",
    "cutoff_len": "training.max_length",
    "dataset": "data.tasks",
    "datasets": "data.tasks",
    "fp16": "model.dtype",
    "gradient_accumulation_steps": "training.samples_per_step",
    "load_in_4bit": "model.quantization",
    "load_in_8bit": "model.quantization",
    "logging_steps": "training.log_steps",
    "lora_alpha": "adapter.alpha",
    "lora_dropout": "adapter.dropout",
    "lora_r": "adapter.rank",
    "lora_rank": "adapter.rank",
    "lr": "training.learning_rate",
    "lr_scheduler_type": "training.schedule",
    "max_seq_len": "training.max_length",
    "max_seq_length": "training.max_length",
    "micro_batch_size": "training.samples_per_step",
    "model_name": "model.base",
    "model_name_or_path": "model.base",
    "num_epochs": "training.epochs",
    "num_train_epochs": "training.epochs",
    "optim": "training.optimizer",
    "per_device_train_batch_size": "training.samples_per_step",
    "r": "adapter.rank",
    "report_to": "training.tracking",
    "save_total_limit": "training.keep_checkpoints",
    "scheduler": "training.schedule",
    "sequence_len": "training.max_length",
    "target_modules": "adapter.targets",
    "use_dora": "adapter.dora",
    "use_rslora": "adapter.rslora",
}


@dataclass(frozen=True)
class Key:
    """One key of the schema; list elements are written with index 0 (``data.tasks.0.name``)."""

    name: str
    field: FieldInfo

    @property
    def section(self) -> type[BaseModel] | None:
        """The section this key opens, directly or as the element of a list."""
        inner = _without_none(self.field.annotation)
        if get_origin(inner) is tuple:
            inner = get_args(inner)[0]
        return inner if isinstance(inner, type) and issubclass(inner, BaseModel) else None

    @property
    def is_list(self) -> bool:
        """Whether the value is a list (of sections or of scalars)."""
        return any(get_origin(part) is tuple for part in (self.field.annotation, *get_args(self.field.annotation)))

    @property
    def is_mapping(self) -> bool:
        """Whether the value is a mapping with keys of the reader's own."""
        return get_origin(_without_none(self.field.annotation)) is dict

    @property
    def is_number(self) -> bool:
        """Whether the value is a number (a boolean is not one, though Python counts it as such)."""
        return _without_none(self.field.annotation) in (int, float)

    @property
    def choices(self) -> tuple[str, ...]:
        """The words the key is restricted to, where it is."""
        return tuple(_literals(self.field.annotation))

    @property
    def accepts(self) -> str:
        """What the key accepts, in words that complete "must be ..."."""
        return _describe(self.field.annotation, self.field.metadata)

    @property
    def default(self) -> str:
        """The default as YAML would write it; empty for required keys and for sections."""
        if self.field.is_required() or isinstance(self.field.default, BaseModel):
            return ""
        return show_value(self.field.get_default(call_default_factory=True))


@cache
def recipe_keys() -> dict[str, Key]:
    """Every key of the recipe by dotted name, in the schema's order."""
    keys: dict[str, Key] = {}
    _collect(Recipe, "", keys)
    return keys


def normalise(path: Sequence[str | int]) -> str:
    """The schema's name for a key path: positions in a list become 0."""
    return ".".join("0" if isinstance(part, int) or part.isdecimal() else part for part in path)


def dotted(path: Sequence[str | int]) -> str:
    """A key path as people write it."""
    return ".".join(show_value(part) for part in path)


def nearest_key(path: Sequence[str | int]) -> str | None:
    """The valid key someone who wrote ``path`` most likely meant, or None when nothing is near."""
    wanted = normalise(path)
    if wanted.startswith("stages.0.") and len(path) > 3:  # what a stage may differ in has the recipe's own names
        inner = nearest_key(path[2:])
        placed = None if inner is None else f"stages.{path[1]}.{inner}"
        return placed if placed is not None and normalise(placed.split(".")) in recipe_keys() else None
    leaf = wanted.rpartition(".")[2]
    foreign = FOREIGN_NAMES.get(leaf.lower())
    if foreign is not None:
        return foreign
    best, best_score = "", 0.0
    for name in recipe_keys():
        whole = max(_similarity(wanted, name), _similarity(wanted, name.replace(".0.", ".")))
        # A right leaf in the wrong section is nearer than a wrong leaf in the right one.
        score = max(whole, 0.9 * _similarity(leaf, name.rpartition(".")[2]) + 0.09 * whole)
        if score > best_score:
            best, best_score = name, score
    return best if best_score >= 0.7 else None


def nearest_choice(value: object, choices: Sequence[str]) -> str | None:
    """The allowed word nearest to ``value``, or None."""
    found = get_close_matches(str(value).lower(), choices, n=1, cutoff=0.6) if isinstance(value, str) else []
    return found[0] if found else None


def show_value(value: object) -> str:
    """A value as a short phrase for a message."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value)) if value else "0"
    if isinstance(value, int) and value.bit_length() > 200:
        return "a very long number"
    if isinstance(value, (int, float)):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(value, str):
        text = value if len(value) <= 60 else value[:57] + "..."
        return text if text and text.isprintable() and text == text.strip() else repr(text)
    if isinstance(value, (list, tuple)):
        if all(isinstance(item, str) for item in value) and sum(map(len, value)) <= 60:
            return "[" + ", ".join(map(show_value, value)) + "]"
        return "a list"
    return "a section of keys" if isinstance(value, dict) else f"a {type(value).__name__}"


def describe_section(section: type[BaseModel]) -> str:
    """A section in words, with the first of its keys."""
    names = list(section.model_fields)
    return f"a section of keys ({', '.join(names[:6])}{', ...' if len(names) > 6 else ''})"


def _collect(section: type[BaseModel], prefix: str, keys: dict[str, Key]) -> None:
    for field_name, field in section.model_fields.items():
        key = Key(prefix + field_name, field)
        keys[key.name] = key
        if key.section is not None:
            _collect(key.section, f"{key.name}.0." if key.is_list else f"{key.name}.", keys)


def _similarity(left: str, right: str) -> float:
    return SequenceMatcher(None, left.lower(), right.lower()).ratio()


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def _without_none(annotation: Any) -> Any:
    if not _is_union(annotation):
        return annotation
    parts = [part for part in get_args(annotation) if part is not type(None)]
    return parts[0] if len(parts) == 1 else annotation


def _literals(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    if _is_union(annotation) or get_origin(annotation) is tuple:
        return [word for part in get_args(annotation) for word in _literals(part)]
    return []


def _describe(annotation: Any, metadata: Sequence[Any]) -> str:
    if _is_union(annotation):
        return " or ".join(_describe(part, metadata) for part in get_args(annotation))
    if get_origin(annotation) is Literal:
        words = [str(choice) for choice in get_args(annotation)]
        return words[0] if len(words) == 1 else f"one of {', '.join(words)}"
    if get_origin(annotation) is tuple:
        return _describe_list(get_args(annotation)[0], metadata)
    if get_origin(annotation) is dict:
        return "a mapping of text to text"
    if annotation is type(None):
        return "null"
    if annotation is bool:
        return "true or false"
    if annotation in (int, float):
        return ("a whole number" if annotation is int else "a number") + _bounds(metadata)
    if annotation is str:
        has_pattern = any(getattr(item, "pattern", None) for item in metadata)
        return "a name of letters, digits, dots, dashes and underscores" if has_pattern else "text"
    return describe_section(annotation)


def _describe_list(element: Any, metadata: Sequence[Any]) -> str:
    start = "a non-empty list" if any(getattr(item, "min_length", 0) for item in metadata) else "a list"
    if get_origin(element) is Literal:
        return f"{start} with entries among {', '.join(map(str, get_args(element)))}"
    return f"{start} of names" if element is str else f"{start}, each entry {_describe(element, ())}"


def _bounds(metadata: Sequence[Any]) -> str:
    words = {"ge": "of at least", "gt": "above", "le": "of at most", "lt": "below"}
    found = [
        f"{phrase} {show_value(getattr(item, attribute))}"
        for item in metadata
        for attribute, phrase in words.items()
        if getattr(item, attribute, None) is not None
    ]
    return (" " + " and ".join(found)) if found else ""
