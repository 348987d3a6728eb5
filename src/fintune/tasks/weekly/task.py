"""A stock's next week as a task: up or down, one of twelve ranges, or a forecast in words.

Enters: rows of ``tables.py``, or of the published set. Leaves: examples whose group is the forecast week, since stocks
of one week move together. Scored is the real return, never the answer that a data set was published with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from fintune.metrics.forecast_answers import parse_robust, parse_strict
from fintune.metrics.return_bins import LABELS, sign_of
from fintune.schema.errors import DataError
from fintune.schema.example import Example
from fintune.schema.quality import QualityProblem
from fintune.schema.results import Judgement, Protocol, Scoring
from fintune.tasks.base import Prompt, Row, Task
from fintune.tasks.weekly.prompts import Form, WeeklyPrompt, body_of, weekly_prompts
from fintune.tasks.weekly.rationales import extractive_target, label_target, read_rationales, said

UP, DOWN, UNCHANGED = "Up", "Down", "Unchanged"
TEACHER, PUBLISHED = "teacher", "published"
_NEEDED = ("ticker", "period", "weeks", "profile", "financials", "reported", "rebased", "change", "label")
RowReader = Callable[[Mapping[str, Any], int], Mapping[str, Any]]
Completion = Callable[[dict[str, list[Row]]], tuple[dict[str, list[Row]], tuple[QualityProblem, ...]]]


def plain_row(raw: Mapping[str, Any], index: int) -> Mapping[str, Any]:
    """A row of ``tables.py`` as it is.

    Raises:
        DataError: it lacks a column.
    """
    missing = [name for name in _NEEDED if name not in raw]
    if missing:
        raise DataError(
            f"Row {index + 1} of the weekly forecasts has no column {missing[0]}.",
            "Name the folder with the original files as the source, not a table of one's own.",
        )
    return raw


def as_read(rows: dict[str, list[Row]]) -> tuple[dict[str, list[Row]], tuple[QualityProblem, ...]]:
    """The rows as they are, and no problems."""
    return rows, ()


@dataclass(frozen=True, kw_only=True)
class WeeklyTask(Task):
    """Forecasts of stocks by week.

    Attributes:
        form: what is asked for.
        read_row: a source's row in the form of ``tables.py``.
        complete: all rows, with what only the others tell, and what is wrong with them.
    """

    form: Form
    read_row: RowReader = plain_row
    complete: Completion = as_read

    @property
    def scoring(self) -> Scoring:
        """Labels are scored as classes, forecasts in words by what they predict."""
        return "text" if self.form == "forecast" else "classification"

    def parse_row(self, raw: Mapping[str, Any], index: int, split: str) -> Row:
        """Reads ticker, period, label and the weeks in sight."""
        row = self.read_row(raw, index)
        start = str(row["period"])[:10]
        if row["label"] is not None and row["label"] not in LABELS:
            raise DataError(
                f"Row {index + 1} of task {self.name}'s data has the label {row['label']!r}.",
                f"Labels are the bins {', '.join(LABELS)}.",
            )
        return Row(
            row_id=str(row.get("id") or f"{split}-{index:05d}"),
            text=body_of(row, "fingpt"),
            label=self._answer(row),
            kind=str(row["ticker"]),
            group=start,
            date=_as_date(start, index, self.name),
            identity=f"{row['ticker']} {start}",
            metadata={"row": row},
        )

    def complete_splits(
        self, rows: dict[str, list[Row]], config: str, source: str
    ) -> tuple[dict[str, list[Row]], tuple[QualityProblem, ...]]:
        """The rows with their outcomes, and of forecasts in words the target that the config names."""
        rows, problems = self.complete(rows)
        answers = read_rationales(source) if config == TEACHER else {}
        return {
            split: [self._taught(row, config, answers, split) for row in part] for split, part in rows.items()
        }, problems

    def _taught(self, row: Row, config: str, answers: Mapping[str, str], split: str) -> Row:
        raw = row.metadata["row"]
        if raw["label"] is None or self.form != "forecast" or row.left_out:
            return replace(row, label=self._answer(raw))
        written = {TEACHER: answers.get(row.row_id, ""), PUBLISHED: str(raw.get("answer", ""))}.get(config)
        if written is None or split == "test":  # nothing that was written is ever the right answer
            return replace(row, label=target_of(raw, config))
        if parse_robust(written).bin is None and split == "validation":
            return replace(row, label=target_of(raw, config))
        if parse_robust(written).bin is None:
            return replace(row, left_out=f"training rows without a {config} answer that predicts")
        return replace(row, label=written)

    def make_example(self, row: Row, prompt: str | None = None) -> Example:
        """The row under a prompt, with its target."""
        wording, raw = _weekly(self.resolve_prompt(prompt)), row.metadata["row"]
        words, target, move = wording.words or self.choices, row.label or "", last_change(raw)
        return Example(
            example_id=row.row_id,
            task=self.name,
            messages=wording.messages(body_of(raw, wording.layout), raw),
            target=words[self.choices.index(target)] if target in self.choices else target,
            choices=words,
            group=row.group,
            metadata={
                "text": row.text,
                "ticker": raw["ticker"],
                "document_id": f"{raw['ticker']}-{row.group}",
                "date": row.group,
                "period": raw["period"],
                "bin": raw["label"],
                "change": raw["change"],
                **({"reference": raw["answer"]} if raw.get("answer") else {}),
                "last_change": move,
                "last_move": None if move is None else ("rise" if move >= 0 else "fall"),
            },
        )

    def raw_label(self, raw: Mapping[str, Any], index: int) -> Any:
        """The bin, for the quality report."""
        return raw.get("label")

    def judge(self, example: Example, answer: str | None, protocol: Protocol = "robust") -> Judgement:
        """The direction, or range, that an answer predicts, against what the week brought.

        ``flare_strict`` reads as FinGPT-Forecaster's own parser does, which knows no answers but written forecasts.
        """
        return judge_forecast(self.form, example, answer, protocol)

    def _answer(self, row: Mapping[str, Any]) -> str | None:
        """The right answer in the task's own words; None where the outcome is not known."""
        label = row["label"]
        if label is None or self.form == "bins":
            return None if label is None else str(label)
        return _way(sign_of(label)) if self.form == "sign" else label_target(row)


