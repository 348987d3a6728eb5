"""What positions from weekly forecasts would have earned, entered at an open that nobody could see when forecasting.

::

    forecast made at the end of day t   -> bought at the open of the first session after t
    forecast ends at the end of day u   -> sold at the open of the first session after u, where the next begins

Enters: signals and prices. Leaves: one ``Period`` for each week and the equity curve at daily closes. Costs and
slippage are paid on what is traded only: what stays in the portfolio from week to week is free.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Literal

import numpy as np

from fintune.forecasting.prices import Prices
from fintune.forecasting.signals import Signal
from fintune.metrics.classification import Floats
from fintune.schema.errors import DataError

Rule = Literal["sign", "magnitude"]
Weights = Mapping[str, float]


@dataclass(frozen=True)
class Costs:
    """What a trade costs, in basis points (hundredths of a per cent) of the amount bought or sold."""

    commission_bp: float = 5.0
    slippage_bp: float = 5.0

    @property
    def rate(self) -> float:
        """Both, as a ratio."""
        return (self.commission_bp + self.slippage_bp) / 10_000


@dataclass(frozen=True)
class Slot:
    """A week to trade: sessions by number, entered at the open of ``entry``, left at the open of ``exit``."""

    made: date
    entry: int
    exit: int


@dataclass(frozen=True)
class Period:
    """One week of one strategy.

    Attributes:
        entry: day of the open at which it was entered.
        exit: day of the open at which it was left.
        gross: return before costs, as a ratio.
        net: return after costs.
        turnover: bought and sold as a share of the equity: 1 for buying everything from cash.
        exposure: sum of the weights' sizes after trading.
    """

    entry: date
    exit: date
    gross: float
    net: float
    turnover: float
    exposure: float


@dataclass(frozen=True)
class Backtest:
    """One strategy's weeks; ``curve`` is its equity at daily closes, from 1 at the first entry."""

    periods: tuple[Period, ...]
    curve: tuple[tuple[date, float], ...]

    @property
    def returns(self) -> Floats:
        """Net returns of the weeks."""
        return np.array([period.net for period in self.periods])


@dataclass(frozen=True)
class Plan:
    """The weeks that can be traded, the same for all strategies.

    Attributes:
        slots: in order of time.
        unfinished: forecast dates whose week the prices do not cover; they are left out.
        unpriced: forecasts of a stock without a price at the entry; they get no position.
    """

    slots: tuple[Slot, ...]
    unfinished: int
    unpriced: int


def make_plan(signals: Sequence[Signal], prices: Prices) -> Plan:
    """The weeks of all forecasts.

    Raises:
        DataError: the week of one forecast date overlaps with the next one's, or the prices cover no week.
    """
    ends: dict[date, date] = {}
    for signal in signals:
        if ends.setdefault(signal.made, signal.until) != signal.until:
            raise DataError(f"Forecasts made on {signal.made} end on different days.", "Give all of a date one end.")
    slots, unfinished = [], 0
    for made, until in sorted(ends.items()):
        entry, leave = _first_after(prices, made), _first_after(prices, until)
        if leave >= len(prices.sessions) or prices.sessions[0].date() > made:
            unfinished += 1
        elif entry < leave:
            slots.append(Slot(made, entry, leave))
    for before, after in zip(slots, slots[1:], strict=False):
        if after.entry < before.exit:
            raise DataError(
                f"The forecasts of {after.made} begin before those of {before.made} end.",
                "Backtest weeks that follow one another: one forecast date a week for all stocks.",
            )
    if not slots:
        raise DataError("The prices cover no forecast week.", "Give prices from before the first to after the last.")
    places = {slot.made: slot for slot in slots}
    unpriced = sum(one.made in places and not _has_open(prices, one.symbol, places[one.made].entry) for one in signals)
    return Plan(tuple(slots), unfinished, unpriced)


def weights_of(signals: Sequence[Signal], rule: Rule, *, long_only: bool = False) -> dict[str, float]:
    """Shares of the equity in each stock, from the forecasts of one date; their sizes add up to at most 1.

    ``sign`` puts an equal share into each forecast stock, long or short; a missing forecast's share stays in cash.
    ``magnitude`` divides everything by the size of the expected change; a forecast without one gets nothing.
    """
    if rule == "sign":
        sides = {one.symbol: float(one.direction or 0) for one in signals}
        total = float(len(signals))
    else:
        sides = {one.symbol: float(one.magnitude or 0.0) for one in signals}
        total = sum(map(abs, sides.values()))
    return {symbol: max(side, 0.0) / total if long_only else side / total for symbol, side in sides.items() if side}


