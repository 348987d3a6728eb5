"""What the weeks of forecasts really brought, and the weeks before them that baselines may learn from.

Enters: signals and prices. Leaves: ``Forecast`` beside its return, and baselines on the same stocks and weeks. A week's
return runs from the last close on or before the forecast date to the last on or before its end, as FinGPT's labels do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np

from fintune.forecasting.prices import Prices
from fintune.forecasting.signals import Signal
from fintune.metrics.classification import Floats
from fintune.metrics.forecast import Forecast
from fintune.metrics.forecast_baselines import N_PAST, Week, baseline_forecasts
from fintune.schema.errors import DataError
from fintune.tasks.weekly.calendar import WEEK

OLDEST_CLOSE = WEEK
"""A stock without a close for longer has none on that day."""
CLOSED_AT_MOST = timedelta(days=3)
"""Prices that end so long before a week does may yet cover it: a holiday and a weekend."""
MOST_TRAINING_WEEKS = 260


@dataclass(frozen=True)
class Outcomes:
    """Forecasts beside what happened.

    Attributes:
        systems: forecasts of each system, those whose return is known.
        baselines: the same stocks and weeks without a language model.
        unknown: stock-weeks left out because the prices do not tell their return.
        training_weeks: weeks before the first forecast that baselines learnt from.
    """

    systems: Mapping[str, list[Forecast]]
    baselines: Mapping[str, list[Forecast]]
    unknown: int
    training_weeks: int


def outcomes_of(systems: Mapping[str, Sequence[Signal]], prices: Prices) -> Outcomes:
    """The systems' forecasts and the baselines', of all stock-weeks that any system forecasts.

    A stock-week that a system has no forecast of counts as missing there.

    Raises:
        DataError: no return is known.
    """
    places = {(one.made, one.symbol): one.until for signals in systems.values() for one in signals}
    closes = {symbol: _Closes.of(prices, symbol) for _, symbol in places if symbol in prices.closes.columns}
    changes = {
        (made, symbol): change
        for (made, symbol), until in sorted(places.items())
        if symbol in closes and (change := closes[symbol].change(made, until)) is not None
    }
    if not changes:
        raise DataError("The prices tell the return of no forecast week.", "Check symbols and dates of both files.")
    found = {
        name: [_forecast(by_place.get(place), place, change) for place, change in changes.items()]
        for name, by_place in (
            (name, {(one.made, one.symbol): one for one in signals}) for name, signals in systems.items()
        )
    }
    tested = [_week(closes[symbol], symbol, made, change) for (made, symbol), change in changes.items()]
    train = _training_weeks(closes, min(made for made, _ in changes))
    return Outcomes(found, baseline_forecasts(train, tested), len(places) - len(changes), len({w.week for w in train}))


@dataclass(frozen=True)
class _Closes:
    """One stock's days and closes, ``(N,)`` each, days that it did not trade left out."""

    days: Floats
    values: Floats

    @classmethod
    def of(cls, prices: Prices, symbol: str) -> _Closes:
        series = prices.closes[symbol].dropna()
        return cls(series.index.to_numpy(), series.to_numpy(np.float64))

    def at(self, day: date) -> float | None:
        """The last close on or before a day."""
        place = int(np.searchsorted(self.days, np.datetime64(day), side="right")) - 1
        if place < 0 or np.datetime64(day) - self.days[place] > np.timedelta64(OLDEST_CLOSE):
            return None
        return float(self.values[place])

    def change(self, start: date, end: date) -> float | None:
        """Return between two days as a ratio; None where the prices do not reach the end."""
        first, last = self.at(start), self.at(end)
        if first is None or last is None or self.days[-1] < np.datetime64(end - CLOSED_AT_MOST):
            return None
        return last / first - 1


def _week(closes: _Closes, symbol: str, made: date, change: float) -> Week:
    """A stock-week with the weekly returns before it, oldest first, as far back as they are known."""
    past: list[float] = []
    for back in range(1, N_PAST + 1):
        known = closes.change(made - back * WEEK, made - (back - 1) * WEEK)
        if known is None:
            break
        past.insert(0, known)
    return Week(symbol, made.isoformat(), tuple(past), change)


def _training_weeks(closes: Mapping[str, _Closes], first: date) -> list[Week]:
    """Weeks that end on or before the first forecast date, at the same weekday."""
    found = []
    for back in range(1, MOST_TRAINING_WEEKS + 1):
        made = first - back * WEEK
        for symbol, series in closes.items():
            change = series.change(made, made + WEEK)
            if change is not None:
                found.append(_week(series, symbol, made, change))
    return found


def _forecast(signal: Signal | None, place: tuple[date, str], change: float) -> Forecast:
    made, symbol = place
    if signal is None:
        return Forecast(symbol, made.isoformat(), change)
    return Forecast(symbol, made.isoformat(), change, signal.direction, signal.magnitude, signal.p_up)
