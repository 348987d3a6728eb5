"""The Sharpe ratio's statistics against the papers, SciPy and simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from fintune.metrics.sharpe import (
    annual,
    deflated_sharpe,
    expected_best,
    max_drawdown,
    probability_above,
    sharpe_error,
    sharpe_interval,
    sharpe_ratio,
)


def drawn(n, mean=0.002, seed=0):
    return np.random.default_rng(seed).normal(mean, 0.02, n)


def test_by_hand():
    assert sharpe_ratio([0.01, 0.03]) == pytest.approx(0.02 / math.sqrt(0.0002))
    assert math.isnan(sharpe_ratio([0.01, 0.01, 0.01])) and math.isnan(sharpe_ratio([0.01]))
    assert max_drawdown([1.0, 1.2, 0.9, 1.1, 0.96, 1.3]) == pytest.approx(0.25)
    assert max_drawdown([1.0, 1.1, 1.2]) == 0 == max_drawdown([])


def test_lo_2002():
    """Lo's standard error of normal returns is sqrt((1 + SR^2 / 2) / T)."""
    assert sharpe_error(0.3, 1001) == pytest.approx(math.sqrt((1 + 0.3**2 / 2) / 1000))


def test_bailey_lopez_de_prado_2014():
    """The paper's example: a ratio of 2.5 a year, 1,250 days, 100 trials of variance 1/2, skewness -3, kurtosis 10."""
    best = expected_best(100, 0.5 / 250)
    assert best == pytest.approx(0.1132, abs=5e-5)
    assert probability_above(2.5 / math.sqrt(250), best, 1250, -3, 10) == pytest.approx(0.9004, abs=5e-5)


def test_deflated_sharpe_from_returns():
    returns = drawn(200)
    value = returns.mean() / returns.std(ddof=1)
    skewness, kurtosis = stats.skew(returns), stats.kurtosis(returns, fisher=False)
    error = math.sqrt((1 - skewness * value + (kurtosis - 1) / 4 * value**2) / 199)
    assert deflated_sharpe(returns, 1) == pytest.approx(stats.norm.cdf(value / error))
    tried = [deflated_sharpe(returns, n) for n in (1, 2, 10, 100)]
    assert tried == sorted(tried, reverse=True)
    assert math.isnan(deflated_sharpe([0.0, 0.0], 3))


def test_the_best_of_many_worthless_strategies():
    best = np.random.default_rng(1).normal(0, 0.1, (4000, 50)).max(1).mean()
    assert expected_best(50, 0.1**2) == pytest.approx(best, rel=0.02)


def test_no_interval_below_100_periods():
    short, long = sharpe_interval(drawn(99)), sharpe_interval(drawn(100))
    assert (short.low, short.high) == (None, None)
    assert long.low < long.value < long.high
    assert sharpe_interval(drawn(150)).high - sharpe_interval(drawn(150), 0.8).high > 0


def test_the_interval_covers_the_truth():
    covered = [one.low <= 0.1 <= one.high for one in (sharpe_interval(drawn(150, seed=seed)) for seed in range(1000))]
    assert stats.binomtest(sum(covered), len(covered), 0.95).pvalue > 0.001


def test_annual():
    weekly = sharpe_interval(drawn(120))
    yearly = annual(weekly, 52)
    assert yearly.value / weekly.value == yearly.low / weekly.low == pytest.approx(math.sqrt(52))
    assert annual(sharpe_interval(drawn(10)), 52).low is None
