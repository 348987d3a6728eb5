"""From a user's own table to a recipe: the settings of a shipped recipe, with the table as its only task."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fintune.schema.errors import DataError, RecipeError
from fintune.schema.loading import RECIPE_FILE, load_recipe
from fintune.schema.recipe import Recipe, sanitize_name
from fintune.schema.run_directory import write_text_atomically

if TYPE_CHECKING:
    import pandas as pd

STARTING_RECIPE = "quickstart"
FRAME_FILE = "data.jsonl"


def recipe_for_table(
    recipe: Recipe | Mapping[str, Any] | str | Path | None,
    source: str | Path,
    table: Mapping[str, Any],
    overrides: Sequence[str] = (),
) -> Recipe:
    """A recipe that trains on one table and is measured on its held-out rows.

    Args:
        recipe: where all other settings come from; the quickstart's when None.
        source: file, folder or hub id.
        table: keys of ``data.tasks[].table``; keys whose value is None are left to their defaults.
        overrides: ``key.sub=value`` strings, applied last.

    Raises:
        RecipeError: text or label is missing, or a key or value is wrong.
    """
    given = {key: value for key, value in table.items() if value is not None}
    for key in ("text", "label"):
        if key not in given:
            raise RecipeError(f"The data {source} comes without the name of its {key} column.", f"Add --{key} COLUMN.")
    start = load_recipe(STARTING_RECIPE if recipe is None else recipe).model_dump(mode="json")
    if start["stages"]:
        raise RecipeError(
            f"The recipe {start['name']} has stages, each with data of its own.", "Name a recipe without stages."
        )
    name = task_name(source)
    start["data"]["tasks"] = [{"name": name, "source": str(source), "table": given}]
    start["evaluation"]["tasks"] = None
    start |= {
        "name": name if recipe is None else f"{start['name']}-{name}",
        "description": f"{given['label']} of {given['text']}, from {Path(source).name}.",
    }
    if recipe is None and not any(change.startswith("training.warmup") for change in overrides):
        start["training"] |= {"warmup_steps": None, "warmup_ratio": 0.1}  # tables come in all sizes
    return load_recipe(start, overrides)


def task_name(source: str | Path) -> str:
    """The task's name: the file's, made fit for a directory, and never that of a registered task."""
    from fintune.tasks.registry import list_tasks

    stem = re.sub(r"(\.(csv|tsv|txt|jsonl?|parquet|xlsx|xlsm|zip|tar|tgz|gz))+$", "", Path(source).name, flags=re.I)
    name = sanitize_name(stem)
    if not stem.isascii():  # names in other scripts would all become the same
        name = f"{name}-{hashlib.sha256(stem.encode()).hexdigest()[:6]}"
    return f"{name}-own" if name in list_tasks() else name


def save_frame(frame: pd.DataFrame, folder: Path) -> Path:
    """Keeps a DataFrame in the run directory, so that the run can go on and be repeated without it.

    Raises:
        DataError: the directory already holds a run on other rows.
    """
    from fintune.sources.frames import table_from_frame

    rows = table_from_frame(frame).rows
    text = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    file = folder / FRAME_FILE
    is_run = (folder / RECIPE_FILE).is_file()  # else an earlier frame was refused, and nothing depends on it
    if is_run and file.is_file() and file.read_text(encoding="utf-8") != text:
        raise DataError(f"{folder} holds a run on another DataFrame.", "Choose another output_dir, or resume=False.")
    write_text_atomically(file, text)
    return file
