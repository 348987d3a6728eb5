"""One local file in, one ``RawTable`` out: CSV, TSV, JSON, JSONL (also gzipped), Parquet, PhraseBank text.

Every failure is a ``DataError`` that names the file, the row where there is one, and what to do.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fintune.schema.errors import DataError
from fintune.sources.table import RawTable

Rows = tuple[Mapping[str, Any], ...]
MAX_FIELD_CHARACTERS = 16 * 1024 * 1024


def read_file(path: str | Path, *, encoding: str | None = None) -> RawTable:
    """Reads one data file by its suffix; ``encoding`` overrides UTF-8 (PhraseBank text: ISO-8859-1)."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise DataError(f"Data file {file} does not exist.", "Check the path in data.tasks[].source.")
    suffixes = [suffix.lower() for suffix in file.suffixes]
    compressed = bool(suffixes) and suffixes[-1] == ".gz"
    kind = (suffixes[-2:-1] if compressed else suffixes[-1:]) or [""]
    reader = _READERS.get(kind[0])
    if reader is None or (compressed and kind[0] == ".parquet"):
        raise DataError(
            f"Data file {file} has the unknown suffix {file.suffix or '(none)'}.",
            f"Use one of {', '.join(sorted(_READERS))}; text formats may be gzipped (.gz).",
        )
    rows = reader(file, encoding)
    if not rows:
        raise DataError(f"Data file {file} has no rows.", "Check that the right file is named and that it is complete.")
    return RawTable(rows=rows, source=str(path))


def _read_text(file: Path, encoding: str) -> str:
    try:
        data = gzip.decompress(file.read_bytes()) if file.suffix.lower() == ".gz" else file.read_bytes()
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"Data file {file} is not {encoding} text at line {line}.", "Save it as UTF-8.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"Data file {file} cannot be read: {error}.", "Check that it is complete and readable."
        ) from error


def _read_csv(file: Path, encoding: str | None, delimiter: str = ",") -> Rows:
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    text = _read_text(file, encoding or "utf-8-sig")
    # splitlines() would also cut at U+2028 and the like inside a field; keepends and newline marks only.
    reader = csv.DictReader(_lines(text), delimiter=delimiter, restkey=None, restval=None, strict=True)
    rows: list[Mapping[str, Any]] = []
    try:
        if len(set(reader.fieldnames or ())) != len(reader.fieldnames or ()):
            raise DataError(f"Data file {file} names a column twice in its header.", "Give every column its own name.")
        for row in reader:
            if None in row or None in row.values():
                raise DataError(
                    f"Data file {file} has a wrong number of columns in the row ending at line {reader.line_num}.",
                    f"The header has {len(reader.fieldnames or ())} columns: quote fields that hold the delimiter.",
                )
            rows.append(row)
    except csv.Error as error:
        raise DataError(
            f"Data file {file} is broken at line {reader.reader.line_num}: {error}.", "Repair the quoting."
        ) from error
    return tuple(rows)


def _read_tsv(file: Path, encoding: str | None) -> Rows:
    return _read_csv(file, encoding, delimiter="\t")


def _lines(text: str) -> Iterator[str]:
    start = 0
    while start < len(text):
        stop = text.find("\n", start) + 1 or len(text)
        yield text[start:stop]
        start = stop


def _read_jsonl(file: Path, encoding: str | None) -> Rows:
    rows: list[Mapping[str, Any]] = []
    for number, line in enumerate(_lines(_read_text(file, encoding or "utf-8-sig")), start=1):
        if line.strip():
            rows.append(_json_object(file, line, f"line {number}"))
    return tuple(rows)


def _json_object(file: Path, text: str, where: str) -> Mapping[str, Any]:
    row = _parse_json(file, text, where)
    if not isinstance(row, dict):
        raise DataError(
            f"Data file {file} holds no JSON object at {where}.", "Write one object with named columns a row."
        )
    return row


def _parse_json(file: Path, text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(
            f"Data file {file} is not valid JSON at {where}: {error}.", "Repair or regenerate it."
        ) from error


def _read_json(file: Path, encoding: str | None) -> Rows:
    """A list of objects, or FiQA's dictionary from id to sentence and annotations (one row per annotation)."""
    content = _parse_json(file, _read_text(file, encoding or "utf-8-sig"), "its content")
    if isinstance(content, list):
        rows = content
    elif isinstance(content, dict):
        rows = list(_fiqa_rows(file, content))
    else:
        rows = [content]
    if not all(isinstance(row, dict) for row in rows):
        raise DataError(f"Data file {file} is not a list of JSON objects.", "Write [{...}, {...}], or JSON lines.")
    return tuple(rows)


def _fiqa_rows(file: Path, content: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Flattens FiQA task 1: ``{id: {"sentence": .., "info": [{"sentiment_score": .., "target": ..}, ..]}}``."""
    kind = next((kind for kind in ("headline", "post") if kind in file.name.lower()), "")
    for key, entry in content.items():
        if not (isinstance(entry, dict) and isinstance(entry.get("info"), list)):
            raise DataError(
                f"Data file {file} has no sentence with an info list under the key {key!r}.",
                "Use FiQA's original layout, a list of objects, or JSON lines.",
            )
        for number, annotation in enumerate(entry["info"]):
            if not isinstance(annotation, dict):
                raise DataError(f"Data file {file} has a malformed annotation under {key!r}.", "Repair the file.")
            yield {"id": f"{key}-{number}", "sentence": entry.get("sentence"), "kind": kind, **annotation}


def _read_parquet(file: Path, encoding: str | None) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # ParquetFile, not read_table: the latter would add columns read from folder names like split=train.
        with pq.ParquetFile(file) as parquet:
            return tuple(parquet.read().to_pylist())
    except (pa.ArrowException, OSError, ValueError) as error:
        first_line = (str(error).splitlines() or ["unknown"])[0].rstrip(".")
        raise DataError(f"Data file {file} is not readable Parquet: {first_line}.", "Write it again.") from error


def _read_phrasebank(file: Path, encoding: str | None) -> Rows:
    """``sentence@label`` lines. The label follows the last ``@``: sentences hold the character too."""
    rows: list[Mapping[str, Any]] = []
    for number, line in enumerate(_lines(_read_text(file, encoding or "iso-8859-1")), start=1):
        if not line.strip():
            continue
        sentence, separator, label = line.rstrip("\r\n").rpartition("@")
        if not separator:
            raise DataError(
                f"Data file {file} has no '@' before a label at line {number}.",
                "A .txt file must hold PhraseBank lines, sentence@label; use CSV, JSONL or Parquet for anything else.",
            )
        rows.append({"sentence": sentence, "label": label.strip()})
    return tuple(rows)


_READERS: Mapping[str, Callable[[Path, str | None], Rows]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
    ".txt": _read_phrasebank,
}
DATA_SUFFIXES = frozenset(_READERS) | {".gz"}
