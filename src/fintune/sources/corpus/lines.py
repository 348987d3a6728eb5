"""Boilerplate: lines that many documents of a source share, and footers that are known by their words.

Enters: the documents of a source, one after the other. Leaves: keys of repeated lines, in bounded memory, and documents
without them. Counts may be too low, never too high: a line that is removed really stands in so many documents.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable
from math import ceil

MIN_DOCUMENTS = 10
_MIN_LETTERS = 12
_CAPACITY = 200_000
_MOST_CHARACTERS = 160
_RIGHTS = "all rights reserved"
_LAST_LINES = 3
"""Lines at the end of a document among which a footer is looked for."""
_FOOTER = re.compile(
    r"(?:reuters?|copyright ?(?:©|\(c\)|(?:19|20)\d\d\b).*|(?:\(c\)|©) ?(?:copyright|(?:19|20)\d\d)\b.*"
    r"|click here (?:for|to)\b.*|read (?:more|also|next)(?:[.!…»>]*| ?:.*)"
    r"|(?:sign up|subscribe)(?: here| now| today)?(?:[.!…»>]*| ?:.*)"
    r"|(?:sign up for|sign up to|subscribe to) (?:our|the|this) [^.]*newsletters?[.!]?"
    r"|our standards: the thomson reuters trust principles\.?|follow us on\b.*"
    r"|share this (?:article|story)\b.*|advertisement|for more information,? (?:visit|contact)\b.*)"
)
"""Of a line in lower case."""
_BYLINE = re.compile(r"\(?(?i:reporting|writing|editing) (?i:by) ([^\W\d_]).*")


class LineCounter:
    """In how many documents each line stands, for the lines that stand in many (Misra and Gries, in batches).

    At most ``2 * capacity`` lines are kept. Beyond that the rarer half goes and every count falls by the largest count
    that went, so that counts are at most ``all lines / capacity`` too low.
    """

    def __init__(self, capacity: int = _CAPACITY) -> None:
        self._capacity = capacity
        self._counts: dict[bytes, int] = {}
        self.documents = 0

    def add(self, text: str) -> None:
        """Counts the lines of a document, each once; a document of one line has no boilerplate."""
        self.documents += 1
        keys = {key for line in text.split("\n") if (key := line_key(line))}
        if len(keys) < 2:
            return
        for key in keys:
            self._counts[key] = self._counts.get(key, 0) + 1
        if len(self._counts) > 2 * self._capacity:
            self._forget_rare()

    def repeated(self, share: float) -> list[str]:
        """Keys, in hexadecimal and in order, of lines in ``share`` of the documents and in ten at least."""
        least = max(MIN_DOCUMENTS, ceil(share * self.documents))
        return sorted(key.hex() for key, count in self._counts.items() if count >= least)

    def _forget_rare(self) -> None:
        bound = sorted(self._counts.values(), reverse=True)[self._capacity]
        self._counts = {key: count - bound for key, count in self._counts.items() if count > bound}


def line_key(line: str) -> bytes | None:
    """What lines are compared by: all but case and blanks; None for a short line, which may well recur."""
    letters = "".join(line.lower().split())
    if len(letters) < _MIN_LETTERS:
        return None
    return hashlib.blake2b(letters.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def without_lines(text: str, repeated: Collection[bytes]) -> tuple[str, int]:
    """The text without repeated lines and without known footers at its end, and how many went."""
    lines = text.split("\n")
    kept = [line for line in lines if not repeated or line_key(line) not in repeated]
    while (footer := _last_footer(kept)) is not None:
        del kept[footer]
    removed = len(lines) - len(kept)
    return ("\n".join(kept).strip() if removed else text), removed


def _last_footer(lines: list[str]) -> int | None:
    """Which of the last lines is a footer; none of a document of one line, which would be left without words."""
    written = [number for number, line in enumerate(lines) if line.strip()]
    if len(written) < 2:
        return None
    return next((number for number in reversed(written[-_LAST_LINES:]) if _is_footer(lines[number])), None)


def _is_footer(line: str) -> bool:
    if len(line) > _MOST_CHARACTERS:
        return False
    words = line.strip()
    if byline := _BYLINE.fullmatch(words):
        return byline[1].isupper()  # "Reporting by segment changed" is a sentence
    return _RIGHTS in words.lower() or _FOOTER.fullmatch(words.lower()) is not None


def as_keys(keys: Iterable[str]) -> frozenset[bytes]:
    """Keys from hexadecimal."""
    return frozenset(map(bytes.fromhex, keys))
