"""Return for risk, and how far it can be told from luck: Sharpe ratio, its interval, and the deflated Sharpe ratio.

Enters: returns of equal periods as ratios. Leaves: numbers per period; ``annual`` scales them. Sources: Lo, "The
Statistics of Sharpe Ratios" (2002), with Mertens' (2002) terms for skewness and kurtosis; Bailey and Lopez de Prado,
"The Deflated Sharpe Ratio" (2014).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from fintune.metrics.classification import Floats
from fintune.schema.results import Estimate

MIN_PERIODS = 100
"""Fewer periods give no interval. The normal approximation is poor there, and it would say next to nothing: a weekly
Sharpe ratio over 52 weeks is known to plus or minus 2 a year, wider than any honest difference between strategies."""
_NORMAL = NormalDist()
_EULER = 0.5772156649015329
_NO_SPREAD = 1e-12


def sharpe_ratio(returns: Sequence[float] | Floats) -> float:
    """Mean over sample deviation, per period, without a risk-free rate; NaN where the returns do not vary."""
    values = np.asarray(returns, np.float64)
    if len(values) < 2 or np.ptp(values) < _NO_SPREAD:
        return math.nan
    return float(values.mean() / values.std(ddof=1))


def sharpe_error(sharpe: float, n: int, skewness: float = 0.0, kurtosis: float = 3.0) -> float:
    """Standard error of a Sharpe ratio over ``n`` independent periods; a normal distribution has kurtosis 3."""
    variance = 1 - skewness * sharpe + (kurtosis - 1) / 4 * sharpe**2
    return math.sqrt(max(variance, 0.0) / (n - 1))


def sharpe_interval(returns: Sequence[float] | Floats, confidence: float = 0.95) -> Estimate:
    """The Sharpe ratio per period with its interval; without one below ``MIN_PERIODS`` periods.

    The interval takes the periods as independent of each other, as weekly returns nearly are.
    """
    value = sharpe_ratio(returns)
    if math.isnan(value) or len(returns) < MIN_PERIODS:
        return Estimate(value=value)
    reach = _NORMAL.inv_cdf((1 + confidence) / 2) * sharpe_error(value, len(returns), *_shape(returns))
    return Estimate(value=value, low=value - reach, high=value + reach)


def annual(sharpe: Estimate, periods_per_year: float) -> Estimate:
    """A Sharpe ratio per period, per year."""
    scale = math.sqrt(periods_per_year)
    low, high = (None if bound is None else bound * scale for bound in (sharpe.low, sharpe.high))
    return Estimate(value=sharpe.value * scale, low=low, high=high)


def probability_above(sharpe: float, benchmark: float, n: int, skewness: float = 0.0, kurtosis: float = 3.0) -> float:
    """The probabilistic Sharpe ratio: how surely the true ratio exceeds ``benchmark``; all per period."""
    error = sharpe_error(sharpe, n, skewness, kurtosis)
    return _NORMAL.cdf((sharpe - benchmark) / error) if error else float(sharpe > benchmark)


def expected_best(n_trials: int, variance: float) -> float:
    """The Sharpe ratio that the best of ``n_trials`` worthless strategies is expected to show.

    Args:
        n_trials: strategies that were tried, those thrown away included.
        variance: of their Sharpe ratios, per period.
    """
    if n_trials < 2:
        return 0.0
    first, second = (_NORMAL.inv_cdf(1 - 1 / (n_trials * scale)) for scale in (1.0, math.e))
    return math.sqrt(variance) * ((1 - _EULER) * first + _EULER * second)


def deflated_sharpe(returns: Sequence[float] | Floats, n_trials: int, trial_variance: float | None = None) -> float:
    """How surely the true Sharpe ratio is above 0 after ``n_trials`` tries; NaN where the returns do not vary.

    Args:
        returns: of the chosen strategy.
        n_trials: strategies tried to find it.
        trial_variance: variance of the tried Sharpe ratios per period; None takes what luck alone gives, 1 / (n - 1).
    """
    value = sharpe_ratio(returns)
    if math.isnan(value):
        return math.nan
    variance = 1 / (len(returns) - 1) if trial_variance is None else trial_variance
    return probability_above(value, expected_best(n_trials, variance), len(returns), *_shape(returns))


def max_drawdown(equity: Sequence[float] | Floats) -> float:
    """The deepest fall of an equity curve below its highest point until then, as a ratio: 0.2 for a loss of 20%."""
    values = np.asarray(equity, np.float64)
    return float(np.max(1 - values / np.maximum.accumulate(values))) if len(values) else 0.0


def _shape(returns: Sequence[float] | Floats) -> tuple[float, float]:
    """Skewness and kurtosis (3 for the normal distribution)."""
    values = np.asarray(returns, np.float64)
    standard = (values - values.mean()) / values.std()
    return float((standard**3).mean()), float((standard**4).mean())
