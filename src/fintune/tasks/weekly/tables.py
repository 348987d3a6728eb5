"""Histories become rows in splits by time: no week of one split reaches into another, with a week's embargo between.

Enters: histories and the last day of each split. Leaves: one row for each stock and forecast date, with what was left
out and why. Every week goes through ``require_no_lookahead`` first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any

from fintune.schema.errors import DataError
from fintune.sources.table import RawTable
from fintune.tasks.base import Builder
from fintune.tasks.weekly.calendar import WEEK, forecast_dates, period_of
from fintune.tasks.weekly.history import History
from fintune.tasks.weekly.lookahead import require_no_lookahead
from fintune.tasks.weekly.weeks import Week, WeekOptions, build_week, build_weeks

EMBARGO = WEEK
"""Between the last outcome of one split and the first forecast of the next."""


@dataclass(frozen=True)
class SplitDays:
    """The first forecast date, and the last day of each split's outcomes, in the order of time."""

    first: date
    last: Mapping[str, date]

    def split_of(self, forecast_date: date) -> str | None:
        """The split of a week; None for one that reaches over a boundary or lies in the embargo behind it."""
        before = self.first - EMBARGO
        for split, last in self.last.items():
            if forecast_date + WEEK <= last:
                return split if forecast_date >= before + EMBARGO else None
            before = last
        return None


HistoryReader = Callable[[Path, Counter[str]], list[History] | None]


def weekly_builder(read: HistoryReader, days: SplitDays | None, options: WeekOptions) -> Builder:
    """Rows of a source by split.

    Args:
        read: gives the source's histories and counts what it leaves out.
        days: the splits' days; None takes shares of the weeks there are, the last ones for testing.
        options: how much of the past is shown.
    """

    def build(folder: Path) -> Mapping[str, RawTable] | None:
        return build_once(str(folder), _state_of(folder.resolve()))

    @lru_cache(1)
    def build_once(folder: str, state: tuple[object, ...]) -> Mapping[str, RawTable] | None:
        # The forms of one data set share their rows, which take most of a minute to build.
        dropped: Counter[str] = Counter()
        histories = read(Path(folder), dropped)
        if histories is None:
            return None
        return weekly_tables(histories, days or shares_of(histories), options, folder, dropped)

    return build


def _state_of(folder: Path) -> tuple[object, ...]:
    """Names, sizes and times of the files in a folder and in those beside it, which tell when to build anew."""
    files = [*folder.glob("*"), *folder.parent.glob("*/*")]
    states = ((str(file), file.stat()) for file in sorted(files) if file.is_file())
    return tuple((name, state.st_size, state.st_mtime_ns) for name, state in states)


def weekly_tables(
    histories: Sequence[History], days: SplitDays, options: WeekOptions, source: str, dropped: Counter[str]
) -> dict[str, RawTable]:
    """One table a split, rows by date and ticker; notes say what was left out.

    Raises:
        DataError: a week knows its future.
    """
    dates = forecast_dates(days.first, max(days.last.values()))
    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in days.last}
    for history in histories:
        weeks = list(build_weeks(history, dates, options, dropped))
        require_no_lookahead(weeks, history, lambda past, day: build_week(past, day, options))
        for week in weeks:
            split = days.split_of(date.fromisoformat(week.date))
            if split is None:
                dropped["weeks between two splits"] += 1
            else:
                rows[split].append(week_row(week))
    notes = tuple(f"{count:,} {reason}" for reason, count in sorted(dropped.items()) if count)
    return {
        split: RawTable(tuple(sorted(part, key=lambda row: (row["date"], row["ticker"]))), source, notes=notes)
        for split, part in rows.items()
    }


def shares_of(histories: Iterable[History]) -> SplitDays:
    """Splits of the weeks that have prices: the last fifth for testing, a tenth before it for validation.

    Raises:
        DataError: there are no prices.
    """
    spans = [(history.prices.days[0], history.prices.days[-1]) for history in histories if history.prices.days]
    if not spans:
        raise DataError("There are no prices of trading days.", "Check the dates and closes of the price table.")
    first, last = (date.fromisoformat(day) for day in (min(span[0] for span in spans), max(span[1] for span in spans)))
    dates = forecast_dates(first, last)
    # Cut at forecast dates: then the embargo takes one week at each cut.
    cuts = {split: dates[int(share * len(dates))] for split, share in (("train", 0.7), ("validation", 0.8))}
    return SplitDays(first, cuts | {"test": last})


def week_row(week: Week) -> dict[str, Any]:
    """A week as a row of plain values, which a ``WeeklyTask`` reads."""
    return {
        "id": f"{week.ticker}-{week.date}",
        "ticker": week.ticker,
        "date": week.date,
        "period": period_of(date.fromisoformat(week.date)),
        "cutoff": week.cutoff.isoformat(),
        "weeks": [
            {
                "start": past.start,
                "end": past.end,
                "first": past.first,
                "last": past.last,
                "news": [{"headline": one.headline, "summary": one.summary} for one in past.news],
                "n_news": past.n_news,
            }
            for past in week.weeks
        ],
        "profile": dict(week.profile),
        "reported": week.reported,
        "financials": dict(week.financials),
        "rebased": week.rebased,
        "change": week.change,
        "label": week.label,
    }
