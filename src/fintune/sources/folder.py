"""A folder or an archive with a data set's files in, one ``RawTable`` per split out.

A task names the files of the original release; beyond those, any ``train``, ``valid``, ``test`` file is found, such
as the Parquet shards of a downloaded hub repository.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from fintune.schema.errors import DataError
from fintune.sources.archives import data_files, unpacked
from fintune.sources.files import DATA_SUFFIXES, FILE_SUFFIXES, existing_file, read_file, rename_table
from fintune.sources.opening import COMPRESSED_SUFFIXES
from fintune.sources.table import ALL, SPLIT_ALIASES, RawTable, hash_rows

Layouts = Sequence[Mapping[str, tuple[str, ...]]]
_ALIAS = "|".join(alias for aliases in SPLIT_ALIASES.values() for alias in aliases)
_SPLIT_STEM = re.compile(rf"(?P<prefix>.*[-_.])?(?P<alias>{_ALIAS})(?:[-_.]?\d+(?:-of-\d+)?(?:-[0-9a-f]+)?)?", re.I)


def read_folder(
    folder: str | Path,
    known_files: Layouts = (),
    config: str | None = None,
    *,
    delimiter: str | None = None,
    encoding: str | None = None,
    sheet: str | None = None,
) -> dict[str, RawTable]:
    """Reads a data set from a folder.

    Args:
        folder: the folder; ``folder/data`` and ``folder/<config>`` are looked into as well.
        known_files: layouts to try in order, each a mapping from split name to the file names of that split, all of
            which must be there.
        config: variant of the data set, a sub-folder when there is one of that name.
        delimiter: as for ``read_file``, for every file of the folder.
        encoding: likewise.
        sheet: likewise.
    """
    root = Path(folder).expanduser()
    read = partial(read_file, delimiter=delimiter, encoding=encoding, sheet=sheet)
    places = [root / config, root, root / "data"] if config else [root, root / "data"]
    for place in (p for p in places if p.is_dir()):
        for layout in known_files:
            if all((place / name).is_file() for names in layout.values() for name in names):
                return {split: _concatenate([place / name for name in names], read) for split, names in layout.items()}
        found = _files_by_split(place)
        if found:
            return {split: _concatenate(files, read) for split, files in found.items()}
    wanted = "; or ".join(", ".join(name for names in layout.values() for name in names) for layout in known_files)
    raise DataError(
        f"Folder {root} holds no data files that are known{f' for {config}' if config else ''}.",
        f"Expected {wanted + ', or ' if wanted else ''}files named train, valid and test (csv, jsonl, parquet).",
    )


def _files_by_split(place: Path) -> dict[str, list[Path]]:
    """Files named after a split, grouped; shards of one split are read in the order of their names."""
    found: dict[str, dict[tuple[str, str], list[Path]]] = {}
    for file in sorted(place.iterdir()):
        suffixes = "".join(
            file.suffixes[-2:] if file.suffix.lower() in COMPRESSED_SUFFIXES else file.suffixes[-1:]
        ).lower()
        match = _SPLIT_STEM.fullmatch(file.name[: len(file.name) - len(suffixes)])
        if match is None or not file.is_file() or file.suffix.lower() not in DATA_SUFFIXES:
            continue
        split = next(s for s, aliases in SPLIT_ALIASES.items() if match["alias"].lower() in aliases)
        found.setdefault(split, {}).setdefault((match["prefix"] or "", suffixes), []).append(file)
    for split, families in found.items():
        if len(families) > 1:
            names = ", ".join(files[0].name for files in families.values())
            raise DataError(
                f"Folder {place} has several candidates for the {split} split: {names}.",
                "Keep one of them, or name the file itself as the source.",
            )
    return {split: next(iter(families.values())) for split, families in found.items()}


def read_archive(
    path: str | Path,
    known_files: Layouts = (),
    config: str | None = None,
    *,
    delimiter: str | None = None,
    encoding: str | None = None,
    sheet: str | None = None,
) -> dict[str, RawTable]:
    """Reads a data set from a .zip or .tar.gz file: its only data file as ``ALL``, else as a folder with splits."""
    file = existing_file(path)
    read = partial(read_file, delimiter=delimiter, encoding=encoding, sheet=sheet)
    with unpacked(file, FILE_SUFFIXES) as folder:
        files = data_files(folder)
        if len(files) == 1:
            tables = {ALL: read(files[0])}
        else:
            place = _innermost(folder)
            tables = read_folder(place, known_files, config, delimiter=delimiter, encoding=encoding, sheet=sheet)
        return {split: rename_table(table, folder, path) for split, table in tables.items()}


def _innermost(folder: Path) -> Path:
    """Archives often hold one folder that holds everything."""
    entries = list(folder.iterdir())
    while len(entries) == 1 and entries[0].is_dir():
        folder = entries[0]
        entries = list(folder.iterdir())
    return folder


def _concatenate(files: Sequence[Path], read: Callable[[Path], RawTable]) -> RawTable:
    tables = [read(file) for file in files]
    rows = tuple(row for table in tables for row in table.rows)
    notes = tuple(dict.fromkeys(note for table in tables for note in table.notes))
    source = ", ".join(str(file) for file in files)
    return RawTable(rows=rows, source=source, content_hash=hash_rows(rows), notes=notes)
