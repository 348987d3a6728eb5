"""Recipes from YAML, mappings and overrides, and back to YAML; every mistake becomes one sentence and a remedy.

Enters: the name of a shipped recipe, a file, or a mapping, plus ``key.sub=value`` overrides. Leaves: a ``Recipe``,
or a ``RecipeError`` that says where the mistake stands, which key or value is meant, and what to write instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import resources
from pathlib import Path, PurePath
from typing import Any

from pydantic import ValidationError

from fintune.schema.errors import RecipeError
from fintune.schema.keys import (
    Key,
    describe_section,
    dotted,
    nearest_choice,
    nearest_key,
    normalise,
    recipe_keys,
    show_value,
)
from fintune.schema.recipe import Recipe
from fintune.schema.run_directory import write_text_atomically
from fintune.schema.stages import with_short_stages
from fintune.schema.support import Impossible
from fintune.schema.yaml_text import KeyPath, YamlProblem, dump, parse, parse_scalar

RECIPE_FILE = "recipe.yaml"
_MAX_DEPTH = 20


@dataclass(frozen=True)
class RecipeInfo:
    """One shipped recipe, as a list shows it."""

    name: str
    description: str
    base: str


@dataclass
class _Origin:
    """Where each value came from, so that a message can say it."""

    name: str
    lines: dict[KeyPath, int] = field(default_factory=dict)
    overrides: dict[KeyPath, str] = field(default_factory=dict)

    def of(self, path: KeyPath) -> str:
        """The place of a key: the override that set it, or file and line, or just the source."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.overrides:
                return f"override {_shown(self.overrides[path[:length]])}"
        for length in range(len(path), 0, -1):
            if path[:length] in self.lines:
                return f"{self.name}, line {self.lines[path[:length]]}"
        return self.name


def load_recipe(source: str | Path | Mapping[str, Any] | Recipe, overrides: Sequence[str] = ()) -> Recipe:
    """Loads and validates a recipe.

    Args:
        source: name of a shipped recipe, path to a YAML file (or to a run directory that holds ``recipe.yaml``),
            a mapping, or a recipe.
        overrides: ``key.sub=value`` strings, applied in order; values are YAML (``training.epochs=2``,
            ``adapter.targets=[q_proj, v_proj]``), positions index lists (``data.tasks.0.config=AllAgree``).

    Raises:
        RecipeError: for an unknown key, a bad value or an impossible combination.
    """
    values: Any
    if isinstance(source, Recipe):
        values, origin = with_short_stages(source.model_dump()), _Origin(f"recipe {source.name}")
    elif isinstance(source, Mapping):
        values, origin = source, _Origin("recipe")
    else:
        values, origin = _read(source)
    tree = _plain(values, (), origin, {})
    for override in overrides:
        tree = _override(tree, override, origin)
    return _validated(tree, origin)


def save_recipe(recipe: Recipe, path: str | Path) -> Path:
    """Writes the recipe as YAML that loads to an equal one; the file appears whole or not at all."""
    path = Path(path)
    write_text_atomically(path, dump(with_short_stages(recipe.model_dump(mode="json"))))
    return path


def list_recipes() -> list[RecipeInfo]:
    """The shipped recipes by name."""
    loaded = [load_recipe(name) for name in _shipped_names()]
    return [RecipeInfo(recipe.name, recipe.description, recipe.model.base) for recipe in loaded]


