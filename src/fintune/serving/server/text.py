"""An answer's text while its tokens come, and where a stop string ends it.

Enters: tokens. Leaves: text that will not change any more: whole characters, and nothing that may turn out to be the
beginning of a stop string.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers.decoders import DecodeStream


class AnswerText:
    """The text of one answer.

    Args:
        tokenizer: a ``tokenizers.Tokenizer`` that no other thread uses.
        stops: strings that end the answer before them.

    Attributes:
        stopped: a stop string has come.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        self._tokenizer, self._stops = tokenizer, tuple(stops)
        self._stream = DecodeStream(skip_special_tokens=True)
        self._tokens: list[int] = []
        self._seen = 0
        self._held = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """The text that is certain now and was not before."""
        self._tokens.append(token)
        try:
            piece = self._stream.step(self._tokenizer, token) or ""
        except Exception:  # bytes that are no UTF-8 make earlier ones of a byte fallback no character any more
            piece = self._whole[self._seen :]
            self._stream = DecodeStream(skip_special_tokens=True)
            self._stream.step(self._tokenizer, token)  # what follows does not stand at the beginning
        self._seen += len(piece)
        return self._release(piece)

    def rest(self) -> str:
        """What is still held back, once the answer has ended."""
        if self.stopped:
            return ""
        text = self._release(self._whole[self._seen :])  # bytes that never became a character
        held, self._held = self._held, ""
        return text + ("" if self.stopped else held)

    @property
    def _whole(self) -> str:
        return str(self._tokenizer.decode(self._tokens, skip_special_tokens=True))

    def _release(self, piece: str) -> str:
        text = self._held + piece
        starts = [start for stop in self._stops if (start := text.find(stop)) >= 0]
        if starts:
            self.stopped, self._held = True, ""
            return text[: min(starts)]
        n_held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held]


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of ``text`` that begin ``stop``."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
