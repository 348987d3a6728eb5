"""Parquet files and Excel workbooks in, streams of rows out."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from fintune.schema.errors import DataError
from fintune.sources import opening
from fintune.sources.opening import foreign_errors, too_large
from fintune.sources.stream import Row, TableStream, check_columns, make_stream, no_rows

_PARQUET_REMEDY = "Write it again."
_PARQUET_ROWS = 1024
# Pages are read as they are needed; without it a column's chunk, which may be the whole file, is read at once.
_PARQUET_BUFFER_BYTES = 1024**2
_EXCEL_REMEDY = "Open it in a spreadsheet and save it again as .xlsx, or as CSV."
_EXCEL_MAX_ROWS = 1_048_576
_OLE_SIGNATURE = b"\xd0\xcf\x11\xe0"


def open_parquet(file: Path) -> TableStream:
    """A Parquet file; nested columns are lists and dicts."""
    import pyarrow.parquet as pq

    with foreign_errors(file, "Parquet", _PARQUET_REMEDY), pq.ParquetFile(file) as parquet:
        schema, n_rows = parquet.schema_arrow, parquet.metadata.num_rows
    check_columns(file, list(schema.names))
    if n_rows == 0:
        raise no_rows(file)
    return make_stream(file, lambda start: _parquet_rows(file, start), schema=schema, n_rows=n_rows)


def _parquet_rows(file: Path, start_row: int) -> Iterator[Row]:
    import pyarrow.parquet as pq

    # ParquetFile, not read_table: the latter would add columns read from folder names like split=train.
    with (
        foreign_errors(file, "Parquet", _PARQUET_REMEDY),
        pq.ParquetFile(
            file, buffer_size=_PARQUET_BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True
        ) as parquet,
    ):
        metadata = parquet.metadata
        groups = list(range(metadata.num_row_groups))
        while groups and metadata.row_group(groups[0]).num_rows <= start_row:
            start_row -= metadata.row_group(groups.pop(0)).num_rows
        if not groups:
            return
        for batch in parquet.iter_batches(batch_size=_PARQUET_ROWS, row_groups=groups):
            if start_row >= batch.num_rows:
                start_row -= batch.num_rows
                continue
            yield from batch.slice(start_row).to_pylist()
            start_row = 0


def open_excel(file: Path, sheet: str | None) -> TableStream:
    """One sheet of a workbook: values only, the first row that is not blank names the columns."""
    with file.open("rb") as handle:
        if handle.read(len(_OLE_SIGNATURE)) == _OLE_SIGNATURE:
            raise DataError(
                f"Data file {file} is a workbook in the old .xls format, or protected by a password.",
                "Save it as .xlsx without a password.",
            )
    titles: list[str] = []  # of its sheets: known once rows are read, so that the workbook is not opened for them alone

    def rows_from(start_row: int) -> Iterator[Row]:
        return islice(_excel_rows(file, sheet, titles), start_row, None)

    stream = make_stream(file, rows_from)
    is_guess = sheet is None and len(titles) > 1
    notes = (f"sheet {titles[0]!r}, the first of {len(titles)}",) if is_guess else ()
    return replace(stream, notes=notes, reading={"sheet": titles[0] if sheet is None else sheet})


def _excel_rows(file: Path, sheet: str | None, titles: list[str]) -> Iterator[Row]:
    columns: tuple[str, ...] = ()
    for number, cells in enumerate(_excel_cells(file, sheet, titles), start=1):
        if number > _EXCEL_MAX_ROWS:
            raise DataError(f"Data file {file} has more than {_EXCEL_MAX_ROWS:,} rows in a sheet.", _EXCEL_REMEDY)
        values = _without_trailing_blanks(cells)
        if not values:
            continue
        if not columns:
            columns = check_columns(file, ["" if value is None else str(value) for value in values])
        elif len(values) > len(columns):
            raise DataError(
                f"Data file {file} has a value in row {number} right of the last named column, {columns[-1]!r}.",
                "Give every column a name in the first row, or remove what stands beside the table.",
            )
        else:
            yield dict(zip(columns, [*values, *[None] * (len(columns) - len(values))], strict=True))


def _without_trailing_blanks(cells: Sequence[Any]) -> Sequence[Any]:
    width = len(cells)
    while width and (cells[width - 1] is None or (isinstance(cells[width - 1], str) and not cells[width - 1].strip())):
        width -= 1
    return cells[:width]


def _excel_cells(file: Path, sheet: str | None, titles: list[str]) -> Iterator[Sequence[Any]]:
    from openpyxl import load_workbook

    with foreign_errors(file, "Excel", _EXCEL_REMEDY), file.open("rb") as handle:
        _check_unpacked_size(file, handle)
        with warnings.catch_warnings():
            # Styles, printing and validation that the library does not know do not touch the values.
            warnings.simplefilter("ignore")
            workbook = load_workbook(handle, read_only=True, data_only=True, keep_links=False)
        titles[:] = [found.title for found in workbook.worksheets]
        worksheet = _choose_sheet(file, workbook, sheet)
        # What the file says about its size is often wrong; the rows tell.
        worksheet.reset_dimensions()
        rows = worksheet.iter_rows(values_only=True)
        while True:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                batch = list(islice(rows, 256))
            if not batch:
                return
            yield from batch


def _check_unpacked_size(file: Path, handle: Any) -> None:
    """The sizes in the directory bind: `zipfile` reads no more of a member than its entry says."""
    with zipfile.ZipFile(handle) as archive:
        if sum(member.file_size for member in archive.infolist()) > opening.MAX_UNPACKED_BYTES:
            raise too_large(file)


def _choose_sheet(file: Path, workbook: Any, sheet: str | None) -> Any:
    """The named sheet, or the first; charts are not sheets here."""
    sheets = {worksheet.title: worksheet for worksheet in workbook.worksheets}
    if not sheets:
        raise DataError(f"Data file {file} has no sheet with cells.", _EXCEL_REMEDY)
    if sheet is None:
        return next(iter(sheets.values()))
    if sheet not in sheets:
        names = ", ".join(repr(name) for name in sheets)
        raise DataError(f"Data file {file} has no sheet {sheet!r}.", f"It has {names}.")
    return sheets[sheet]
