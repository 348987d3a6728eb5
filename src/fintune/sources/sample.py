"""Samples shipped inside the package: small, redistributable, each with its notice beside it."""

from __future__ import annotations

from importlib.resources import as_file, files
from importlib.resources.abc import Traversable

from fintune.schema.errors import DataError
from fintune.sources.files import read_file
from fintune.sources.table import SPLIT_ALIASES, RawTable


def _folder(name: str) -> Traversable:
    return files("fintune.sources") / "samples" / name


def has_sample(name: str) -> bool:
    """Whether a sample of that name is shipped."""
    return (_folder(name) / "test.csv").is_file()


def read_sample(name: str) -> dict[str, RawTable]:
    """The shipped sample's splits."""
    if not has_sample(name):
        raise DataError(f"No sample is shipped under the name {name}.", "Use a hub id, a local file or a folder.")
    tables = {}
    for split in SPLIT_ALIASES:
        with as_file(_folder(name) / f"{split}.csv") as path:
            tables[split] = RawTable(rows=read_file(path).rows, source="sample")
    return tables
