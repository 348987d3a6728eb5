"""Text files in, streams of rows out: CSV and TSV, JSON lines, JSON, and PhraseBank's ``sentence@label`` lines."""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from fintune.schema.errors import DataError
from fintune.sources.dialect import (
    check_delimiter,
    delimiter_name,
    detect_delimiter,
    marked_encoding,
    resolve_encoding,
)
from fintune.sources.opening import text_lines, whole_text
from fintune.sources.stream import Row, TableStream, check_columns, make_stream

MAX_FIELD_CHARACTERS = 16 * 1024 * 1024
_SAMPLE_LINES = 200
_SAMPLE_CHARACTERS = 256 * 1024
# The line that Excel reads, and some programs write, above the header.
_DELIMITER_LINE = re.compile(r'"?sep=(?P<delimiter>[^\r\n"])"?\s*', re.IGNORECASE)


def open_csv(file: Path, delimiter: str | None, encoding: str | None) -> TableStream:
    """A table with a header row; delimiter and encoding are detected where they are None."""
    codec = resolve_encoding(file, encoding)
    lines = _first_lines(file, codec)
    declared = _DELIMITER_LINE.fullmatch(lines[0]) if lines else None
    skipped = 1 if declared else 0
    notes = _encoding_note(encoding, codec)
    if delimiter is None:
        found = declared["delimiter"] if declared else detect_delimiter(lines)
        notes = (f"delimiter {delimiter_name(found)}" if found else "one column", *notes)
        # A tab leaves the commas of a single column of text alone.
        delimiter = found or "\t"
    separator = check_delimiter(file, delimiter)

    def rows_from(start_row: int) -> Iterator[Row]:
        return islice(_csv_rows(file, separator, codec, skipped), start_row, None)

    return make_stream(file, rows_from, notes=notes, reading={"delimiter": separator, **_codec(codec)})


def open_tsv(file: Path, delimiter: str | None, encoding: str | None) -> TableStream:
    """A table whose columns are separated by tabs."""
    return open_csv(file, "\t" if delimiter is None else delimiter, encoding)


def _first_lines(file: Path, encoding: str) -> list[str]:
    lines: list[str] = []
    characters = 0
    for line in islice(text_lines(file, encoding, newline=""), _SAMPLE_LINES):
        lines.append(line)
        characters += len(line)
        if characters > _SAMPLE_CHARACTERS:
            break
    return lines


def _encoding_note(asked: str | None, found: str) -> tuple[str, ...]:
    return () if asked else (f"encoding {found.removesuffix('-sig')}",)


def _codec(found: str) -> dict[str, str]:
    """The encoding under one name, whether it was given or detected."""
    return {"encoding": codecs.lookup(found).name}


def _csv_rows(file: Path, delimiter: str, encoding: str, skipped: int) -> Iterator[Row]:
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    lines = islice(text_lines(file, encoding, newline=""), skipped, None)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    columns: tuple[str, ...] = ()
    try:
        for record in reader:
            if not record:
                continue
            if not columns:
                columns = check_columns(file, record)
            elif len(record) != len(columns):
                raise _wrong_columns(file, reader.line_num + skipped, len(columns), delimiter)
            else:
                yield dict(zip(columns, record, strict=True))
    except csv.Error as error:
        line = reader.line_num + skipped
        raise DataError(f"Data file {file} is broken at line {line}: {error}.", "Repair the quoting.") from error


def _wrong_columns(file: Path, line: int, expected: int, delimiter: str) -> DataError:
    return DataError(
        f"Data file {file} has a wrong number of columns in the row ending at line {line}.",
        f"With {delimiter_name(delimiter)} as delimiter the header has {expected}: quote fields that hold it, or name "
        "another delimiter.",
    )


def open_jsonl(file: Path, delimiter: str | None, encoding: str | None) -> TableStream:
    """One JSON object a line."""
    codec = resolve_encoding(file, encoding)

    def rows_from(start_row: int) -> Iterator[Row]:
        return islice(_jsonl_rows(file, codec), start_row, None)

    return make_stream(file, rows_from, notes=_encoding_note(encoding, codec), reading=_codec(codec))


def _jsonl_rows(file: Path, encoding: str) -> Iterator[Row]:
    for number, line in enumerate(text_lines(file, encoding), start=1):
        if not line.strip():
            continue
        row = _parse_json(file, line, f"line {number}")
        if not isinstance(row, dict):
            raise DataError(
                f"Data file {file} holds no JSON object at line {number}.", "Write one object with named columns a row."
            )
        yield row


def _parse_json(file: Path, text: str, where: str) -> Any:
    try:
        return json.loads(text)
    # ValueError: also a number of more digits than Python converts.
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"Data file {file} is not valid JSON at {where}: {error}.", "Repair or regenerate it."
        ) from error


def open_json(file: Path, delimiter: str | None, encoding: str | None) -> TableStream:
    """A list of objects, or FiQA's dictionary from id to sentence and annotations; held in memory whole."""
    codec = resolve_encoding(file, encoding)
    content = _parse_json(file, whole_text(file, codec), "its content")
    if isinstance(content, dict):
        content = list(_fiqa_rows(file, content))
    rows = content if isinstance(content, list) else [content]
    if not all(isinstance(row, dict) for row in rows):
        raise DataError(f"Data file {file} is not a list of JSON objects.", "Write [{...}, {...}], or JSON lines.")
    notes = _encoding_note(encoding, codec)
    return make_stream(file, lambda start: islice(rows, start, None), notes=notes, reading=_codec(codec))


def _fiqa_rows(file: Path, content: Mapping[str, Any]) -> Iterator[Row]:
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


def open_phrasebank(file: Path, delimiter: str | None, encoding: str | None) -> TableStream:
    """PhraseBank's lines, in its encoding; with a delimiter given, a .txt file is a table like any other."""
    if delimiter is not None:
        return open_csv(file, delimiter, encoding)
    codec = resolve_encoding(file, encoding or marked_encoding(file) or "iso-8859-1")

    def rows_from(start_row: int) -> Iterator[Row]:
        return islice(_phrasebank_rows(file, codec), start_row, None)

    return make_stream(file, rows_from, reading=_codec(codec))


def _phrasebank_rows(file: Path, encoding: str) -> Iterator[Row]:
    """``sentence@label`` lines. The label follows the last ``@``: sentences hold the character too."""
    for number, line in enumerate(text_lines(file, encoding), start=1):
        if not line.strip():
            continue
        sentence, separator, label = line.rstrip("\r\n").rpartition("@")
        if not separator:
            raise DataError(
                f"Data file {file} has no '@' before a label at line {number}.",
                "A .txt file must hold PhraseBank lines, sentence@label; use CSV, JSONL or Parquet for anything else.",
            )
        yield {"sentence": sentence, "label": label.strip()}
