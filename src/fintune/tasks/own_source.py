"""The rows of a source of the user's own: a file, an archive, a folder with split files, or a hub id.

Enters: a task's section and how its files are written. Leaves: the source's name and ``RawTable`` objects by split.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from fintune.schema.conversations import ConversationsSection
from fintune.schema.recipe import TableSection, TaskSection
from fintune.sources import ALL, RawTable, is_archive, looks_like_hub_id, read_archive, read_file, read_folder, read_hub

DATA_DIR_VARIABLE = "FINTUNE_DATA_DIR"


def found_in_data_dir(source: str) -> str:
    """A relative path that is not here, but in the folder that ``FINTUNE_DATA_DIR`` names, as a path there."""
    folder, path = os.environ.get(DATA_DIR_VARIABLE), Path(source).expanduser()
    if not folder or path.is_absolute() or path.exists():
        return source
    place = Path(folder).expanduser() / source
    return str(place) if place.exists() else source


def read_own_source(
    section: TaskSection, files: TableSection | ConversationsSection
) -> tuple[str, Mapping[str, RawTable]]:
    """What the rows were read from, and the rows by the source's own splits (``ALL`` where it has none)."""
    source = str(section.source)
    delimiter, encoding, sheet = files.delimiter, files.encoding, files.sheet
    path = Path(source).expanduser()
    if path.is_dir():
        return source, read_folder(path, delimiter=delimiter, encoding=encoding, sheet=sheet)
    if is_archive(path):
        return source, read_archive(path, delimiter=delimiter, encoding=encoding, sheet=sheet)
    if looks_like_hub_id(source) and not path.exists():
        return source, read_hub(source, section.config, section.revision)
    return source, {ALL: read_file(path, delimiter=delimiter, encoding=encoding, sheet=sheet)}
