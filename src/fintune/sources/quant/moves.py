"""What a ticker did each day, beside what was known of it the day before.

::

    yesterday's close --overnight--> open      high
            |                                   |  spread (log), position: where between low and high the close is
            +------------- change ----------- close
                                               low

Enters: ``Bars``. Leaves: ``Moves``: changes in logarithms, dividends counted in; the volatility is the root of an
exponentially weighted mean of earlier squared changes (RiskMetrics' 0.94), so a day's own row never scales itself.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fintune.sources.quant.bars import Bars, Days, Floats

Ints = npt.NDArray[np.int64]
DECAY = 0.94
WARM_UP = 20
"""Days at the start of a ticker that only feed its first volatility and its first mean volume."""
EVENTS = ("none", "dividend", "split")
_LEAST_VOLATILITY = 1e-4
_ADJUSTMENT = 1e-4  # an adjustment smaller than this is noise, however many decimals the prices have
_LARGEST_DIVIDEND = 0.15
_MOST_DECIMALS = 6


@dataclass(frozen=True)
class Moves:
    """One ticker's days after the warm-up, each array ``(D,)``.

    Attributes:
        ticker: its name.
        dates: the days.
        change: log of the total return from the close before.
        overnight: the same from that close to the open.
        spread: log of high over low.
        position: 0 where the close is the low, 1 where it is the high; 0.5 on a day without any spread.
        turnover: log of the money traded over its weighted mean before that day.
        volatility: expected size of ``change``, known at the close before.
        missed: sessions of the market since the day before on which it has no usable row.
        rested: whether the market rested longer than a weekend since the day before, without a missed session.
        event: position in ``EVENTS`` of what adjusts prices at this day.
    """

    ticker: str
    dates: Days
    change: Floats
    overnight: Floats
    spread: Floats
    position: Floats
    turnover: Floats
    volatility: Floats
    missed: Ints
    rested: npt.NDArray[np.bool_]
    event: Ints

    def __len__(self) -> int:
        return len(self.dates)

    def only(self, chosen: Any) -> Moves:
        """The chosen days."""
        arrays = {field.name: getattr(self, field.name)[chosen] for field in fields(self) if field.name != "ticker"}
        return replace(self, **arrays)


def moves_of(bars: Bars, sessions: Days) -> Moves | None:
    """The moves of one ticker; None where it has no day after the warm-up.

    Args:
        bars: its days.
        sessions: days on which the market was open.
    """
    if len(bars.dates) <= WARM_UP + 1:
        return None
    close, money = bars.close * bars.factor, np.log(bars.volume * bars.close)
    change = np.diff(np.log(close))
    spread = np.log(np.maximum(bars.high, bars.low) / bars.low)
    width = bars.high - bars.low
    position = np.where(width > 0, (bars.close - bars.low) / np.where(width > 0, width, 1), 0.5)
    missed, rested = _breaks(bars.dates, sessions)
    moves = Moves(
        ticker=bars.ticker,
        dates=bars.dates[1:],
        change=change,
        overnight=np.log(bars.open * bars.factor)[1:] - np.log(close)[:-1],
        spread=spread[1:],
        position=np.clip(position[1:], 0, 1),
        turnover=money[1:] - before(money[1:], DECAY),
        volatility=np.maximum(np.sqrt(before(change**2, DECAY)), _LEAST_VOLATILITY),
        missed=missed,
        rested=rested,
        event=_events(bars),
    )
    return moves.only(slice(WARM_UP, None))


def before(values: Floats, decay: float) -> Floats:
    """Exponentially weighted mean of the values before each, ``(D,)``; it starts from the mean of the warm-up."""
    means = np.empty(len(values))
    mean = float(values[:WARM_UP].mean())
    for day, value in enumerate(values.tolist()):
        means[day] = mean
        if day >= WARM_UP:
            mean = decay * mean + (1 - decay) * value
    return means


def _breaks(dates: Days, sessions: Days) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """Sessions missed since the day before, and whether the market rested longer than a weekend."""
    places = np.searchsorted(sessions, dates)
    missed = np.diff(places) - 1
    weekdays = np.busday_count(dates[:-1], dates[1:])
    return missed.astype(np.int64), (missed == 0) & (weekdays > 1)


def _events(bars: Bars) -> Ints:
    """Dividends raise the factor a little from one day to the next; splits by a lot, reverse splits lower it by a lot.

    What rounded prices may do to the factor is no event.
    """
    adjusted = bars.factor * bars.close
    least = np.maximum(np.log1p(_ADJUSTMENT), _by_rounding(adjusted, bars.close))
    largest = np.maximum(np.log1p(_LARGEST_DIVIDEND), least)
    rise = np.diff(np.log(bars.factor))
    is_dividend = (rise > least) & (rise <= largest)
    return np.where(is_dividend, 1, np.where(np.abs(rise) > largest, 2, 0)).astype(np.int64)


def _by_rounding(adjusted: Floats, close: Floats) -> Floats:
    """The largest change of the factor's logarithm that rounding alone explains, ``(D - 1,)``.

    A close with fewer decimals than the adjusted one is a price as it was paid, not a rounded one.
    """
    steps = _steps(adjusted)
    off = -np.log1p(-steps / 2 / adjusted) - np.log1p(-np.minimum(steps, _steps(close)) / 2 / close)
    off = np.where(steps > 0, off, 0.0)
    return np.asarray(off[1:] + off[:-1])


def _steps(prices: Floats) -> Floats:
    """The step that prices were rounded to, as the decimals of the days so far show it; 0 beyond six decimals."""
    decimals = np.full(len(prices), _MOST_DECIMALS + 1)
    for places in range(_MOST_DECIMALS, -1, -1):
        scaled = prices * 10.0**places
        decimals[np.abs(scaled - np.rint(scaled)) <= 1e-3 + 1e-7 * scaled] = places  # 1e-7: single precision
    decimals = np.maximum.accumulate(decimals)
    return np.where(decimals > _MOST_DECIMALS, 0.0, 10.0**-decimals)
