"""One local file in, one ``RawTable`` or ``TableStream`` out: text, JSON, Parquet, Excel, or an archive of one.

Every failure is a ``DataError`` that names the file, the row where there is one, and what to do.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fintune.schema.errors import DataError
from fintune.sources.archives import ARCHIVE_SUFFIXES, data_files, is_archive, unpacked
from fintune.sources.columnar import open_excel, open_parquet
from fintune.sources.delimited import open_csv, open_json, open_jsonl, open_phrasebank, open_tsv
from fintune.sources.opening import COMPRESSED_SUFFIXES
from fintune.sources.stream import TableStream
from fintune.sources.table import RawTable

_TEXT_READERS = {
    ".csv": open_csv,
    ".tsv": open_tsv,
    ".json": open_json,
    ".jsonl": open_jsonl,
    ".txt": open_phrasebank,
}
_EXCEL_SUFFIXES = frozenset({".xlsx", ".xlsm"})
_OTHER_WORKBOOKS = frozenset({".xls", ".xlsb", ".ods"})
_PLAIN_SUFFIXES = frozenset(_TEXT_READERS) | _EXCEL_SUFFIXES | {".parquet"}
FILE_SUFFIXES = _PLAIN_SUFFIXES | COMPRESSED_SUFFIXES
"""Last suffixes of the files that hold rows themselves."""

DATA_SUFFIXES = FILE_SUFFIXES | {".zip", ".tgz", ".tar"}
"""Last suffixes of everything that ``read_file`` takes."""


def read_file(
    path: str | Path, *, delimiter: str | None = None, encoding: str | None = None, sheet: str | None = None
) -> RawTable:
    """Reads one data file by its suffix.

    Args:
        path: a .csv, .tsv, .json, .jsonl or .txt file (PhraseBank's lines; each may be compressed), a .parquet,
            .xlsx or .xlsm file, or an archive with exactly one of them.
        delimiter: of CSV; None detects it. Formats without one ignore it.
        encoding: of text; None detects it (PhraseBank's is ISO-8859-1).
        sheet: of a workbook; None takes the first.
    """
    file = existing_file(path)
    if not is_archive(file):
        return _collect(_open(file, delimiter, encoding, sheet), str(path))
    with unpacked(file, FILE_SUFFIXES) as folder:
        files = data_files(folder)
        if len(files) != 1:
            names = ", ".join(str(found.relative_to(folder)) for found in files[:5])
            raise DataError(
                f"Archive {file} holds {len(files)} data files{f' ({names})' if files else ''}, not one.",
                "Name an archive with one data file here, or unpack it and name the file.",
            )
        stream = _open(files[0], delimiter, encoding, sheet)
        return rename_table(_collect(stream, str(files[0])), folder, path)


def open_stream(
    path: str | Path, *, delimiter: str | None = None, encoding: str | None = None, sheet: str | None = None
) -> TableStream:
    """Opens one data file to be read in batches, with the arguments of ``read_file``; only .json is held whole."""
    file = existing_file(path)
    if is_archive(file):
        raise DataError(f"Archive {file} cannot be read in batches.", "Unpack it and name the file; .gz is fine.")
    return replace(_open(file, delimiter, encoding, sheet), source=str(path))


def existing_file(path: str | Path) -> Path:
    """The path as a file that is there."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise DataError(f"Data file {file} does not exist.", "Check the path, such as data.tasks[].source.")
    return file


def rename_table(table: RawTable, folder: Path, archive: str | Path) -> RawTable:
    """The table of an unpacked file, named by its archive."""
    return replace(table, source=table.source.replace(f"{folder}/", f"{archive}:"))


def _open(file: Path, delimiter: str | None, encoding: str | None, sheet: str | None) -> TableStream:
    suffixes = [suffix.lower() for suffix in file.suffixes] or [""]
    if suffixes[-1] in _EXCEL_SUFFIXES:
        return open_excel(file, sheet)
    if suffixes[-1] == ".parquet":
        return open_parquet(file)
    if suffixes[-1] in _OTHER_WORKBOOKS:
        raise DataError(f"Data file {file} is a workbook in the format {suffixes[-1]}.", "Save it as .xlsx.")
    kind = suffixes[-2] if suffixes[-1] in COMPRESSED_SUFFIXES and len(suffixes) > 1 else suffixes[-1]
    reader = _TEXT_READERS.get(kind)
    if reader is None:
        raise DataError(
            f"Data file {file} has the unknown suffix {file.suffix or '(none)'}.",
            f"Use one of {', '.join(sorted(_PLAIN_SUFFIXES))}; text formats may be compressed (.gz, .xz, .zst), and "
            f"one file may be in an archive ({', '.join(ARCHIVE_SUFFIXES)}).",
        )
    return reader(file, delimiter, encoding)


def _collect(stream: TableStream, source: str) -> RawTable:
    rows = tuple(stream.rows_from(0))
    try:
        return RawTable(rows=rows, source=source, notes=stream.notes)
    except RecursionError as error:
        raise DataError(f"Data file {source} nests values too deeply.", "Write flat rows.") from error
