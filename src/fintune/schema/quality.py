"""What checking a task's rows found: counts with example rows, columns, and problems with their remedies.

One ``QualityReport`` is written to ``data_report.json``; the command line prints its ``problems`` and a gate refuses
to train while one of them is an error.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from fintune.schema.results import OverlapReport

Severity = Literal["error", "warning", "info"]
ColumnType = Literal["empty", "boolean", "integer", "number", "date", "text", "list", "object", "mixed"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RowPlace(_Frozen):
    """A row of the source, counted from 1 within its split."""

    split: str
    row: int


class Finding(_Frozen):
    """How many rows show one fault, and the first few of them."""

    count: int = 0
    examples: tuple[RowPlace, ...] = ()


class TextLengths(_Frozen):
    """Lengths of the texts that are not empty, in characters."""

    shortest: int
    median: float
    p95: float
    longest: int


class RowQuality(_Frozen):
    """Counts over the rows of one split, or of all splits together.

    Attributes:
        rows: rows as read.
        usable: rows with a text and a known label.
        empty_text: rows whose text is empty or blank.
        missing_label: rows without any label.
        unknown_label: rows whose label is none of the task's.
        unknown_labels: the most frequent of those labels, with counts.
        too_long: rows whose text has more characters than the limit.
        mojibake: rows whose text looks wrongly decoded.
        exact_duplicate: rows beyond the first of each text.
        normalised_duplicate: the same after normalising; includes the exact ones.
        conflict: rows of texts that occur, after normalising, with different labels.
        conflicting_texts: how many such texts there are.
        labels: usable rows by label, the most frequent first.
        characters: text lengths; None where all texts are empty.
    """

    rows: int
    usable: int
    empty_text: Finding = Finding()
    missing_label: Finding = Finding()
    unknown_label: Finding = Finding()
    unknown_labels: dict[str, int] = {}
    too_long: Finding = Finding()
    mojibake: Finding = Finding()
    exact_duplicate: Finding = Finding()
    normalised_duplicate: Finding = Finding()
    conflict: Finding = Finding()
    conflicting_texts: int = 0
    labels: dict[str, int] = {}
    characters: TextLengths | None = None


class ColumnSummary(_Frozen):
    """A column of the source: what its values look like, and the fraction of rows in which it is missing."""

    name: str
    type: ColumnType
    missing: float


class QualityProblem(_Frozen):
    """One thing a person should know or repair; ``message`` is a sentence with counts and rows."""

    kind: str
    severity: Severity
    message: str
    remedy: str


class QualityReport(_Frozen):
    """Everything one check found in the rows of one task; ``total`` counts twins across splits too.

    ``left_out`` counts conversations and texts that the checks of their source kept from use, by reason.
    """

    task: str
    source: str
    max_characters: int
    splits: dict[str, RowQuality]
    total: RowQuality
    columns: tuple[ColumnSummary, ...] = ()
    overlap: tuple[OverlapReport, ...] = ()
    problems: tuple[QualityProblem, ...] = ()
    left_out: dict[str, int] = {}

    @property
    def errors(self) -> tuple[QualityProblem, ...]:
        """The problems that forbid training."""
        return tuple(problem for problem in self.problems if problem.severity == "error")
