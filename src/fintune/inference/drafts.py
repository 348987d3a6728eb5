"""One answer while it is being written, and when it is finished.

Enters: a prompt and its limit. Leaves: the answer's tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from fintune.schema.errors import DataError
from fintune.trees.prefix_tree import IntArray

StopPredicate = Callable[[list[int]], bool]
OnDone = Callable[[int], None]


@dataclass
class Draft:
    """A prompt and what has been written after it.

    Attributes:
        index: the caller's number for the prompt.
        prompt: (L,) token ids, at least one.
        limit: most tokens to write.
        answer: tokens written so far.
        done: nothing more is to be written.
    """

    index: int
    prompt: IntArray
    limit: int
    answer: list[int] = field(default_factory=list)
    done: bool = False

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)

    @property
    def tokens(self) -> IntArray:
        """Prompt and answer so far: what the model has to have read before it can go on."""
        return np.concatenate([self.prompt, self.written])

    @property
    def written(self) -> IntArray:
        """(A,) the answer's token ids."""
        return np.asarray(self.answer, np.int64)


def make_drafts(prompts: Sequence[IntArray], max_new_tokens: int | Sequence[int]) -> list[Draft]:
    """A draft for each prompt.

    Raises:
        DataError: a prompt is empty.
    """
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else max_new_tokens
    drafts = []
    for index, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
        if not len(prompt):
            raise DataError(f"Prompt {index} has no tokens.", "Leave it out, or give it at least one.")
        drafts.append(Draft(index, np.asarray(prompt, np.int64), limit))
    return drafts


@dataclass(frozen=True)
class Stopping:
    """When an answer ends: at one of ``stop_ids``, or as soon as ``predicate`` holds of its tokens."""

    stop_ids: frozenset[int]
    predicate: StopPredicate | None = None

    @staticmethod
    def of(stop_ids: Collection[int], predicate: StopPredicate | None) -> Stopping:
        """Stopping at any of ``stop_ids``, given as any integers."""
        return Stopping(frozenset(int(token) for token in stop_ids), predicate)

    def start(self, draft: Draft) -> None:
        """Finishes a draft that needs no model: a limit of zero."""
        draft.done = draft.limit <= 0

    def take(self, draft: Draft, token: int) -> None:
        """Adds the model's next token to the draft and finishes the draft if that was the last."""
        if token in self.stop_ids:
            draft.done = True
            return
        draft.answer.append(token)
        holds = self._holds(draft.answer)  # asked about the last token too: who listens must hear all of them
        draft.done = holds or len(draft.answer) >= draft.limit

    def _holds(self, answer: list[int]) -> bool:
        return self.predicate is not None and self.predicate(answer)
