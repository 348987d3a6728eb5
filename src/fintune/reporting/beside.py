"""Published figures beside ours: one block a task, with what each comparison is worth.

Enters: ``EvaluationResults``. Leaves: a ``Table`` for HTML, Markdown, LaTeX and the terminal. Published figures come
without answers to single documents, so "better" needs our whole interval above them; nothing is tested in pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from fintune.reporting.published import PublishedRow, published_for, standing
from fintune.reporting.tables import Table
from fintune.reporting.wording import interval, main_system, rules_name, system_name
from fintune.schema.results import Estimate, EvaluationResults, TaskResult

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_RULE = (
    'Published figures come without single answers, so nothing is tested in pairs: "better" means that our whole '
    'interval lies above the published value, "at or above" that our value alone does, "not told apart" that the '
    "published value is above ours but within our interval. Where n differs from ours, so do the documents."
)


def published_table(results: EvaluationResults, task: str, system: str | None = None) -> Table | None:
    """What others published for a task beside a system's scores; None where nobody did or we measured nothing.

    The system is the results' main one, where none is named.

    Nor is there one for a shipped sample: a few dozen or hundred rows, chosen to be small, are not the published test
    set. Each row is compared by the rules that come nearest to its source's, so one metric may have two values of ours.
    """
    if any(data.task == task and data.is_sample for data in results.data):
        return None
    rows, named = published_for(task), system
    system = named or main_system(results, task)
    compared = [(row, _ours(results, row, task, system)) for row in rows if system is not None]
    if system is None or not any(result is not None for _, result in compared):
        return None
    notes = _notes(rows)
    return Table(
        name=f"published-{task}" if named is None else f"published-{task}-{named}",
        caption=f"{task}: published figures beside ours ({system_name(system).lower()})",
        columns=("Published system", "Note", "Metric", "n", "Published", "Read by", "Ours", "Our n", "Ours is"),
        rows=tuple(_cells(row, result, notes) for row, result in compared),
        text_columns=3,
        note=" ".join(published_caveats(task)),
    )


def published_caveats(task: str) -> list[str]:
    """How the comparisons are meant, then the lettered notes."""
    return [_RULE, *(f"({letter}) {note}" for note, letter in _notes(published_for(task)).items())]


def _notes(rows: Iterable[PublishedRow]) -> dict[str, str]:
    """The letter of every note, in the order of first use; a source and its own caveat are one note."""
    found = dict.fromkeys(note for row in rows for note in _notes_of(row))
    return {note: _LETTERS[i] if i < len(_LETTERS) else str(i + 1) for i, note in enumerate(found)}


def _notes_of(row: PublishedRow) -> tuple[str, ...]:
    source = f"{row.source[:1].upper()}{row.source[1:]}; measured on {row.split}."
    return (f"{source} {row.caveats[0]}", *row.caveats[1:])


def _ours(results: EvaluationResults, row: PublishedRow, task: str, system: str | None) -> TaskResult | None:
    """Our result that has the row's metric under the row's rules."""
    found = None if system is None else results.find(task, system, row.protocol)
    return found if found is not None and row.metric in found.metrics else None


def _cells(row: PublishedRow, ours: TaskResult | None, notes: Mapping[str, str]) -> tuple[str, ...]:
    estimate: Estimate | None = None if ours is None else ours.metrics[row.metric]
    return (
        row.system,
        ", ".join(notes[note] for note in _notes_of(row)),
        row.published_metric,
        "not stated" if row.n is None else f"{row.n:,}",
        published_value(row.value),
        rules_name(row.protocol, [row.task]),
        "not measured" if estimate is None else interval(estimate),
        "–" if ours is None else f"{ours.n:,}",
        "–" if estimate is None else standing(estimate, row.value),
    )


def published_value(value: float) -> str:
    """A published figure with the digits it was published with, two at least."""
    digits = max(2, len(f"{value:.4f}".rstrip("0").partition(".")[2]))
    return f"{value:.{digits}f}".replace("-", "−")


def published_tables(results: EvaluationResults, tasks: Sequence[str]) -> list[Table]:
    """The published figures of every task that has any."""
    return [table for task in tasks if (table := published_table(results, task)) is not None]
