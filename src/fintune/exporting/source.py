"""What is exported or pushed: a run, an adapter folder, a named adapter, or a model.

Enters: a name or a path. Leaves: ``Source``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from fintune.schema.adapter_records import adapter_place
from fintune.schema.errors import AdapterError, RunError
from fintune.schema.recipe import ModelSection, Recipe
from fintune.schema.run_directory import RunDirectory, adapter_folder


@dataclass(frozen=True)
class Source:
    """What is exported.

    Attributes:
        section: loads the base, or the whole model.
        adapter: folder of a LoRA adapter; None for a whole model.
        recipe: what trained it, where that is known.
        run: the run it comes from, for its card.
        name: for files and served models.
    """

    section: ModelSection
    adapter: Path | None
    recipe: Recipe | None
    run: RunDirectory | None
    name: str


def find_source(source: str | Path, *, quantization: str | None = None, name: str | None = None) -> Source:
    """What is meant by a run, an adapter, a named adapter or a model.

    Raises:
        RunError: the run is not trained to its end.
        AdapterError: the name cannot be part of file names.
        ModelError: there is no such quantization.
    """
    from fintune.models.adapter_files import read_adapter_info
    from fintune.models.named import held_as
    from fintune.serving.predictor import recipe_of

    place = adapter_place(source)
    folder = adapter_folder(place)
    recipe = recipe_of(folder) or recipe_of(place)
    is_trained = any((folder / file).is_file() for file in ("adapter_config.json", "fintune_base.json"))
    if not is_trained and (RunDirectory(place).checkpoints.is_dir() or RunDirectory(place).stages.is_file()):
        raise RunError(f"The run {place} is not trained to its end.", "Finish it with `fintune train` first.")
    section = recipe.model if recipe is not None else ModelSection(base=str(source))
    adapter = None
    if is_trained:
        info = read_adapter_info(folder)
        adapter = folder if info.kind == "lora" else None
        base = (recipe.model.base if recipe is not None else info.base) if adapter else str(folder)
        pins = {} if adapter else {"revision": None, "content_hash": None}
        section = ModelSection.model_validate({**section.model_dump(), "base": base, **pins})
    section = held_as(section, quantization)
    run = next((RunDirectory(path) for path in (place, folder.parent) if RunDirectory(path).results.is_file()), None)
    title = name or (recipe.name if recipe is not None else Path(str(source)).name.removesuffix(".gguf"))
    return Source(section, adapter, recipe, run if is_trained else None, _file_name(title))


def _file_name(title: str) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", title).strip("-.")
    if not name:
        raise AdapterError(f"{title!r} cannot name a file.", "Choose another --name.")
    return name
