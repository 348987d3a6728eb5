"""An answer shown while it grows.

Enters: what was written so far, again and again. Leaves: each character once, as soon as it is settled.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from fintune.serving.writing import Written

_UNSETTLED = "\ufffd"  # a character of which not all bytes are written yet
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Shown:
    """Writes growing text to ``file``; to a terminal without control characters, which could steer it."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._steered = file.isatty()
        self._n_shown = 0

    def show(self, steps: Iterable[Written]) -> Written | None:
        """Shows an answer to its end and returns it."""
        last = None
        for last in steps:
            self._add(last.text if last.ended else last.text.rstrip(_UNSETTLED))
        return last

    def _add(self, text: str) -> None:
        new = text[self._n_shown :]
        if not new:
            return
        self._file.write(_CONTROL.sub(_UNSETTLED, new) if self._steered else new)
        self._file.flush()
        self._n_shown = len(text)
