"""The published Dow-30 set, FinGPT/fingpt-forecaster-dow30-202305-202405: its rows, and what they cannot be trusted in.

Enters: rows with prompt, answer, period, label and symbol, from the hub or a file. Leaves: rows in the form of
``tables.py`` whose outcome is the real return where any prompt's prices tell it, and the set's known faults, counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

from fintune.metrics.forecast_answers import parse_robust
from fintune.metrics.return_bins import LABELS, bin_of, phrase_of
from fintune.schema.errors import DataError
from fintune.schema.quality import QualityProblem
from fintune.sources.quality_problems import problem
from fintune.tasks.base import Row

HUB_ID = "FinGPT/fingpt-forecaster-dow30-202305-202405"
EARLIEST_REPORT_DAYS = 10
"""No company of the index has published a quarter's figures so few days after its end."""
_COLUMNS = ("prompt", "answer", "period", "symbol")
_PERIOD = re.compile(r"\d{4}-\d\d-\d\d to \d{4}-\d\d-\d\d")
_WEEK = re.compile(
    r"^From (?P<start>\S+) to (?P<end>\S+), \S+'s stock price \w+ from (?P<first>\d+(?:\.\d+)?) to "
    r"(?P<last>\d+(?:\.\d+)?)\..*$",
    re.MULTILINE,
)
_NEWS = re.compile(
    r"^\[Headline\]: (?P<headline>.*?)\n\[Summary\]: (?P<summary>.*?)(?=\n\n|\Z)", re.MULTILINE | re.DOTALL
)
_INTRODUCTION = re.compile(r"^(?P<name>.+?) is a leading entity in the (?P<sector>.+?) sector\.", re.MULTILINE)
_EXCHANGE = re.compile(r"trading under the ticker \S+ on the (?P<exchange>[^.]+)\.")
_REPORTED = re.compile(r"basic financials of \S+, reported at (?P<day>\d{4}-\d\d-\d\d)")
_FIGURES = re.compile(r"\[Basic Financials\]:\n\n(?P<figures>.*?)\n\nBased on all the information", re.DOTALL)
_BY_PHRASE = {phrase_of(label): label for label in LABELS}


def read_published(raw: Mapping[str, Any], index: int) -> Mapping[str, Any]:
    """One published row in the form of ``tables.py``; its outcome so far is the published label.

    Financials of a period that ended too late to have been published are left out (``early_financials``).

    Raises:
        DataError: a column is missing, or the period is not two dates.
    """
    missing = [name for name in _COLUMNS if name not in raw]
    if missing:
        raise DataError(
            f"Row {index + 1} of the published Dow-30 set lacks {missing[0]}; its columns are {', '.join(raw)}.",
            f"Use the rows of {HUB_ID}: {', '.join(_COLUMNS)} and label.",
        )
    prompt, answer, period = (str(raw[name] or "") for name in ("prompt", "answer", "period"))
    if not _PERIOD.fullmatch(period):
        raise DataError(
            f"Row {index + 1} of the published Dow-30 set has the period {period!r}.",
            "Write it as 2024-02-25 to 2024-03-03.",
        )
    introduced, exchange, reported = (pattern.search(prompt) for pattern in (_INTRODUCTION, _EXCHANGE, _REPORTED))
    is_early = reported is not None and _days_between(reported["day"], period[:10]) < EARLIEST_REPORT_DAYS
    return {
        "id": f"{raw['symbol']}-{period[:10]}",
        "ticker": str(raw["symbol"]),
        "period": period,
        "weeks": list(_weeks(prompt)),
        "profile": {
            **({"name": introduced["name"], "sector": introduced["sector"]} if introduced else {}),
            **({"exchange": exchange["exchange"]} if exchange else {}),
        },
        "reported": "" if is_early or reported is None else reported["day"],
        "financials": {} if is_early else _figures(prompt),
        "early_financials": is_early,
        "rebased": False,
        "change": None,
        "label": published_label(raw.get("label"), answer),
        "prompt": prompt,
        "answer": answer,
    }


def published_label(label: object, answer: str) -> str | None:
    """The bin of the column ``label`` ("up by 3-4%"), else of the answer's prediction; None where neither has one."""
    return _BY_PHRASE.get(str(label).strip().lower()) or _predicted(answer)


def _predicted(answer: str) -> str | None:
    """The bin on an answer's line with a prediction; forecasts elsewhere are no label."""
    return parse_robust(answer).bin if "Prediction:" in answer else None


def complete_published(
    rows: dict[str, list[Row]],
) -> tuple[dict[str, list[Row]], tuple[QualityProblem, ...]]:
    """Rows with their real outcomes, without those that would tell an outcome to the model; and the faults found.

    A training row is left out when its week ends after the first test
    week has begun; any row when the prices in its own prompt reach into the week that it asks for.
    """
    outcomes = outcomes_of(row for part in rows.values() for row in part)
    faults = find_faults(rows)
    completed = {split: [_with_outcome(row, outcomes) for row in part] for split, part in rows.items()}
    if "test" in completed and "train" in completed:
        first_test = min(row.group for row in completed["test"])
        completed["train"] = [_before(row, first_test) for row in completed["train"]]
    shown = tuple(
        problem(f"forecaster_{fault.kind}", "warning", f"{fault.count:,} of {fault.of:,} {fault.what}.", fault.remedy)
        for fault in faults
        if fault.count
    )
    return completed, shown


