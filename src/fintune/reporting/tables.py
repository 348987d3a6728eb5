"""Tables as text, which ``markup`` renders for Markdown and LaTeX and a template for HTML; those about a run's data.

Enters: results, records, facts. Leaves: ``Table``s. Tables of scores are made in ``scores``, of published rows in
``beside``, and FLARE's in ``flare``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fintune.reporting.wording import fact_name, fact_value, near_duplicates, shortened, system_name
from fintune.schema.results import DocumentRecord, EvaluationResults

MAX_ERRORS = 25
MISSING = "(missing)"
_ANSWER_CHARACTERS = 120


@dataclass(frozen=True)
class Table:
    """A table as plain, unescaped text.

    Attributes:
        name: short identifier, such as ``systems-fpb``.
        caption: what the table shows.
        columns: column heads.
        rows: cells as text, one tuple a row.
        text_columns: how many leading columns hold text; the others are numbers, set flush right.
        note: one sentence below the table.
        emphasised: rows set in bold.
        prose_columns: columns of documents or citations, which may break anywhere.
        ruled: rows that a line parts from those above, where the output has such lines.
    """

    name: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: int = 1
    note: str = ""
    emphasised: frozenset[int] = frozenset()
    prose_columns: frozenset[int] = frozenset()
    ruled: frozenset[int] = frozenset()


def licence_table(results: EvaluationResults) -> Table | None:
    """Where the rows came from and on what terms."""
    if not results.data:
        return None
    rows = tuple(
        (d.task, d.source, d.licence or "unknown", d.citation, d.split_note, d.content_hash[:12]) for d in results.data
    )
    columns = ("Task", "Source", "Licence", "Citation", "Split", "Content hash")
    prose = frozenset({columns.index("Citation"), columns.index("Split")})
    return Table("data", "Where the rows came from", columns, rows, text_columns=len(columns), prose_columns=prose)


def overlap_table(results: EvaluationResults) -> Table | None:
    """Test documents of each tested task that also occur in the training rows of each trained one."""
    overlaps = results.overlap
    if not overlaps:
        return None
    sought = any(o.near_threshold is not None for o in overlaps)
    columns: list[tuple[str, list[str]]] = [("Task", [o.task for o in overlaps])]
    if any(o.trained_on for o in overlaps):
        columns = [("Tested task", columns[0][1]), ("Trained task", [o.trained_on or "all" for o in overlaps])]
    n_text = len(columns)
    columns += [
        ("Training rows", [f"{o.n_train:,}" for o in overlaps]),
        ("Test rows", [f"{o.n_test:,}" for o in overlaps]),
        ("Same text", [f"{o.exact:,}" for o in overlaps]),
        ("Same after normalising", [f"{o.normalised:,}" for o in overlaps]),
    ]
    if sought:
        columns.append(("Near-duplicate (from similarity)", [near_duplicates(o) for o in overlaps]))
    columns += [
        (name, ["–" if count is None else f"{count:,}" for count in counts])
        for name, counts in (
            ("Same document", [o.same_document for o in overlaps]),
            ("Same ticker and week", [o.same_ticker_week for o in overlaps]),
            ("Same answers", [o.same_exchanges for o in overlaps]),
        )
        if any(count is not None for count in counts)
    ]
    columns.append(("Removed from training", [f"{o.removed_from_train:,}" for o in overlaps]))
    return Table(
        name="overlap",
        caption="Test documents that also occur in the training rows",
        columns=tuple(name for name, _ in columns),
        rows=tuple(zip(*(cells for _, cells in columns), strict=True)),
        note=_overlap_note([name for name, _ in columns], sought=sought),
        text_columns=n_text,
    )


def _overlap_note(columns: Sequence[str], *, sought: bool) -> str:
    note = "Found before removal. What the base model saw in its own pre-training is not known."
    if sought:
        note += (
            " A near-duplicate shares at least the stated fraction (Jaccard) of four-letter shingles with a training "
            "row; each count of test rows up to it includes the one before."
        )
    if "Same document" in columns:
        note += " Same document: of a report page or filing that training rows are of too."
    if "Same ticker and week" in columns:
        note += (
            " Same ticker and week: in an ISO week in which training rows have the ticker too; none is removed for it."
        )
    if "Same answers" in columns:
        note += " Same answers: conversations that share half of their answers, or of the other's, with a training one."
    if {"Same document", "Same ticker and week", "Same answers"} & set(columns):
        note += " – where rows do not say it."
    return note


def errors_table(records: Iterable[DocumentRecord], task: str, system: str) -> Table | None:
    """The most confident wrong answers under our rules; without a probability or an answer they come last."""
    wrong = [r for r in records if r.task == task and r.system == system and r.protocol == "robust" and not r.correct]
    if not wrong:
        return None
    sure = any(answer_probability(r) is not None for r in wrong)
    wrong.sort(key=lambda r: -(answer_probability(r) or 0.0))
    rows = tuple(
        (
            shortened(r.text) or r.example_id,
            shortened(r.target, _ANSWER_CHARACTERS),
            _answer(r),
            "–" if (p := answer_probability(r)) is None else f"{p:.3f}",
        )
        for r in wrong[:MAX_ERRORS]
    )
    return Table(
        name=f"errors-{task}",
        caption=f"{task}: {'most confident' if sure else 'first'} wrong answers of the {system_name(system).lower()}",
        columns=("Document", "Target", "Answer", "Probability"),
        rows=rows,
        text_columns=3,
        prose_columns=frozenset({0}),
        note=f"{len(rows)} of {len(wrong)} wrong answers.",
    )


def _answer(record: DocumentRecord) -> str:
    """What was read out of the answer, or the answer itself where nothing could be."""
    if record.prediction is not None:
        return shortened(record.prediction, _ANSWER_CHARACTERS)
    return f"{MISSING} {shortened(record.output or '', _ANSWER_CHARACTERS)}".strip()


def counts_table(counts: Mapping[str, Any]) -> Table | None:
    """What was dropped, shortened or otherwise counted on the way; a task's counts stand under its registered name."""
    rows = tuple(
        (key if isinstance(value, Mapping) else fact_name(key), fact_value(key, value))
        for key, value in counts.items()
        if value is not None
    )
    return Table("counts", "Counted on the way", ("What", "Count"), rows, text_columns=2) if rows else None


def time_table(results: EvaluationResults) -> Table | None:
    """What the answers of each system took."""
    rows = tuple(
        (
            *(cost.task, system_name(cost.system), f"{cost.n:,}"),
            "–" if cost.s_per_answer is None else f"{1000 * cost.s_per_answer:,.1f}",
            "–" if cost.tokens_per_s is None else f"{cost.tokens_per_s:,.1f}",
        )
        for cost in results.time_costs
    )
    columns = ("Task", "System", "Answers", "ms an answer", "Written tokens a second")
    note = (
        "Answers are made several at once, so a single one takes longer; those of an earlier start are not timed. – "
        "where labels were ranked."
    )
    return Table("time", "What answering took", columns, rows, text_columns=2, note=note) if rows else None


def facts_table(facts: Mapping[str, Any]) -> Table | None:
    """Run facts as key and value; what was not recorded is left out."""
    rows = tuple((fact_name(key), fact_value(key, value)) for key, value in facts.items() if value is not None)
    return Table("facts", "How the run was made", ("Fact", "Value"), rows, text_columns=2) if rows else None


def answer_probability(record: DocumentRecord) -> float | None:
    """The probability of the answer given; None when it is missing or no probabilities were recorded."""
    if record.probabilities is None or record.prediction not in record.choices:
        return None
    return record.probabilities[record.choices.index(record.prediction)]
