"""Pieces of a corpus on their way: some thousand documents in one Arrow file that is mapped, not read, into memory.

Enters: drafts and records. Leaves: files that are there whole or not at all, so that a killed build goes on after the
last whole one. Equal drafts make equal bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fintune.schema.run_directory import flush_to_disk, write_json, writing
from fintune.sources.corpus.drafts import Draft

PIECE_DOCUMENTS = 2048
PIECE_CHARACTERS = 2 * 1024**2
"""A piece ends with the row that reaches one of them. It is what a kill can cost."""


def write_piece(path: Path, drafts: Sequence[Draft], **columns: Sequence[Any]) -> None:
    """Writes drafts, and columns beside them, as an Arrow file.

    Raises:
        RunError: it cannot be written.
    """
    import pyarrow as pa

    names = ("text", "title", "date", "source")
    data: dict[str, Any] = {name: pa.array([getattr(one, name) for one in drafts], pa.large_string()) for name in names}
    data["tickers"] = pa.array([list(one.tickers) for one in drafts], pa.list_(pa.string()))
    data |= {name: pa.array(values) for name, values in columns.items()}
    table = pa.table(data)
    with aside(path) as partial, partial.open("wb") as stream, pa.ipc.new_file(stream, table.schema) as writer:
        # One batch, so that row i of the file is row i of the batch.
        for batch in table.combine_chunks().to_batches(max_chunksize=None):
            writer.write_batch(batch)


class Piece:
    """A piece on disk, mapped into memory."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        self._map = pa.memory_map(str(path))
        self.table = pa.ipc.open_file(self._map).read_all()

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def column(self, name: str) -> list[Any]:
        """One column's values."""
        values: list[Any] = self.table.column(name).to_pylist()
        return values

    def text(self, row: int) -> str:
        """One document's text."""
        return str(self.table.column("text")[row].as_py())

    def drafts(self) -> list[Draft]:
        """All documents."""
        return [Draft(**{**row, "tickers": tuple(row["tickers"])}) for row in
                self.table.select(["text", "title", "date", "source", "tickers"]).to_pylist()]  # fmt: skip


def write_array(path: Path, values: npt.NDArray[Any]) -> None:
    """Writes an array as a ``.npy`` file.

    Raises:
        RunError: it cannot be written.
    """
    with aside(path) as partial, partial.open("wb") as stream:
        np.save(stream, values, allow_pickle=False)


def read_array(path: Path, *, mapped: bool = False) -> npt.NDArray[Any]:
    """An array of ``write_array``; ``mapped`` reads it as it is used."""
    found: npt.NDArray[Any] = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    return found


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Writes what is known of a piece; its presence says that the piece is whole."""
    write_json(path, record)


def read_record(path: Path) -> dict[str, Any] | None:
    """The record, or None where the piece was not finished."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A name to write to, which becomes ``path`` when the block ends well; flushed to disk before.

    Raises:
        RunError: it cannot be written; what was there before is untouched.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            flush_to_disk(partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
