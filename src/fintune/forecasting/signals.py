"""Forecasts as trading sees them: a stock, the day it was forecast, the day the forecast ends, and which way.

Enters: run directories, ``predictions.jsonl``, or tables with symbol, date and a forecast. Leaves: ``Signal`` by
system. The classical systems of a run are left out: a backtest has baselines of its own, made from prices.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any

from fintune.evaluation.baselines import CLASSICAL
from fintune.metrics.forecast_answers import parse_robust
from fintune.metrics.forecast_movement import stated_movement
from fintune.schema.errors import DataError
from fintune.schema.results import DocumentRecord
from fintune.schema.run_directory import RunDirectory, read_jsonl
from fintune.sources import read_file
from fintune.tasks import get_task, list_tasks
from fintune.tasks.weekly.calendar import WEEK
from fintune.tasks.weekly.task import WeeklyTask

_TUNED = ("tuned", "model")
"""What is named after its run, or its table, where there are several."""
_PLACE = re.compile(r"(?P<symbol>[A-Za-z0-9^][\w.^=]*(?:-[A-Za-z]+)?)[-_: ](?P<date>\d{4}-\d\d-\d\d)")


@dataclass(frozen=True)
class Signal:
    """One forecast of one stock.

    Attributes:
        symbol: the stock.
        made: the day at whose end everything that was used was known.
        until: the day at whose end the forecast week ends.
        direction: 1, -1, 0, or None where the answer could not be read.
        magnitude: expected change in signed percent points, None where there is none.
        p_up: probability of a rise where the answers were ranked.
        output: the answer, where one was to be written; '' for an empty one.
        prompt: the document that it was written about.
        reference: a published answer, else the one that was to be learnt.
    """

    symbol: str
    made: date
    until: date
    direction: int | None
    magnitude: float | None = None
    p_up: float | None = None
    output: str | None = None
    prompt: str = ""
    reference: str = ""


def read_signals(*sources: str | Path, task: str | None = None) -> dict[str, list[Signal]]:
    """The forecasts of each system; of several sources those of all, side by side.

    Of several sources, a tuned model has the name of its run, any other system its own with the run's behind it; where
    all that have a system say the same by it, as with a base that they share, it stands once. Where there are several
    tasks, the task stands behind.

    Args:
        sources: run directories, ``.jsonl`` files of their records, or tables with the columns symbol (or ticker) and
            date, one of output, prediction and direction, and optionally system, until and magnitude.
        task: which task's records; None for all.

    Raises:
        DataError: nothing there is a forecast of a stock on a date, several tasks of one source forecast different
            stock-weeks, or two sources have one name.
        RunError: a record is damaged.
    """
    read = {_source_name(Path(source)): _by_task(Path(source), task) for source in sources}
    if len(read) < len(sources):
        raise DataError(
            f"Two of the forecasts have one name; the names are {', '.join(read)}.", "Give their folders two names."
        )
    kinds = dict.fromkeys(kind for systems in read.values() for kind in systems)
    n_tasks = len({name for name, _ in kinds})
    found: dict[str, list[Signal]] = {}
    for name, system in kinds:
        theirs = {source: systems[name, system] for source, systems in read.items() if (name, system) in systems}
        behind = f", {name}" if n_tasks > 1 else ""
        if len(sources) == 1 or (system not in _TUNED and _are_equal(list(theirs.values()))):
            found[system + behind] = next(iter(theirs.values()))
        elif system in _TUNED:
            found.update({source + behind: signals for source, signals in theirs.items()})
        else:
            found.update({f"{system} ({source}){behind}": signals for source, signals in theirs.items()})
    return found


def _source_name(source: Path) -> str:
    place = source.resolve()
    return place.parent.name if place == RunDirectory(place.parent).predictions else place.stem


def _are_equal(forecasts: Sequence[Sequence[Signal]]) -> bool:
    """Whether all say the same; likelihoods may differ in their last digits between runs."""
    said = [{(one.symbol, one.made, one.direction, one.magnitude) for one in signals} for signals in forecasts]
    return all(one == said[0] for one in said)


def _by_task(path: Path, task: str | None) -> dict[tuple[str, str], list[Signal]]:
    """The forecasts of one source by task and system."""
    if path.is_dir():
        rows: Iterable[Mapping[str, Any]] = [one.model_dump() for one in RunDirectory(path).read_records()]
    else:
        rows = list(read_jsonl(path)) if path.suffix == ".jsonl" and path.is_file() else read_file(path).rows
    found: dict[tuple[str, str], list[Signal]] = {}
    for row in rows:
        name, system = str(row.get("task", "")), str(row.get("system") or "model")
        is_ours = row.get("protocol", "robust") == "robust" and system not in CLASSICAL and task in (None, name)
        if not is_ours or not _forecasts_weeks(name):
            continue
        signal = _of_record(DocumentRecord.model_validate(row)) if "example_id" in row else _of_row(row)
        if signal is not None:
            found.setdefault((name, system), []).append(signal)
    places: dict[str, set[tuple[str, date]]] = {}
    for (name, _), signals in found.items():
        places.setdefault(name, set()).update((one.symbol, one.made) for one in signals)
    if not places:
        raise DataError(
            f"{path} holds no forecast of a stock{f' by task {task}' if task else ''}.",
            "Records need an id such as AAPL-2024-02-25; tables symbol and date.",
        )
    if len(set(map(frozenset, places.values()))) > 1:
        raise DataError(
            f"{path} holds forecasts of several tasks ({', '.join(sorted(places))}) about different stock-weeks.",
            "Name one with --task.",
        )
    return found


@lru_cache
def _forecasts_weeks(task: str) -> bool:
    """Whether a task's records are about weeks; tasks that are not registered are taken at their word.

    Those of a single day's movement have a stock and a date in their ids too, but that of the day that is forecast.
    """
    return task not in list_tasks() or isinstance(get_task(task), WeeklyTask)


def _of_record(record: DocumentRecord) -> Signal | None:
    """The forecast in a record whose id says stock and date, as those of the weekly tasks do."""
    place = _PLACE.fullmatch(record.example_id)
    if place is None:
        return None
    made = _day(place["date"], record.example_id)
    if record.choices:
        movement = stated_movement(record.prediction or "")
        return Signal(place["symbol"], made, made + WEEK, movement.direction, movement.magnitude, _p_up(record))
    return _of_answer(
        place["symbol"], made, made + WEEK, record.output or "", record.text, record.reference or record.target
    )


def _p_up(record: DocumentRecord) -> float | None:
    if record.probabilities is None:
        return None
    signs = [stated_movement(choice).direction for choice in record.choices]
    if not {1, -1} <= set(signs):
        return None
    rising = sum(p for p, sign in zip(record.probabilities, signs, strict=True) if sign == 1)
    return min(rising, 1.0)


def _of_row(row: Mapping[str, Any]) -> Signal | None:
    symbol, made = row.get("symbol") or row.get("ticker"), row.get("date") or row.get("made")
    if not symbol or not made:
        return None
    day = _day(str(made)[:10], str(symbol))
    until = _day(str(row["until"])[:10], str(symbol)) if row.get("until") else day + WEEK
    if row.get("direction") not in (None, ""):
        direction, magnitude = _number(row, "direction"), row.get("magnitude")
        size = None if magnitude in (None, "") else _number(row, "magnitude")
        return Signal(str(symbol), day, until, (direction > 0) - (direction < 0), size)
    if row.get("output") is not None and not row.get("prediction"):
        return _of_answer(str(symbol), day, until, str(row["output"]), str(row.get("prompt") or ""))
    movement = stated_movement(str(row.get("prediction") or ""))
    return Signal(str(symbol), day, until, movement.direction, movement.magnitude)


def _of_answer(symbol: str, made: date, until: date, output: str, prompt: str, reference: str = "") -> Signal:
    answer = parse_robust(output)
    return Signal(symbol, made, until, answer.direction, answer.magnitude, None, output, prompt, reference)


def _day(text: str, of: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise DataError(f"The forecast of {of} has the date {text!r}.", "Write dates as 2024-02-25.") from error


def _number(row: Mapping[str, Any], name: str) -> float:
    try:
        return float(row[name])
    except (TypeError, ValueError) as error:
        raise DataError(
            f"A forecast of {row.get('symbol') or row.get('ticker')} has the {name} {row[name]!r}.", "Write a number."
        ) from error