def judge_forecast(form: Form, example: Example, answer: str | None, protocol: Protocol = "robust") -> Judgement:
    """What an answer is worth: for labels whether it is the one, for forecasts whether the direction is right.

    Of a forecast in words these are counted too: ``answered``, ``right_direction`` and ``right_range``.
    """
    label = str(example.metadata["bin"])
    read = (parse_strict if protocol == "flare_strict" else parse_robust)(answer or "")
    if form == "bins":
        prediction = None if read.bin is None else said(read.bin)
        return Judgement(prediction, prediction == example.target)
    right = read.direction == sign_of(label)
    prediction = None if read.direction is None else _way(read.direction)
    if form == "sign":
        return Judgement(prediction, right)
    counts = {"answered": read.direction is not None, "right_direction": right, "right_range": read.bin == label}
    return Judgement(prediction, right, {name: float(value) for name, value in counts.items()})


def _way(sign: int) -> str:
    return UP if sign > 0 else DOWN if sign < 0 else UNCHANGED


def last_change(row: Mapping[str, Any]) -> float | None:
    """The return of the last week in sight, as a ratio; None where no price is shown."""
    weeks = row.get("weeks")
    return None if not weeks else float(weeks[-1]["last"] / weeks[-1]["first"] - 1)


def target_of(row: Mapping[str, Any], kind: str) -> str:
    """What a forecast is taught to say: ``label`` or ``extractive``."""
    return extractive_target(row) if kind == "extractive" else label_target(row)


def prompts_of(form: Form) -> dict[str, WeeklyPrompt]:
    """The prompts of a form, with the words of its labels."""
    return weekly_prompts(form, tuple(map(said, LABELS)) if form == "bins" else ())


def choices_of(form: Form) -> tuple[str, ...]:
    """The closed labels of a form; none for forecasts in words."""
    return {"sign": (UP, DOWN), "bins": LABELS, "forecast": ()}[form]


def _weekly(prompt: Prompt) -> WeeklyPrompt:
    assert isinstance(prompt, WeeklyPrompt)
    return prompt


def _as_date(day: str, index: int, task: str) -> datetime:
    try:
        return datetime.fromisoformat(day).replace(tzinfo=UTC)
    except ValueError as error:
        raise DataError(
            f"Row {index + 1} of task {task}'s data has the period {day!r}.", "Write it as 2024-02-25 to 2024-03-03."
        ) from error
