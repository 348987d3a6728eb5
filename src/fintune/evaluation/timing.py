"""What answering costs in time: seconds and written tokens of one system on one task.

Enters: a function that answers documents. Leaves: the same function, watched, and a ``TimeCost``. Documents whose
answers were there from an earlier start are not timed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from fintune.evaluation.resuming import Ask
from fintune.schema.example import Example
from fintune.schema.results import DocumentRecord, TimeCost


@dataclass
class AnswerTimer:
    """Adds up the time that answering takes, and the tokens that were written."""

    elapsed_s: float = 0.0
    n: int = 0
    written_tokens: int = 0

    def wrote(self, n_tokens: int) -> None:
        """Counts tokens of answers."""
        self.written_tokens += n_tokens

    def watched(self, ask: Ask) -> Ask:
        """``ask``, timed; it returns only when its answers are there, on a GPU too."""

        def timed(documents: Sequence[Example]) -> list[DocumentRecord]:
            started = time.perf_counter()
            records = ask(documents)
            self.elapsed_s += time.perf_counter() - started
            self.n += len(documents)
            return records

        return timed

    def cost(self, system: str, task: str, *, is_written: bool) -> TimeCost:
        """The cost so far; with tokens only where all of the time went into writing."""
        tokens = self.written_tokens if is_written else None
        return TimeCost(system=system, task=task, n=self.n, elapsed_s=self.elapsed_s, written_tokens=tokens)
