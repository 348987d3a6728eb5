"""Answers to texts: what one is, what labels them, and the columns that carry them in a table.

Enters: something that labels texts, and texts. Leaves: the values of the added columns, under names that no other
column has.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, ClassVar, Protocol

from fintune.sources import is_blank

NO_TEXT = "no text"
TOO_LONG = "does not fit the model"
SHORTENED = "text shortened to fit"


@dataclass(frozen=True)
class Prediction:
    """The label of one text, with the probability of every label.

    Attributes:
        text: the document.
        label: the likeliest label.
        probabilities: probability of every label.
        abstained: the label is less sure than the threshold that was asked for; it should not be used.
        shortened: the document was cut to fit the model.
    """

    text: str
    label: str
    probabilities: dict[str, float]
    abstained: bool = False
    shortened: bool = False

    @property
    def confidence(self) -> float:
        """Probability of the label."""
        return self.probabilities[self.label]


class Labeller(Protocol):
    """What labels texts, in two steps; ``Predictor`` is one."""

    def read(self, texts: Sequence[str], task: str | None = None) -> Any:
        """Reads texts that are not empty; may run beside ``label_read``, in another thread."""

    def label_read(self, read: Any, threshold: float | None = None) -> list[Prediction | None]:
        """Labels what was read; None for texts that do not fit."""

    def choices(self, task: str | None = None) -> tuple[str, ...]:
        """The labels of a task."""

    def fingerprint(self, task: str | None) -> dict[str, str]:
        """What the answers depend on, as hashes: the same fingerprint, the same answers."""

    @property
    def rows_a_part(self) -> int:
        """Rows of a file that are labelled together; a stop costs at most so many in each process."""


@dataclass(frozen=True)
class AnswerColumns:
    """Names of the columns that are added to a table.

    Attributes:
        label: the likeliest label.
        confidence: its probability.
        probabilities: one column for each label.
        abstained: whether the answer is less sure than the threshold; None where there is no threshold.
        note: why there is no answer, or that the text was shortened.
        others: holds columns that only some rows have; not among the answers.
    """

    label: str
    confidence: str
    probabilities: tuple[str, ...]
    abstained: str | None
    note: str
    others: str

    @property
    def types(self) -> dict[str, str]:
        """The name of each column in order, with the name of its pyarrow type."""
        found = {self.label: "string", self.confidence: "float64", **dict.fromkeys(self.probabilities, "float64")}
        return {**found, **({self.abstained: "bool_"} if self.abstained else {}), self.note: "string"}


@dataclass(frozen=True)
class ReadTexts:
    """Texts as a labeller has read them.

    Attributes:
        n_texts: blank ones included.
        filled: positions of the others.
        filled_texts: those, as ``Labeller.read`` gave them.
    """

    n_texts: int
    filled: tuple[int, ...]
    filled_texts: Any


@dataclass(frozen=True)
class Question:
    """What is asked about each text.

    Attributes:
        labeller: gives the answers.
        task: its task; None is its first.
        threshold: answers less sure than this are marked; None marks none.
    """

    labeller: Labeller
    task: str | None = None
    threshold: float | None = None
    verb: ClassVar[str] = "labelling"

    @property
    def rows_a_part(self) -> int:
        """What suits the labeller."""
        return self.labeller.rows_a_part

    def columns(self, taken: Collection[str]) -> AnswerColumns:
        """Names for the answers that are not taken: bare ones, else with the first prefix that keeps all apart."""
        choices = self.labeller.choices(self.task)
        for number in count():
            prefix = "" if number == 0 else f"fintune{number if number > 1 else ''}_"
            flag = None if self.threshold is None else f"{prefix}abstained"
            probabilities = tuple(f"{prefix}p_{choice}" for choice in choices)
            label, confidence, note = f"{prefix}prediction", f"{prefix}confidence", f"{prefix}note"
            found = AnswerColumns(label, confidence, probabilities, flag, note, f"{prefix}other_columns")
            if not {*found.types, found.others} & set(taken):
                break
        return found

    def read(self, texts: Sequence[str | None]) -> ReadTexts:
        """What ``values`` needs of the texts; may run beside it, in another thread."""
        filled = {i: text for i, text in enumerate(texts) if text is not None and text.strip()}
        return ReadTexts(len(texts), tuple(filled), self.labeller.read(list(filled.values()), self.task))

    def values(self, read: ReadTexts) -> Iterator[list[Any]]:
        """The values of the added columns for each text, in order; a text that is None or blank gets only a note."""
        answers = dict(zip(read.filled, self.labeller.label_read(read.filled_texts, self.threshold), strict=True))
        n_empty = 2 + len(self.labeller.choices(self.task)) + (self.threshold is not None)
        for position in range(read.n_texts):
            answer = answers.get(position)
            if answer is None:
                yield [None] * n_empty + [TOO_LONG if position in answers else NO_TEXT]
                continue
            flags = [] if self.threshold is None else [answer.abstained]
            note = SHORTENED if answer.shortened else None
            yield [answer.label, answer.confidence, *answer.probabilities.values(), *flags, note]

    def job(self) -> dict[str, str | float | None]:
        """What must be the same for unfinished work to be gone on with."""
        return {**self.labeller.fingerprint(self.task), "threshold": self.threshold}

    def counts(self, rows: Iterator[dict[str, Any]], columns: AnswerColumns) -> dict[str, Any]:
        """How often each label was given, and what has none or an unsure one."""
        labels: dict[str, int] = {}
        n_rows = abstained = 0
        for row in rows:
            n_rows += 1
            abstained += bool(columns.abstained and row[columns.abstained])
            if (label := row[columns.label]) is not None:
                labels[label] = labels.get(label, 0) + 1
        counted = {"rows": n_rows, "labels": dict(sorted(labels.items())), "abstained": abstained}
        return {**counted, "unlabelled": n_rows - sum(labels.values())}


def as_text(value: Any) -> str | None:
    """A cell as text; None where it is blank."""
    return None if is_blank(value) else str(value)
