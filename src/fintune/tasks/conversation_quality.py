"""What keeps a conversation or text from use: its format, length, script, or an earlier one that says the same.

Enters: rows with their turns. Leaves: the rows to use, and how many were left out for which reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fintune.schema.conversations import ConversationsSection
from fintune.sources.near import NearSearch
from fintune.sources.text import latin_share, normalise_text
from fintune.tasks.base import Row


def usable_rows(rows: Sequence[Row], section: ConversationsSection) -> tuple[list[Row], Counter[str]]:
    """The rows that pass every check of the section but the one for repeats, and counts of the others by reason.

    A conversation that was cut at a fault is used, and counted too.
    """
    kept: list[Row] = []
    reasons: Counter[str] = Counter()
    for row in rows:
        fault, reason = str(row.metadata["fault"]), _reason(row, section)
        if row.label is None:
            reasons[fault] += 1
        elif reason:
            reasons[reason] += 1
        else:
            kept.append(row)
            reasons[f"(cut, not left out) {fault}"] += bool(fault)
    return kept, +reasons


def without_repeats(rows: Sequence[Row], threshold: float | None) -> tuple[list[Row], Counter[str]]:
    """The first of every text: equal after normalising or, with a threshold, nearly equal."""
    keys = [normalise_text(row.text) or row.text for row in rows]
    near = NearSearch(keys, threshold).twins(keys) if threshold is not None else {}
    kept: list[Row] = []
    seen: set[str] = set()
    reasons: Counter[str] = Counter()
    for key, row in zip(keys, rows, strict=True):
        if key in seen:
            reasons["repeats an earlier one"] += 1
        elif not seen.isdisjoint(near.get(key, ())):
            reasons["nearly repeats an earlier one"] += 1
        else:
            kept.append(row)
            seen.add(key)
    return kept, reasons


def _reason(row: Row, section: ConversationsSection) -> str:
    if len(row.text) < section.min_characters:
        return "shorter than min_characters"
    if section.max_characters is not None and len(row.text) > section.max_characters:
        return "longer than max_characters"
    return "too few Latin letters" if latin_share(row.text) < section.min_latin_share else ""
