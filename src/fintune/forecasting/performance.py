"""A strategy's weeks in figures, and whether they can be told from chance.

Enters: backtests over the same weeks. Leaves: ``Performance`` for each, with a sentence. The tests flip the sign of
whole weeks (``fintune.metrics.paired``), against earning nothing and against having held the same stocks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fintune.forecasting.backtest import Backtest
from fintune.metrics.classification import Floats
from fintune.metrics.multiple import holm
from fintune.metrics.paired import swap_p
from fintune.metrics.sharpe import (
    MIN_PERIODS,
    annual,
    deflated_sharpe,
    max_drawdown,
    sharpe_interval,
    sharpe_ratio,
)
from fintune.schema.results import SIGNIFICANT, Estimate

DAYS_A_YEAR = 365.25
LEAST_SURE = 0.95
"""A deflated Sharpe ratio below this is what the best of so many tries may reach by luck."""
NOT_DISTINGUISHABLE = "not distinguishable from chance"


@dataclass(frozen=True)
class Performance:
    """Figures of one strategy after costs.

    Attributes:
        name: of the strategy.
        n_periods: weeks traded.
        total_return: over all of them, as a ratio.
        annual_return: the constant yearly return that comes to the same.
        annual_volatility: sample deviation of weekly returns times the root of weeks a year; None for a single week.
        sharpe: yearly, without a risk-free rate; None where returns do not vary, without an interval below 100 weeks.
        deflated_sharpe: how surely the true ratio is above 0 after as many tries as there were.
        max_drawdown: deepest fall below an earlier close, as a ratio.
        hit_rate: share of weeks with a positive return.
        turnover: bought and sold in a week, as a share of the equity, on average.
        cost: sum over weeks of what costs took from the return.
        p_zero: sign-flip test of a mean return of zero; None for a strategy that is not judged.
        p_hold: the same of the difference from buy-and-hold.
        sentence: what may be said.
    """

    name: str
    n_periods: int
    total_return: float
    annual_return: float
    annual_volatility: float | None
    sharpe: Estimate | None
    deflated_sharpe: float | None
    max_drawdown: float
    hit_rate: float
    turnover: float
    cost: float
    p_zero: float | None = None
    p_hold: float | None = None
    sentence: str = ""


def performance(name: str, backtest: Backtest, *, confidence: float = 0.95) -> Performance:
    """The figures of one strategy, not compared with anything."""
    returns, periods = backtest.returns, backtest.periods
    a_year = periods_a_year(backtest)
    growth, sharpe = float(np.prod(1 + returns)), annual(sharpe_interval(returns, confidence), a_year)
    return Performance(
        name=name,
        n_periods=len(periods),
        total_return=growth - 1,
        annual_return=growth ** (a_year / len(periods)) - 1 if growth > 0 else -1.0,
        annual_volatility=float(returns.std(ddof=1)) * math.sqrt(a_year) if len(periods) > 1 else None,
        sharpe=None if math.isnan(sharpe.value) else sharpe,
        deflated_sharpe=None,
        max_drawdown=max_drawdown([value for _, value in backtest.curve]),
        hit_rate=float((returns > 0).mean()),
        turnover=float(np.mean([period.turnover for period in periods])),
        cost=float(sum(period.gross - period.net for period in periods)),
    )


def judged(
    strategies: Mapping[str, Backtest], hold: Backtest, *, n_trials: int, confidence: float = 0.95, seed: int = 0
) -> list[Performance]:
    """The strategies' figures with their tests; Holm's correction runs over all strategies and both tests.

    Args:
        strategies: backtests of forecasts.
        hold: buy-and-hold of the same stocks over the same weeks.
        n_trials: strategies that were tried, at least as many as are here.
        confidence: level of the intervals.
        seed: of the random flips where there are more than 13 weeks.
    """
    tests = [
        (difference_p(one.returns, seed=seed), difference_p(one.returns - hold.returns, seed=seed))
        for one in strategies.values()
    ]
    corrected = holm([p for pair in tests for p in pair])
    pairs = zip(corrected[::2], corrected[1::2], strict=True)
    variance = _trial_variance([one.returns for one in strategies.values()])
    found = []
    for (name, backtest), (p_zero, p_hold) in zip(strategies.items(), pairs, strict=True):
        sure = deflated_sharpe(backtest.returns, max(n_trials, len(strategies)), variance)
        figures = replace(
            performance(name, backtest, confidence=confidence),
            deflated_sharpe=None if math.isnan(sure) else sure,
            p_zero=p_zero,
            p_hold=p_hold,
        )
        found.append(replace(figures, sentence=_sentence(figures, backtest.returns - hold.returns)))
    return found


def difference_p(differences: Floats, *, seed: int = 0) -> float:
    """Two-sided p-value of a mean weekly difference, the sign of each week's being as likely either way."""
    column = np.asarray(differences, np.float64)[:, None]
    return swap_p(column, np.zeros_like(column), lambda totals: np.asarray(totals[..., 0]), seed=seed)


def periods_a_year(backtest: Backtest) -> float:
    """How many periods of this length a year has: about 52.18 for weeks."""
    days = [(period.exit - period.entry).days for period in backtest.periods]
    return DAYS_A_YEAR / float(np.mean(days))


def interval_note(n_periods: int) -> str:
    """Why a Sharpe ratio has no interval, or '' where it has one."""
    if n_periods >= MIN_PERIODS:
        return ""
    return (
        f"No interval of the Sharpe ratio is given: {n_periods} weeks are fewer than {MIN_PERIODS}, over which it "
        "would be a poor approximation, and wider than any honest difference between strategies."
    )


def _trial_variance(returns: Sequence[Floats]) -> float | None:
    """Variance of the tried strategies' Sharpe ratios per period; None where fewer than two have one.

    It is at least what luck alone gives: a few strategies that hold nearly the same say little of all that were tried.
    """
    ratios = [(ratio, len(one)) for one in returns if not math.isnan(ratio := sharpe_ratio(one))]
    if len(ratios) < 2:
        return None
    return max(float(np.var([ratio for ratio, _ in ratios], ddof=1)), 1 / (ratios[0][1] - 1))


def _sentence(figures: Performance, ahead: Floats) -> str:
    """What the tests allow one to say; a strategy that differs from zero only by being in the market says little."""
    assert figures.p_zero is not None and figures.p_hold is not None, "the caller has tested both"
    tests = [
        ("earning nothing", figures.p_zero, figures.total_return > 0),
        ("buy-and-hold", figures.p_hold, float(ahead.mean()) > 0),
    ]
    unclear = [f"{name} (p {p:.3f})" for name, p, _ in tests if p >= SIGNIFICANT]
    behind = [f"{name} (p {p:.3f})" for name, p, is_ahead in tests if p < SIGNIFICANT and not is_ahead]
    sure = figures.deflated_sharpe or 0.0
    said = [f"{NOT_DISTINGUISHABLE}, against {' and '.join(unclear)}"] if unclear else []
    said += [f"behind {' and '.join(behind)}"] if behind else []
    if not said and sure < LEAST_SURE:
        said = [f"{NOT_DISTINGUISHABLE}, given how many were tried (deflated Sharpe ratio {sure:.2f})"]
    said = said or ["ahead of earning nothing and of buy-and-hold over these weeks, after costs"]
    return f"{figures.name}: {'; '.join(said)}."
