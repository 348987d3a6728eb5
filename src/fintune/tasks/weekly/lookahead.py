"""The proof that no prompt knows its future: all it shows is dated, and built again without the future it is the same.

Enters: weeks, the history they were built from, and the builder. Leaves: one ``Lookahead`` for each breach. Every data
set that this room builds goes through it; it takes any builder, so that a new one can be tested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import date

from fintune.schema.errors import DataError
from fintune.tasks.weekly.calendar import cutoff, cutoff_day
from fintune.tasks.weekly.history import History
from fintune.tasks.weekly.weeks import Week

WeekBuilder = Callable[[History, date], Week | str]
"""Makes the week of a date, or says why there is none."""


@dataclass(frozen=True)
class Lookahead:
    """One breach: which stock and forecast date, and what was seen too early."""

    ticker: str
    date: str
    what: str

    def __str__(self) -> str:
        return f"{self.ticker} at {self.date}: {self.what}"


def find_lookahead(weeks: Iterable[Week], history: History, build: WeekBuilder) -> list[Lookahead]:
    """Breaches among the weeks of one stock.

    Two checks: no date in the record lies after its cut-off; and the record, outcome aside, equals the one that
    ``build`` makes from a history in which everything after the cut-off is deleted.

    Args:
        weeks: what was built.
        history: what it was built from.
        build: what built it.
    """
    return [Lookahead(week.ticker, week.date, what) for week in weeks for what in _breaches(week, history, build)]


def require_no_lookahead(weeks: Iterable[Week], history: History, build: WeekBuilder) -> None:
    """Refuses weeks that know their future.

    Raises:
        DataError: naming the first breach and how many there are.
    """
    found = find_lookahead(weeks, history, build)
    if found:
        raise DataError(
            f"{len(found):,} weekly prompts of {history.ticker} know their future; the first is {found[0]}.",
            "This is a mistake in what built them: correct it, and do not train on these rows.",
        )


def _breaches(week: Week, history: History, build: WeekBuilder) -> Iterator[str]:
    forecast_date = date.fromisoformat(week.date)
    day, moment = cutoff_day(forecast_date), cutoff(forecast_date)
    yield from dated_too_late(week)
    rebuilt = build(history.until(day, moment), forecast_date)
    if isinstance(rebuilt, str):
        yield f"without the future there is nothing to show ({rebuilt})"
        return
    shown, alone = week.shown, rebuilt.shown
    changed = [name for name in shown if shown[name] != alone[name]]
    if changed:
        yield f"{', '.join(changed)} differ when everything after {day} is deleted"


def dated_too_late(week: Week) -> Iterator[str]:
    """What in a record is dated after the moment up to which its forecast may look."""
    forecast_date = date.fromisoformat(week.date)
    day, moment = cutoff_day(forecast_date), cutoff(forecast_date)
    for past in week.weeks:
        if past.last_day > day or past.end > week.date:
            yield f"a price of {past.last_day}, after {day}"
        for one in past.news:
            if one.published > moment:
                yield f"news of {one.published:%Y-%m-%d %H:%M} UTC, after {moment:%Y-%m-%d %H:%M}: {one.headline[:60]}"
    if week.reported_known is not None and week.reported_known > moment:
        yield f"financials that were made public on {week.reported_known:%Y-%m-%d}, after {moment:%Y-%m-%d}"