def forecast_weights(
    signals: Sequence[Signal], prices: Prices, rule: Rule, *, long_only: bool = False
) -> Callable[[Slot], Weights | None]:
    """The positions of each week from its forecasts, of stocks that have a price at the entry."""
    by_date: dict[date, list[Signal]] = {}
    for one in signals:
        by_date.setdefault(one.made, []).append(one)

    def at(slot: Slot) -> Weights | None:
        priced = [one for one in by_date.get(slot.made, []) if _has_open(prices, one.symbol, slot.entry)]
        return weights_of(priced, rule, long_only=long_only) if priced else {}

    return at


def run(plan: Plan, prices: Prices, weights: Callable[[Slot], Weights | None], costs: Costs) -> Backtest:
    """Trades every week of the plan.

    Args:
        plan: the weeks.
        prices: opens and closes.
        weights: the positions wanted in a week; None keeps what is held.
        costs: of what is bought and sold. Everything is sold at the end, and wherever weeks do not touch.
    """
    symbols = list(prices.opens.columns)
    asked = [weights(slot) for slot in plan.slots]
    held, equity = np.zeros(len(symbols)), 1.0
    periods: list[Period] = []
    curve = [(_day(prices, plan.slots[0].entry - 1), equity)]
    for number, (slot, wanted) in enumerate(zip(plan.slots, asked, strict=True)):
        target = held if wanted is None else np.array([wanted.get(symbol, 0.0) for symbol in symbols])
        bought = float(np.abs(target - held).sum())
        invested = equity * (1 - costs.rate * bought)
        growth = _growth(prices, slot, target)
        factor = max(1 + float((growth - 1) @ target), 0.0)
        marks = _marks(prices, slot, target)
        curve += [(_day(prices, slot.entry + day), invested * float(mark)) for day, mark in enumerate(marks)]
        held = target * growth / factor if factor else np.zeros(len(symbols))
        sold = float(np.abs(held).sum()) if _is_closed(plan, number, asked) else 0.0
        held = np.zeros(len(symbols)) if sold else held
        after = invested * factor * (1 - costs.rate * sold)
        days = (_day(prices, slot.entry), _day(prices, slot.exit))
        net = after / equity - 1 if equity else 0.0
        periods.append(Period(*days, factor - 1, net, bought + sold, float(np.abs(target).sum())))
        equity = after
    return Backtest(tuple(periods), (*curve, (_day(prices, plan.slots[-1].exit), equity)))


def _is_closed(plan: Plan, number: int, asked: Sequence[Weights | None]) -> bool:
    """Whether everything is sold at the end of a week: after the last, and before a gap unless positions are kept."""
    if number + 1 == len(plan.slots):
        return True
    return plan.slots[number + 1].entry != plan.slots[number].exit and asked[number + 1] is not None


def _marks(prices: Prices, slot: Slot, target: Floats) -> Floats:
    """Value of 1 invested at the entry, at each close until the exit; never below 0."""
    chosen = np.flatnonzero(target)
    entry = prices.opens.iloc[slot.entry].to_numpy(np.float64)[chosen]
    closes = prices.closes.iloc[slot.entry : slot.exit, chosen].ffill().to_numpy(np.float64)
    ratios = np.nan_to_num(closes / entry, nan=1.0)
    return np.asarray(np.maximum(1 + (ratios - 1) @ target[chosen], 0.0))


def _growth(prices: Prices, slot: Slot, target: Floats) -> Floats:
    """Each held stock's open at the exit over its open at the entry; a stock that no longer trades is left at its last
    close, and one that is not held grows by 1.
    """
    growth, opens = np.ones(len(target)), prices.opens.to_numpy(np.float64)
    for place in np.flatnonzero(target):
        entry, leave = opens[slot.entry, place], opens[slot.exit, place]
        if np.isnan(leave):
            closes = prices.closes.iloc[slot.entry : slot.exit, int(place)].dropna().to_numpy(np.float64)
            leave = closes[-1] if len(closes) else entry
        growth[place] = leave / entry
    return growth


def _first_after(prices: Prices, day: date) -> int:
    return int(prices.sessions.searchsorted(np.datetime64(day), side="right"))


def _has_open(prices: Prices, symbol: str, session: int) -> bool:
    return symbol in prices.opens.columns and bool(prices.opens[symbol].iloc[session] > 0)


def _day(prices: Prices, session: int) -> date:
    day: date = prices.sessions[session].date()
    return day
