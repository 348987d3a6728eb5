"""``finance_corpus.txt``: all documents in one text file, each followed by a line that holds only ``<|endoftext|>``.

Enters: texts, or such a file. Leaves: the file, or the same texts. A line of a text that looks like the marker gets a
backslash in front, which reading takes away, so that every text without carriage returns comes back as it was.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from fintune.schema.run_directory import writing
from fintune.sources.dialect import resolve_encoding
from fintune.sources.opening import text_lines

MARKER = "<|endoftext|>"
_LIKE_MARKER = re.compile(rf"\\*{re.escape(MARKER)}", re.MULTILINE)
_LIKE_MARKER_LINE = re.compile(rf"^(?=\\*{re.escape(MARKER)}$)", re.MULTILINE)


def write_plain(path: Path, texts: Iterable[str]) -> int:
    """Writes texts one after the other, and returns how many.

    Raises:
        RunError: the file cannot be written; what was there before is untouched.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    written = 0
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with aside.open("w", encoding="utf-8", newline="\n") as stream:
                for text in texts:
                    written += 1
                    escaped = _LIKE_MARKER_LINE.sub(r"\\", text)
                    stream.write(f"{escaped}\n{MARKER}\n")
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
    return written


def read_plain(file: Path, encoding: str | None, separated_by: str, most_characters: int) -> Iterator[str]:
    """The texts of a file; of a longer one than ``most_characters`` only a little more than that is kept.

    Args:
        file: the text file.
        encoding: None detects it.
        separated_by: ``marker``, ``blank`` (an empty line) or ``line`` (each line is a text).
        most_characters: bound on what is held of one text.
    """
    held: list[str] = []
    size = 0
    for line in text_lines(file, resolve_encoding(file, encoding)):
        words = line.rstrip("\r\n")
        ends = separated_by == "line" or words == MARKER or (separated_by == "blank" and not words.strip())
        if ends:
            yield from _whole([*held, words] if separated_by == "line" and words != MARKER else held)
            held, size = [], 0
        elif size <= most_characters:
            held.append(words[1:] if words.startswith("\\") and _LIKE_MARKER.fullmatch(words) else words)
            size += len(words) + 1
    yield from _whole(held)


def _whole(lines: list[str]) -> Iterator[str]:
    text = "\n".join(lines)
    if text.strip():
        yield text
