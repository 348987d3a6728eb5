"""A table that is read as it is used: rows come from the file batch by batch, so memory does not grow with it.

Every reader of this room makes a ``TableStream``; reading a whole file is collecting one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from fintune.schema.errors import DataError
from fintune.sources.text import without_lone_surrogates

Row = dict[str, Any]
RowsFrom = Callable[[int], Iterator[Row]]


@dataclass(frozen=True)
class TableStream:
    """A data file, opened.

    Attributes:
        columns: names of the first row's columns.
        rows_from: gives the rows from a start row on; each call reads the file afresh.
        source: the path as given.
        schema: the ``pyarrow.Schema`` of a Parquet file, else None.
        n_rows: number of rows where the file says it (Parquet), else None.
        notes: what was detected about the file, for people.
        reading: how its bytes become these rows, given or detected: delimiter, encoding, sheet, where it has one.
    """

    columns: tuple[str, ...]
    rows_from: RowsFrom
    source: str
    schema: Any | None = None
    n_rows: int | None = None
    notes: tuple[str, ...] = ()
    reading: Mapping[str, str] = field(default_factory=dict)

    def batches(self, start_row: int, size: int) -> Iterator[list[Row]]:
        """Lists of ``size`` rows from row ``start_row`` (0 is the first) to the end; the last may be shorter."""
        if start_row < 0 or size < 1:
            raise DataError(
                f"Rows of {self.source} cannot start at {start_row} in batches of {size}.",
                "Start at 0 or later, with at least one row a batch.",
            )
        rows = self.rows_from(start_row)
        while batch := list(islice(rows, size)):
            yield batch


def make_stream(
    file: Path,
    rows_from: RowsFrom,
    *,
    schema: Any | None = None,
    n_rows: int | None = None,
    notes: tuple[str, ...] = (),
    reading: Mapping[str, str] | None = None,
) -> TableStream:
    """Looks at the first row, which names the columns; a file without rows is an error."""

    def clean_rows_from(start_row: int) -> Iterator[Row]:
        return map(without_lone_surrogates, rows_from(start_row))

    first = next(clean_rows_from(0), None)
    if first is None:
        raise no_rows(file)
    return TableStream(tuple(first), clean_rows_from, str(file), schema, n_rows, notes, reading or {})


def no_rows(file: Path) -> DataError:
    """The error for a file that holds nothing."""
    return DataError(f"Data file {file} has no rows.", "Check that the right file is named and that it is complete.")


def check_columns(file: Path, names: list[str]) -> tuple[str, ...]:
    """Column names as they are, if each is there and there once."""
    seen: set[str] = set()
    for number, name in enumerate(names, start=1):
        if not name.strip():
            raise DataError(
                f"Data file {file} has no name for column {number} in its header.",
                "Give every column a name; a pandas index is left out with index=False.",
            )
        if name in seen:
            raise DataError(f"Data file {file} names {name!r} twice in its header.", "Give every column its own name.")
        seen.add(name)
    return tuple(names)
