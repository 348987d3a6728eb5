"""Conversations that an earlier source of the run has too: left out of training, and counted.

Enters: a task's training rows and those of the sources before it. Leaves: the rows to train on, and a report of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fintune.schema.example import Example
from fintune.schema.quality import QualityReport
from fintune.sources import remove_overlap
from fintune.tasks.base import LoadedTask

REPEATS = "repeats of earlier sources"
"""What the counts call them."""


def without_earlier(
    task: LoadedTask, rows: tuple[Example, ...], earlier: Sequence[Example]
) -> tuple[tuple[Example, ...], int]:
    """The rows that no earlier source has, equal or nearly equal, and how many it has; labelled texts stay."""
    section = task.section.conversations
    if section is None or not earlier:
        return rows, 0
    kept, found = remove_overlap(rows, earlier, threshold=section.near_duplicates, same_document=False)
    return kept, found.removed_from_train


def with_repeats(quality: QualityReport, counts: Mapping[str, object]) -> QualityReport:
    """The report with the repeats among what was left out."""
    repeats = counts.get(REPEATS)
    if not isinstance(repeats, int) or not repeats:
        return quality
    return quality.model_copy(update={"left_out": {**quality.left_out, REPEATS: repeats}})
