"""Text normalisation for comparing documents: two tweets that differ in a link or a comma are the same tweet."""

from __future__ import annotations

import hashlib
import re

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
