"""Plain text files as rows: a file is one document, whatever lines it has.

Enters: a text file, or a folder of them. Leaves: a ``RawTable`` with the columns ``text`` and ``file``.
"""

from __future__ import annotations

from pathlib import Path

from fintune.schema.errors import DataError
from fintune.sources.dialect import resolve_encoding
from fintune.sources.files import existing_file
from fintune.sources.opening import COMPRESSED_SUFFIXES, whole_text
from fintune.sources.table import RawTable
from fintune.sources.text import without_lone_surrogates

TEXT_SUFFIXES = frozenset({".txt", ".md"})


def holds_documents(path: Path) -> bool:
    """Whether ``path`` is a text file, or a folder with text files and nothing but them."""
    if path.is_dir():
        files = [file for file in path.iterdir() if not file.name.startswith(".")]
        return bool(files) and all(_is_text(file) for file in files)
    return _is_text(path)


def read_documents(path: Path, encoding: str | None = None) -> RawTable:
    """The text file, or every text file of the folder by name, as one row each.

    Raises:
        DataError: a file is not there, cannot be read, or is not text in the encoding.
    """
    files = sorted(path.iterdir()) if path.is_dir() else [existing_file(path)]
    rows = tuple(
        {"text": without_lone_surrogates(whole_text(file, resolve_encoding(file, encoding))), "file": file.name}
        for file in files
        if _is_text(file)
    )
    if not any(row["text"].strip() for row in rows):
        raise DataError(f"{path} holds no text.", "Name a text file, or a folder of text files.")
    return RawTable(rows=rows, source=str(path))


def _is_text(path: Path) -> bool:
    kind = path.with_suffix("").suffix if path.suffix.lower() in COMPRESSED_SUFFIXES else path.suffix
    return path.is_file() and kind.lower() in TEXT_SUFFIXES
