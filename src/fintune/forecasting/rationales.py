"""Rationales of a language model for the training weeks of a forecasting task, over the OpenAI wire format.

Enters: a task whose answers are forecasts in words, and an endpoint. Leaves: ``rationales.jsonl`` with the answers that
may be learnt, which config ``teacher`` reads, and beside it every raw answer, so that nothing is asked twice. A teacher
that is told the outcome writes hindsight; one that is not is kept only where its prediction came true.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx2

from fintune.evaluation.judge import Judge
from fintune.inference.progress import tracking
from fintune.metrics.forecast_answers import parse_robust
from fintune.metrics.return_bins import phrase_of, sign_of
from fintune.schema.errors import RecipeError
from fintune.schema.example import Example
from fintune.schema.recipe import TaskSection
from fintune.schema.run_directory import read_jsonl, write_text_atomically, writing
from fintune.tasks.loading import load_task
from fintune.tasks.weekly.prompts import SECTIONS
from fintune.training.identity import hash_of

Status = Literal["kept", "refused", "malformed", "wrong"]
"""What became of an answer: learnt; no forecast but a refusal; sections or prediction missing; not what happened."""
MAX_ANSWER_TOKENS = 700
CHARACTERS_PER_TOKEN = 4
_AT_ONCE = 4
_REFUSAL = re.compile(
    r"\b(?:I(?:'m| am) (?:sorry|unable|not able)|I (?:cannot|can't|won't)|as an AI|not (?:provide|give) (?:financial|"
    r"investment) advice)\b",
    re.IGNORECASE,
)
_TOLD = (
    "\n\nThe price movement of that week turned out to be: {}. Write the forecast as if you did not know it, make it "
    "your prediction, and do not mention that you were told."
)


@dataclass(frozen=True)
class TeacherPlan:
    """What asking a teacher would take, before anything is asked.

    Attributes:
        rows: training weeks to be explained.
        known: of these, weeks whose answer is there already.
        prompt_tokens: of the prompts to be sent, about: four characters a token.
        answer_tokens: at most so many are answered.
        dollars: at the given prices for a million tokens; None where none were given.
    """

    rows: int
    known: int
    prompt_tokens: int
    answer_tokens: int
    dollars: float | None = None


@dataclass(frozen=True)
class Teaching:
    """One task's training weeks and the teacher who is to explain them.

    Attributes:
        task: name of a task whose answers are forecasts in words.
        teacher: the endpoint.
        place: where the rationales go; raw answers lie beside it.
        source: where the task's rows are; None for the task's own order.
        told: whether the teacher is told the outcome.
        limit: at most so many weeks, the earliest.
    """

    task: str
    teacher: Judge
    place: Path
    source: str | None = None
    told: bool = False
    limit: int | None = None

    @property
    def raw(self) -> Path:
        """Every answer that was given, kept or not."""
        return self.place.with_name(f"{self.place.stem}.raw.jsonl")

    def asked(self, example: Example) -> list[dict[str, str]]:
        """What the teacher is asked about one week."""
        turns = [{"role": message.role, "content": message.content} for message in example.messages]
        if self.told:
            turns[-1]["content"] += _TOLD.format(phrase_of(str(example.metadata["bin"])))
        return turns

    def key(self, example: Example) -> str:
        """What an answer depends on; another model, endpoint or prompt is asked anew."""
        return str(hash_of([self.teacher.model, self.teacher.url, self.told, self.asked(example)]))


def training_weeks(teaching: Teaching) -> tuple[Example, ...]:
    """The weeks to be explained: training rows alone, in FinGPT's prompt.

    Raises:
        RecipeError: the task has no forecasts in words.
    """
    if not teaching.task.endswith("_forecast"):
        raise RecipeError(
            f"{teaching.task} has no answers in words.", "Name a task such as weekly_acl18_forecast or dow30_forecast."
        )
    section = TaskSection(name=teaching.task, source=teaching.source, config="label", prompt="fingpt")
    return load_task(section).splits["train"][: teaching.limit]


def plan_rationales(
    teaching: Teaching, weeks: Sequence[Example], dollars_in: float | None = None, dollars_out: float | None = None
) -> TeacherPlan:
    """What the weeks that have no answer yet would take.

    Args:
        teaching: the task and the teacher.
        weeks: from ``training_weeks``.
        dollars_in: price of a million prompt tokens.
        dollars_out: price of a million answered tokens.
    """
    known = _known(teaching)
    left = [week for week in weeks if teaching.key(week) not in known]
    characters = sum(len(turn["content"]) for week in left for turn in teaching.asked(week))
    sent, said = characters // CHARACTERS_PER_TOKEN, MAX_ANSWER_TOKENS * len(left)
    priced = dollars_in is not None and dollars_out is not None
    cost = (sent * (dollars_in or 0.0) + said * (dollars_out or 0.0)) / 1e6 if priced else None
    return TeacherPlan(len(weeks), len(weeks) - len(left), sent, said, cost)


def write_rationales(teaching: Teaching, weeks: Sequence[Example], *, progress: bool = True) -> dict[Status, int]:
    """Asks about every week that has no answer yet, and writes what may be learnt.

    Each answer is on disk before the next chunk is asked; after a kill the same call goes on.

    Returns:
        How many answers were kept, refused, malformed and wrong.

    Raises:
        DependencyError: the endpoint does not answer; what it said before is kept.
        RunError: the files cannot be written.
    """
    known = _known(teaching)
    left = [week for week in weeks if teaching.key(week) not in known]
    with (
        tracking(f"asking {teaching.teacher.model}", len(weeks), shown=progress, done=len(weeks) - len(left)) as bar,
        httpx2.Client() as client,
        ThreadPoolExecutor(_AT_ONCE) as pool,
    ):
        for start in range(0, len(left), _AT_ONCE):
            chunk = left[start : start + _AT_ONCE]
            said = list(pool.map(lambda week: _ask(teaching, client, week), chunk))
            _append(
                teaching.raw, [{"key": teaching.key(week), "raw": text} for week, text in zip(chunk, said, strict=True)]
            )
            known |= {teaching.key(week): text for week, text in zip(chunk, said, strict=True)}
            bar.advance(len(chunk))
    found = [(week, known[teaching.key(week)]) for week in weeks]
    statuses = [judge_rationale(week, text, told=teaching.told) for week, text in found]
    kept = [
        {"id": week.example_id, "answer": text.strip(), "teacher": teaching.teacher.model, "told": teaching.told}
        for (week, text), status in zip(found, statuses, strict=True)
        if status == "kept"
    ]
    write_text_atomically(teaching.place, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in kept))
    counts = Counter(statuses)
    return {
        "kept": counts["kept"],
        "refused": counts["refused"],
        "malformed": counts["malformed"],
        "wrong": counts["wrong"],
    }


def judge_rationale(week: Example, text: str, *, told: bool) -> Status:
    """Whether an answer may be learnt: all sections, and a prediction that came true.

    A teacher who was told must name the very range; of one who was not the direction is asked, as ranges are luck.
    """
    found, label = parse_robust(text).bin, str(week.metadata["bin"])
    has_sections = all(section.rstrip(":") in text for section in SECTIONS)
    if not has_sections or found is None or "Prediction:" not in text:
        return "refused" if _REFUSAL.search(text) else "malformed"
    is_right = found == label if told else sign_of(found) == sign_of(label)
    return "kept" if is_right else "wrong"


def _ask(teaching: Teaching, client: httpx2.Client, week: Example) -> str:
    return teaching.teacher.answer(client, teaching.asked(week), MAX_ANSWER_TOKENS)


def _known(teaching: Teaching) -> dict[str, str]:
    return {str(row["key"]): str(row["raw"]) for row in read_jsonl(teaching.raw)}


def _append(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Adds rows behind the whole lines of a file; half a line, which a kill left, is cut off."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as stream:
            stream.seek(0)
            whole = stream.read().rfind(b"\n") + 1
            stream.truncate(whole)
            stream.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
            stream.flush()