def outcomes_of(rows: Iterable[Row]) -> dict[tuple[str, str], float]:
    """Real returns by symbol and first day of the week, read from the prices that any prompt shows."""
    return {
        (row.kind, week["start"]): week["last"] / week["first"] - 1
        for row in rows
        for week in row.metadata["row"]["weeks"]
    }


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with published rows: how many of how many, in words, and what is done about it."""

    kind: str
    count: int
    of: int
    what: str
    remedy: str


def find_faults(rows: Mapping[str, list[Row]]) -> list[Fault]:
    """The known faults of the published set, counted on the rows at hand; those that are absent have a count of 0."""
    every = [row for part in rows.values() for row in part]
    raws = [row.metadata["row"] for row in every]
    outcomes = outcomes_of(every)
    predicted = [(raw, _predicted(raw["answer"])) for raw in raws if (raw["ticker"], raw["period"][:10]) in outcomes]
    knowable = [(raw, found) for raw, found in predicted if found is not None]
    told = [raw for raw, found in knowable if bin_of(outcomes[raw["ticker"], raw["period"][:10]]) == found]
    first_test = min((row.group for row in rows.get("test", [])), default="9")

    def count(test: Callable[[Mapping[str, Any]], bool]) -> int:
        return sum(test(raw) for raw in raws)

    capitals = {(raw["ticker"], _market_value(raw["prompt"])) for raw in raws if _market_value(raw["prompt"])}
    alone = Counter(ticker for ticker, _ in capitals)
    return [
        Fault(
            "hindsight",
            len(told),
            len(knowable),
            "published answers whose real outcome is on record predict exactly that: they were written knowing it",
            "They are no reference to be scored by, and teach hindsight: train on config label or extractive instead.",
        ),
        Fault(
            "outcome_elsewhere",
            count(lambda raw: (raw["ticker"], raw["period"][:10]) in outcomes),
            len(raws),
            "outcomes stand in the prompt of a later row of the same symbol",
            "Never train on weeks after a tested one; training rows that would are left out.",
        ),
        Fault(
            "own_outcome",
            count(shows_outcome),
            len(raws),
            "prompts show prices of the very week that they ask for",
            "These rows are left out.",
        ),
        Fault(
            "early_financials",
            count(lambda raw: bool(raw["early_financials"])),
            len(raws),
            f"prompts show financials of a period that ended less than {EARLIEST_REPORT_DAYS} days before, or after, "
            "the forecast date, when nobody could have read them",
            "The prompt named published has them; all others leave them out.",
        ),
        Fault(
            "market_value",
            count(lambda raw: alone[raw["ticker"]] == 1) if len({raw["period"] for raw in raws}) > 1 else 0,
            len(raws),
            "prompts state one market value for all weeks of a symbol, that of the day of collection",
            "The prompt named published has it; all others introduce the company without it.",
        ),
        Fault(
            "cryptocurrency",
            count(lambda raw: "cryptocurrency price movement" in raw["prompt"]),
            len(raws),
            'prompts ask for a "cryptocurrency price movement" of a stock',
            "The prompt named published has it; all others ask for the stock's.",
        ),
        Fault(
            "no_prediction",
            count(lambda raw: _predicted(raw["answer"]) is None),
            len(raws),
            "published answers have no line with a prediction",
            "Their outcome is taken from the prices of a later prompt.",
        ),
        Fault(
            "out_of_time",
            sum(row.metadata["row"]["period"][-10:] > first_test for row in rows.get("train", [])),
            len(rows.get("train", [])),
            "training weeks end after the first test week has begun",
            "These rows are left out.",
        ),
    ]


def shows_outcome(raw: Mapping[str, Any]) -> bool:
    """Whether the prices in a row's own prompt reach beyond its forecast date."""
    return any(week["end"] > raw["period"][:10] for week in raw["weeks"])


def _with_outcome(row: Row, outcomes: Mapping[tuple[str, str], float]) -> Row:
    raw = row.metadata["row"]
    change = outcomes.get((row.kind, row.group))
    if change is not None:
        raw = {**raw, "change": change, "label": bin_of(change)}
    left_out = "row whose prompt shows the outcome" if shows_outcome(raw) else ""
    return replace(row, metadata={"row": raw}, left_out=left_out)


def _before(row: Row, first_test: str) -> Row:
    if row.metadata["row"]["period"][-10:] <= first_test or row.left_out:
        return row
    return replace(row, left_out="training row whose week reaches into the test weeks")


def _weeks(prompt: str) -> Iterator[dict[str, Any]]:
    found = list(_WEEK.finditer(prompt))
    for week, following in zip(found, [*found[1:], None], strict=True):
        part = prompt[week.end() : following.start() if following else None].partition("\n\nSome recent basic")[0]
        news = [match.groupdict() for match in _NEWS.finditer(part)]
        yield {
            "start": week["start"],
            "end": week["end"],
            "first": float(week["first"]),
            "last": float(week["last"]),
            "news": news,
            "n_news": len(news),
        }


def _figures(prompt: str) -> dict[str, str]:
    found = _FIGURES.search(prompt)
    lines = (line.partition(": ") for line in found["figures"].split("\n")) if found else ()
    return {name: value for name, mark, value in lines if mark}


def _market_value(prompt: str) -> str:
    found = re.search(r"market capitalization of ([\d.]+\d)", prompt)
    return found[1] if found else ""


def _days_between(first: str, last: str) -> int:
    return (date.fromisoformat(last) - date.fromisoformat(first)).days
