"""Rows as bytes: CSV, JSON lines or Parquet, by the suffix of the output.

Enters: rows in order. Leaves: one file. Values of inputs without types of their own are text in Parquet.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from fintune.schema.cells import defuse_cell
from fintune.sources.text import without_lone_surrogates

Row = Mapping[str, Any]
ROWS_A_PARQUET_GROUP = 16_384


@dataclass(frozen=True)
class Layout:
    """The columns of an output.

    Attributes:
        columns: their names in order.
        schema: ``pyarrow.Schema`` of a Parquet output.
        typed: the rows come from Parquet, whose types are kept; of others, what is text in ``schema`` becomes text.
    """

    columns: tuple[str, ...]
    schema: Any
    typed: bool


def make_layout(columns: Sequence[str], given: Any | None, added: Mapping[str, str]) -> Layout:
    """The layout of rows with these columns and the added ones.

    Args:
        columns: names of the columns that the rows bring.
        given: their ``pyarrow.Schema`` where they have one.
        added: further columns, with the names of their pyarrow types.
    """
    import pyarrow as pa

    fields = [pa.field(name, pa.string()) for name in columns] if given is None else list(given)
    fields += [pa.field(name, getattr(pa, kind)()) for name, kind in added.items()]
    return Layout((*columns, *added), pa.schema(fields), given is not None)


def _write_csv(path: Path, rows: Iterable[Row], layout: Layout) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow([defuse_cell(name) for name in layout.columns])
        writer.writerows([_cell(row.get(name)) for name in layout.columns] for row in rows)


def _write_jsonl(path: Path, rows: Iterable[Row], layout: Layout) -> None:
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(map(_line, rows))


def _write_parquet(path: Path, rows: Iterable[Row], layout: Layout) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = {field.name for field in layout.schema if pa.types.is_string(field.type)} if not layout.typed else set()
    remaining = iter(rows)
    with pq.ParquetWriter(path, layout.schema) as writer:
        while group := list(islice(remaining, ROWS_A_PARQUET_GROUP)):
            columns = {
                name: [_text(row.get(name)) if name in texts else row.get(name) for row in group]
                for name in layout.columns
            }
            writer.write_table(pa.Table.from_pydict(columns, schema=layout.schema))


WRITERS: dict[str, Callable[[Path, Iterable[Row], Layout], None]] = {
    ".csv": _write_csv,
    ".jsonl": _write_jsonl,
    ".parquet": _write_parquet,
}
"""What writes an output, by its suffix."""


def _line(row: Row) -> str:
    return str(without_lone_surrogates(json.dumps(row, ensure_ascii=False, default=str))) + "\n"


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, (bool, int, float, dict, list)):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)  # a date of a workbook


def _cell(value: Any) -> Any:
    return defuse_cell(_text(value) if isinstance(value, (dict, list)) else value)
