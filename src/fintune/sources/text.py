"""Text normalisation for comparing documents: two tweets that differ in a link or a comma are the same tweet."""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections import Counter
from typing import Any

_LINK = re.compile(r"(?:https?://|www\.)\S+", re.IGNORECASE)
_NOT_ALPHANUMERIC = re.compile(r"[\W_]+")


def normalise_text(text: str) -> str:
    """Lower-case letters and digits of ``text``; links, punctuation and whitespace are gone.

    The result may be empty (a tweet that is only a link): callers must not treat two empty results as equal texts.
    """
    return _NOT_ALPHANUMERIC.sub("", _LINK.sub(" ", text).lower())


def group_key(text: str) -> str:
    """A short stable key that is equal for texts equal after normalisation; falls back to the exact text."""
    key = normalise_text(text) or text.strip()
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def latin_share(text: str) -> float:
    """Share of a text's letters that are Latin; 1 where it has no letters, so that numbers alone tell nothing."""
    if text.isascii():
        return 1.0
    letters = Counter(character for character in text if character.isalpha())
    latin = sum(n for letter, n in letters.items() if letter.isascii() or "LATIN" in unicodedata.name(letter, ""))
    return latin / letters.total() if letters else 1.0


def is_blank(value: Any) -> bool:
    """Whether a cell holds nothing: None, NaN or blank text."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and not value.strip())


def without_lone_surrogates(value: Any) -> Any:
    """A cell or row with every half of a character pair replaced by U+FFFD; such halves cannot be written as UTF-8.

    They come from JSON escapes of posts that were cut off within an emoji; halves that stand together are joined.
    """
    if isinstance(value, str):
        return value if value.isascii() or _is_utf8(value) else _joined(value)
    if isinstance(value, dict):
        return {without_lone_surrogates(key): without_lone_surrogates(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_lone_surrogates(item) for item in value]
    return value


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _joined(text: str) -> str:
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
