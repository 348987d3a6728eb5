"""When something was known: sessions of the New York Stock Exchange, and the moment that a forecast may look up to.

Enters: dates and times. Leaves: the sessions' closes in UTC and the cut-off of a forecast date. The sessions, half days
and closures come from exchange_calendars.
"""

from __future__ import annotations

import warnings
from bisect import bisect_right
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from fintune.schema.errors import DataError

FIRST, LAST = "1995-01-01", "2035-12-31"
NEW_YORK = ZoneInfo("America/New_York")
WEEK = timedelta(days=7)
_SUNDAY = 6


@dataclass(frozen=True)
class Sessions:
    """Trading days of the exchange, oldest first, and the UTC times at which they close; ``N`` of each."""

    days: tuple[str, ...]
    closes: tuple[datetime, ...]

    def last_on(self, day: date) -> int:
        """Index of the last session on or before a day.

        Raises:
            DataError: the day is outside the calendar.
        """
        if not FIRST <= day.isoformat() <= LAST:
            raise DataError(
                f"The date {day} is outside the exchange's calendar ({FIRST} to {LAST}).", "Correct the date."
            )
        return bisect_right(self.days, day.isoformat()) - 1

    def is_session(self, day: str) -> bool:
        """Whether the exchange is open on a day, written as 2015-10-01."""
        at = bisect_right(self.days, day) - 1
        return at >= 0 and self.days[at] == day


@lru_cache(1)
def sessions() -> Sessions:
    """The New York Stock Exchange's sessions, half days and closures of single days included."""
    import exchange_calendars

    with warnings.catch_warnings():
        # The library uses what its own dependency calls outdated.
        warnings.simplefilter("ignore")
        calendar = exchange_calendars.get_calendar("XNYS", start=FIRST, end=LAST)
        closes = tuple(moment.to_pydatetime() for moment in calendar.closes)
    return Sessions(tuple(str(day.date()) for day in calendar.sessions), closes)


def cutoff_day(forecast_date: date) -> str:
    """The last session on or before a forecast date: the day of the last price that may be seen."""
    known = sessions()
    return known.days[known.last_on(forecast_date)]


def cutoff(forecast_date: date) -> datetime:
    """The moment up to which a forecast may look, in UTC: the close of the last session on or before its date.

    What is published later, after hours or at the weekend, belongs to the week that is forecast.
    """
    known = sessions()
    return known.closes[known.last_on(forecast_date)]


def forecast_dates(first: date, last: date) -> tuple[date, ...]:
    """The Sundays from ``first`` to ``last``: FinGPT-Forecaster's weeks end on them."""
    start = first + timedelta(days=(_SUNDAY - first.weekday()) % 7)
    return tuple(start + number * WEEK for number in range((last - start).days // 7 + 1)) if start <= last else ()


def end_of_day(day: date) -> datetime:
    """When a text without a time counts as published: as the day ends in New York, after the close of its session."""
    return datetime.combine(day, time(23, 59, 59), NEW_YORK).astimezone(UTC)


def period_of(forecast_date: date) -> str:
    """The week that is forecast as the published set writes it: ``2024-02-25 to 2024-03-03``."""
    return f"{forecast_date} to {forecast_date + WEEK}"
