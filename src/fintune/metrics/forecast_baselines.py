"""Forecasts that need no language model: what any forecaster has to beat.

Enters: for each stock and week the returns known by then, and the return that followed. Leaves: ``Forecast`` by
baseline. What is learnt is learnt from training weeks, all of which end before the first tested one begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fintune.metrics.classification import Floats
from fintune.metrics.forecast import Forecast
from fintune.schema.errors import DataError

N_PAST = 3
"""Past weeks that the linear model looks at."""


@dataclass(frozen=True)
class Week:
    """One stock in one week.

    Attributes:
        symbol: the stock.
        week: the day the forecast is made, in ISO form, so that weeks sort by time.
        past: weekly returns known on that day as ratios, oldest first.
        change: the return of the week that follows, as a ratio.
    """

    symbol: str
    week: str
    past: tuple[float, ...]
    change: float


def baseline_forecasts(train: Sequence[Week], test: Sequence[Week]) -> dict[str, list[Forecast]]:
    """All baselines on the tested weeks; those that learn are left out without training weeks.

    Raises:
        DataError: a training week is not before all tested ones.
    """
    if train and test and max(one.week for one in train) >= min(one.week for one in test):
        raise DataError(
            "A training week is not before the first tested week, so what is learnt there would know the future.",
            "Split the weeks by time.",
        )
    found = {"last_sign": last_sign(test), "zero_return": zero_return(test)}
    if train:
        found["majority_sign"] = majority_sign(train, test)
        if any(len(one.past) >= N_PAST for one in train):
            found["linear"] = linear(train, test)
    return found


def majority_sign(train: Sequence[Week], test: Sequence[Week]) -> list[Forecast]:
    """The sign that was more frequent in the training weeks (up at a tie), as far as a week's return was on average."""
    signs = np.sign([one.change for one in train])
    direction = 1 if signs.sum() >= 0 else -1
    size = 100 * float(np.mean(np.abs([one.change for one in train])))
    return [Forecast(one.symbol, one.week, one.change, direction, direction * size) for one in test]


def last_sign(test: Sequence[Week]) -> list[Forecast]:
    """Last week's return again; missing where no past return is known."""
    return [_expecting(one, one.past[-1] if one.past else None) for one in test]


def zero_return(test: Sequence[Week]) -> list[Forecast]:
    """No change: a magnitude of 0, hard to beat by squared error, and no direction."""
    return [_expecting(one, 0.0) for one in test]


def linear(train: Sequence[Week], test: Sequence[Week], n_past: int = N_PAST) -> list[Forecast]:
    """Least squares on the last ``n_past`` weekly returns, fitted over all stocks of the training weeks.

    Tested weeks with a shorter past are missing.
    """
    from sklearn.linear_model import LinearRegression

    known = [one for one in train if len(one.past) >= n_past]
    if not known:
        raise DataError(f"No training week has {n_past} past returns.", "Give more history, or fewer past weeks.")
    model = LinearRegression().fit(_past(known, n_past), [one.change for one in known])
    told = [one for one in test if len(one.past) >= n_past]
    expected = dict(zip(map(id, told), model.predict(_past(told, n_past)) if told else (), strict=True))
    return [_expecting(one, float(expected[id(one)]) if id(one) in expected else None) for one in test]


def _past(weeks: Sequence[Week], n_past: int) -> Floats:
    return np.array([one.past[-n_past:] for one in weeks], dtype=np.float64)


def _expecting(week: Week, change: float | None) -> Forecast:
    """The forecast that expects a return, given as a ratio."""
    if change is None:
        return Forecast(week.symbol, week.week, week.change)
    return Forecast(week.symbol, week.week, week.change, int(np.sign(change)), 100 * change)
