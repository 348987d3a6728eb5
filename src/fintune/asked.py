"""From what ``fintune evaluate`` is asked to the parts of the recipe it runs: which base, adapter, rows and prompts.

Enters: names as typed, and the recipe an adapter was trained by. Leaves: sections of a recipe.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fintune.schema.adapter_records import adapter_place, given_adapter
from fintune.schema.recipe import Recipe, TaskSection
from fintune.schema.run_directory import adapter_folder

if TYPE_CHECKING:
    from fintune.tasks.suites import AskedTask

log = logging.getLogger(__name__)


def base_and_adapter(model: str | Path, adapter: str | Path | None) -> tuple[str, Path | None]:
    """The base, and the adapter beside it; a run or adapter folder given as the model is both."""
    folder = given_adapter(adapter) if adapter is not None else None
    own = adapter_folder(adapter_place(model))
    if folder is not None or not own.is_dir():
        return str(model), folder
    if not any((own / name).is_file() for name in ("adapter_config.json", "fintune_base.json")):
        return str(model), None
    from fintune.models.adapter_files import read_adapter_info

    return read_adapter_info(own).base, own


def task_section(asked: AskedTask, prompt: str | None, trained: Recipe | None) -> dict[str, Any]:
    """The ``data.tasks`` entry of an asked task: on the rows its adapter was held to, unless others are named."""
    known = next((section for section in trained.data.tasks if section.name == asked.name), None) if trained else None
    if known is not None and (known.table or known.conversations):  # one's own: its held-out rows, or another file's
        section: dict[str, Any] = known.model_dump(mode="json")
        if asked.source:
            section |= {"source": asked.source, "content_hash": None}
            if known.table is not None:
                section["table"] |= {"split": "test"}
            else:
                section["conversations"] |= {"test_share": 1.0}
        return section
    wording = prompt or (known.prompt if known else None) or asked.prompt
    chosen: dict[str, Any] = {"name": asked.name, "prompt": wording, "source": asked.source, "config": asked.config}
    if asked.source is not None:
        return chosen
    if known is not None and asked.config in (None, known.config):
        return chosen | _trained_rows(known, asked)
    return chosen | {"config": asked.suite_config if asked.config is None else asked.config}


def _trained_rows(known: TaskSection, asked: AskedTask) -> dict[str, Any]:
    """The data a task was trained on: in another division, rows it was trained on may be test rows."""
    if asked.suite_config not in (None, known.config):
        log.warning(
            "%s is measured on the data the adapter was trained on, not in the suite's division; name %s@%s for that.",
            asked.name, asked.name, asked.suite_config,
        )  # fmt: skip
    if _is_gone(known.source):
        log.warning(
            "%s was trained on rows from %s, which is not here; other rows of it are looked for.",
            asked.name, known.source,
        )  # fmt: skip
        return {"config": known.config}
    return {"source": known.source, "config": known.config, "revision": known.revision}


def _is_gone(source: str | None) -> bool:
    from fintune.sources import looks_like_hub_id

    if source is None or source == "sample" or looks_like_hub_id(source):
        return False
    return not Path(source).expanduser().exists()


def own_tables(trained: Recipe | None) -> list[str]:
    """Names of the tables and conversations of one's own that an adapter was trained on."""
    return [section.name for section in trained.data.tasks if section.table or section.conversations] if trained else []
