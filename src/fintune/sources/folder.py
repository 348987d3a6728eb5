"""A folder with a data set's files in, one ``RawTable`` per split out.

A task names the files of the original release; beyond those, any ``train``, ``valid``, ``test`` file is found, such
as the Parquet shards of a downloaded hub repository.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from fintune.schema.errors import DataError
from fintune.sources.files import DATA_SUFFIXES, read_file
from fintune.sources.table import SPLIT_ALIASES, RawTable, hash_rows

_ALIAS = "|".join(alias for aliases in SPLIT_ALIASES.values() for alias in aliases)
_SPLIT_STEM = re.compile(rf"(?P<prefix>.*[-_.])?(?P<alias>{_ALIAS})(?:[-_.]?\d+(?:-of-\d+)?(?:-[0-9a-f]+)?)?", re.I)


def read_folder(
    folder: str | Path, known_files: Sequence[Mapping[str, tuple[str, ...]]] = (), config: str | None = None
) -> dict[str, RawTable]:
    """Reads a data set from a folder.

    Args:
        folder: the folder; ``folder/data`` and ``folder/<config>`` are looked into as well.
        known_files: layouts to try in order, each a mapping from split name to the file names of that split, all of
            which must be there.
        config: variant of the data set, a sub-folder when there is one of that name.
    """
    root = Path(folder).expanduser()
    places = [root / config, root, root / "data"] if config else [root, root / "data"]
    for place in (p for p in places if p.is_dir()):
        for layout in known_files:
            if all((place / name).is_file() for names in layout.values() for name in names):
                return {split: _concatenate([place / name for name in names]) for split, names in layout.items()}
        found = _files_by_split(place)
        if found:
            return {split: _concatenate(files) for split, files in found.items()}
    wanted = "; or ".join(", ".join(name for names in layout.values() for name in names) for layout in known_files)
    raise DataError(
        f"Folder {root} holds no data files that are known{f' for {config}' if config else ''}.",
        f"Expected {wanted + ', or ' if wanted else ''}files named train, valid and test (csv, jsonl or parquet).",
    )


def _files_by_split(place: Path) -> dict[str, list[Path]]:
    """Files named after a split, grouped; shards of one split are read in the order of their names."""
    found: dict[str, dict[tuple[str, str], list[Path]]] = {}
    for file in sorted(place.iterdir()):
        suffixes = "".join(file.suffixes[-2:] if file.suffix.lower() == ".gz" else file.suffixes[-1:]).lower()
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


def _concatenate(files: Sequence[Path]) -> RawTable:
    tables = [read_file(file) for file in files]
    rows = tuple(row for table in tables for row in table.rows)
    return RawTable(rows=rows, source=", ".join(str(file) for file in files), content_hash=hash_rows(rows))