def recipe_text(name: str) -> str:
    """The YAML of a shipped recipe with its comments, to start one's own from."""
    if name not in _shipped_names():
        raise _no_such_recipe(name)
    return (resources.files("fintune") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")


# --- reading -------------------------------------------------------------------------------------------------------


def _shipped_names() -> list[str]:
    folder = resources.files("fintune") / "recipes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def _no_such_recipe(name: str) -> RecipeError:
    near = get_close_matches(name, _shipped_names(), n=1)
    hint = f"Did you mean {near[0]}? " if near else ""
    return RecipeError(
        f"There is no recipe named {show_value(name)}, nor a file of that name.",
        f"{hint}Shipped recipes: {', '.join(_shipped_names())}; your own is given as a path to a YAML file.",
    )


def _read(source: str | Path) -> tuple[Any, _Origin]:
    if isinstance(source, str) and source in _shipped_names():
        return _parsed(recipe_text(source), f"recipe {source}")
    try:
        path = Path(source).expanduser()
        if path.is_dir():
            path = path / RECIPE_FILE
        if not path.is_file():
            raise _no_such_recipe(str(source))
        return _parsed(path.read_bytes().decode("utf-8-sig"), str(path))
    except UnicodeDecodeError as error:
        raise RecipeError(f"{source} is not UTF-8 text.", "Save the recipe as UTF-8.") from error
    except (OSError, ValueError, RuntimeError) as error:  # unreadable, a null byte in the name, an unknown ~user
        reason = getattr(error, "strerror", None) or str(error)
        raise RecipeError(f"{show_value(str(source))} cannot be read: {reason}.", "Check the path.") from error


def _parsed(text: str, name: str) -> tuple[Any, _Origin]:
    try:
        values, lines = parse(text)
    except YamlProblem as error:
        place = name if error.line is None else f"{name}, line {error.line}"
        raise RecipeError(
            f"{place}: {error.problem}.", "Check the indentation, colons and quotes there, and keep each key once."
        ) from error
    return values, _Origin(name, lines)


def _plain(value: Any, path: KeyPath, origin: _Origin, seen: dict[int, Any]) -> Any:
    """Dicts with text keys, lists and scalars only; what YAML shares by anchor stays shared."""
    if len(path) > _MAX_DEPTH:
        raise RecipeError(f"{origin.of(path)}: the recipe is nested too deeply.", "A recipe has at most eight levels.")
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise RecipeError(f"{origin.of(path)}: {dotted(path)} is {value}.", "Give a finite number.")
    if isinstance(value, bool) and (key := recipe_keys().get(normalise(path))) is not None and key.is_number:
        raise _bad_value(path, key, value, origin)
    if not isinstance(value, (Mapping, list, tuple)):
        return value
    if id(value) in seen:
        return seen[id(value)]
    plain: Any
    if isinstance(value, Mapping):
        if (key := recipe_keys().get(normalise(path))) is not None and key.is_mapping:
            value = {show_value(name): item for name, item in value.items()}  # labels such as 1 and -1
        for name in value:
            if not isinstance(name, str):
                raise _unknown_key((*path, show_value(name)), origin)
        plain = {key: _plain(item, (*path, key), origin, seen) for key, item in value.items()}
    else:
        plain = [_plain(item, (*path, position), origin, seen) for position, item in enumerate(value)]
    seen[id(value)] = plain
    return plain


# --- overrides -----------------------------------------------------------------------------------------------------


def _override(tree: Any, override: str, origin: _Origin) -> Any:
    name, equals, text = override.partition("=")
    parts = [part.strip() for part in name.split(".")]
    if not equals or not all(parts):
        raise RecipeError(
            f"{show_value(override)} is not an override.", "Write key=value, such as training.learning_rate=1e-3."
        )
    path: KeyPath = tuple(int(part) if part.isdecimal() and len(part) < 6 else part for part in parts)
    if normalise(path) not in recipe_keys() and not (
        isinstance(path[-1], int) and normalise(path[:-1]) in recipe_keys()
    ):
        raise _unknown_key(path, _Origin(f"override {_shown(override)}"))
    try:
        value = parse_scalar(text)
    except YamlProblem as error:
        raise RecipeError(
            f"The value of the override {show_value(override)} is not valid YAML: {error.problem}.",
            "Put text with special characters in quotes, and lists in brackets.",
        ) from error
    origin.overrides[path] = override
    return _replaced(tree, path, _plain(value, path, origin, {}), override, ())


def _replaced(tree: Any, path: KeyPath, value: Any, override: str, above: KeyPath) -> Any:
    """A copy of ``tree`` in which ``path`` holds ``value``; missing sections are made, one new list entry may be."""
    if not path:
        return value
    part, rest = path[0], path[1:]
    if isinstance(part, int):
        items = [] if tree is None else tree
        if not isinstance(items, list) or part > len(items):
            size = f"{len(items)} entries" if isinstance(items, list) else "no list"
            raise RecipeError(
                f"override {_shown(override)}: {dotted(above)} has {size}, so position {part} does not exist.",
                "Positions count from 0; the one after the last appends.",
            )
        old = items[part] if part < len(items) else None
        return [*items[:part], _replaced(old, rest, value, override, (*above, part)), *items[part + 1 :]]
    items = {} if tree is None else tree
    if isinstance(items, list):
        raise RecipeError(
            f"override {_shown(override)}: {dotted(above)} is a list.",
            f"Name a position, such as {dotted((*above, 0, part))}.",
        )
    if not isinstance(items, dict):
        raise RecipeError(
            f"override {_shown(override)}: {dotted(above)} is {show_value(items)}, not a section of keys.",
            f"Correct {dotted(above) or 'the recipe'} first.",
        )
    return {**items, part: _replaced(items.get(part), rest, value, override, (*above, part))}


def _shown(override: str) -> str:
    """An override inside a message, which is one line and not endless."""
    return override if override.isprintable() and len(override) <= 200 else show_value(override)


# --- validation ----------------------------------------------------------------------------------------------------


def _validated(tree: Any, origin: _Origin) -> Recipe:
    if tree is None:
        raise RecipeError(f"{origin.name} is empty.", "Start from one that works: fintune recipes quickstart.")
    if not isinstance(tree, dict):
        raise RecipeError(f"{origin.name} holds {show_value(tree)}.", "A recipe is a mapping of keys to values.")
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise _translated(error, tree, origin) from None
    except RecursionError:
        raise RecipeError(f"{origin.name} is nested too deeply.", "A recipe has at most eight levels.") from None


def _translated(error: ValidationError, tree: Any, origin: _Origin) -> RecipeError:
    problems = error.errors(include_url=False, include_input=False)
    # A mistyped key makes its intended one missing too: report the typing mistake.
    problems.sort(key=lambda problem: {"extra_forbidden": 0, "missing": 1}.get(problem["type"], 2))
    # A stage in full repeats what is wrong with the recipe's own sections, at places that nobody wrote.
    first = next((problem for problem in problems if _is_written(problem, tree)), problems[0])
    location = tuple(first["loc"])
    if first["type"] == "extra_forbidden":
        return _unknown_key(location, origin)
    if not location:
        return _conflict(first, origin)
    path, key = _field_path(location)
    if first["type"] == "missing":
        return RecipeError(
            f"{origin.of(path[:-1])}: the key {dotted(path)} is missing.",
            f"Add it; it must be {key.accepts}. {_meaning(key)}",
        )
    value = tree
    for part in path:
        value = value[part]
    return _bad_value(path, key, value, origin)


def _is_written(problem: Any, tree: Any) -> bool:
    """Whether the reader wrote the value, or the section that lacks a key."""
    path = tuple(problem["loc"])
    if problem["type"] != "extra_forbidden" and path:
        path, _ = _field_path(path)
    value = tree
    try:
        for part in path[:-1] if problem["type"] == "missing" else path:
            value = value[part]
    except (KeyError, IndexError, TypeError):
        return False
    return True


def _unknown_key(path: Sequence[str | int], origin: _Origin) -> RecipeError:
    nearest = nearest_key(path)
    # Show the reader's own position in a list, not the schema's 0.
    if nearest is not None and normalise(path).rpartition(".")[0] == nearest.rpartition(".")[0]:
        nearest = dotted((*path[:-1], nearest.rpartition(".")[2]))
    parent = recipe_keys().get(normalise(path[:-1]))
    if nearest is not None:
        remedy = f"Did you mean {nearest}?"
    elif parent is not None and parent.section is not None:
        remedy = f"{dotted(path[:-1])} has the keys {', '.join(parent.section.model_fields)}."
    else:
        remedy = f"A recipe has the keys {', '.join(Recipe.model_fields)}."
    return RecipeError(f"{origin.of(tuple(path))}: unknown key {dotted(path)}.", remedy)


def _conflict(problem: Any, origin: _Origin) -> RecipeError:
    raised = problem.get("ctx", {}).get("error")
    if isinstance(raised, Impossible):
        return RecipeError(f"{origin.name}: {raised.reason}", raised.remedy)
    return RecipeError(f"{origin.name}: {raised or 'the keys do not fit together'}")


def _field_path(location: KeyPath) -> tuple[KeyPath, Key]:
    """The part of pydantic's location that is the reader's; what follows names branches of a union."""
    keys = recipe_keys()
    length = max(n for n in range(1, len(location) + 1) if normalise(location[:n]) in keys)
    key = keys[normalise(location[:length])]
    if length < len(location) and isinstance(location[length], int) and key.section is not None:
        length += 1  # an entry of a list of sections is itself at fault
    return location[:length], key


def _bad_value(path: KeyPath, key: Key, value: Any, origin: _Origin) -> RecipeError:
    section = key.section if isinstance(path[-1], int) else None
    accepts = key.accepts if section is None else describe_section(section)
    message = f"{origin.of(path)}: {dotted(path)} must be {accepts}, but is {show_value(value)}."
    return RecipeError(message, _hint(key, accepts, value))


def _hint(key: Key, accepts: str, value: Any) -> str:
    entries = value if isinstance(value, list) else [value]
    nearest = [near for entry in entries if (near := nearest_choice(entry, key.choices))]
    if nearest:
        listed = key.is_list and nearest != ["all-linear"]
        return f"Did you mean {'[' + ', '.join(nearest) + ']' if listed else nearest[0]}?"
    if accepts.startswith("text") and isinstance(value, (bool, int, float)):
        return "Put it in quotes."
    return _meaning(key)


def _meaning(key: Key) -> str:
    return f"{key.name.rpartition('.')[2]}: {key.field.description}" if key.field.description else ""
