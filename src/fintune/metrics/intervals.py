"""Confidence intervals that respect groups: the documents of one page, dialogue or week move together.

Enters: sums for each group (``features_GF``) and a statistic of their total. Leaves: ``Estimate``.
From 30 groups on, whole groups are resampled with replacement and the interval is the percentile one. Below, a
bootstrap is too narrow; the interval is then Student's t over the groups' jackknife values, which for a mean over
equally large groups is the ordinary t interval. A statistic that no resample changes has no interval.

Shape legend: ``G`` groups, ``F`` features, ``R`` replicates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fintune.metrics.classification import Floats
from fintune.schema.results import Estimate

MIN_BOOTSTRAP_GROUPS = 30
Statistic = Callable[[Floats], Floats]
_DRAWS_AT_ONCE = 2_000_000
_SPREAD_FLOOR = 1e-12


@dataclass(frozen=True)
class Replicates:
    """Total features of the sample, ``(F,)``, and of its replicates, ``(R, F)``, with the way they were made."""

    total_F: Floats
    sums_RF: Floats
    method: Literal["bootstrap", "jackknife", "none"]


def replicate(features_GF: Floats, *, n_resamples: int, seed: int) -> Replicates:
    """Bootstrap replicates from 30 groups on, leave-one-group-out replicates below, none for a single group."""
    total_F = features_GF.sum(0)
    if len(features_GF) < 2:
        return Replicates(total_F, features_GF[:0], "none")
    if len(features_GF) < MIN_BOOTSTRAP_GROUPS:
        return Replicates(total_F, total_F - features_GF, "jackknife")
    return Replicates(total_F, resampled_sums(features_GF, n_resamples=n_resamples, seed=seed), "bootstrap")


def resampled_sums(features_GF: Floats, *, n_resamples: int, seed: int) -> Floats:
    """Feature totals ``(R, F)`` of samples of whole groups drawn with replacement."""
    n_groups = len(features_GF)
    rng = np.random.default_rng(seed)
    rows = max(1, _DRAWS_AT_ONCE // n_groups)
    sums_RF = np.empty((n_resamples, features_GF.shape[1]))
    for start in range(0, n_resamples, rows):
        chunk = sums_RF[start : start + rows]
        draws = rng.integers(0, n_groups, size=(len(chunk), n_groups))
        draws += np.arange(len(chunk))[:, None] * n_groups
        times_drawn = np.bincount(draws.ravel(), minlength=draws.size).reshape(draws.shape)
        chunk[:] = times_drawn.astype(np.float64) @ features_GF
    return sums_RF


def estimate(
    replicates: Replicates,
    statistic: Statistic,
    *,
    confidence: float,
    bounds: tuple[float, float],
    basic: bool = False,
) -> Estimate:
    """The statistic with its interval, clipped to ``bounds`` and always containing the value.

    Args:
        replicates: what ``replicate`` made of the groups.
        statistic: maps ``(..., F)`` feature totals to ``(...)`` values.
        confidence: level of the interval, such as 0.95.
        bounds: the statistic's range.
        basic: use the basic (reverse percentile) bootstrap. Resampling inflates a statistic that is biased upwards,
            such as the calibration error, once more, so its percentile interval can miss both value and truth;
            the basic interval subtracts that bias.
    """
    value = float(statistic(replicates.total_F))
    if replicates.method == "none":
        return Estimate(value=value)
    values_R = statistic(replicates.sums_RF)
    if np.ptp(values_R) < _SPREAD_FLOOR:
        return Estimate(value=value)
    if replicates.method == "jackknife":
        half_width = t_quantile(confidence, len(values_R) - 1) * jackknife_error(values_R)
        low, high = value - half_width, value + half_width
    else:
        tail = (1 - confidence) / 2
        low, high = (float(q) for q in np.quantile(values_R, [tail, 1 - tail]))
        if basic:
            low, high = 2 * value - high, 2 * value - low
    return Estimate(value=value, low=min(value, max(low, bounds[0])), high=max(value, min(high, bounds[1])))


def jackknife_error(left_out_G: Floats) -> float:
    """Standard error from leave-one-group-out values."""
    n_groups = len(left_out_G)
    return float(math.sqrt((n_groups - 1) / n_groups * ((left_out_G - left_out_G.mean()) ** 2).sum()))


def t_quantile(confidence: float, degrees: int) -> float:
    """The half width of a two-sided Student t interval, in standard errors."""
    from scipy.special import stdtrit  # type: ignore[import-untyped, unused-ignore]

    return float(stdtrit(degrees, (1 + confidence) / 2))


def unanimous_interval(value: float, n_groups: int, *, confidence: float) -> Estimate:
    """The exact (Clopper-Pearson) interval over groups of an accuracy of 0 or 1, where resampling shows no spread."""
    bound = ((1 - confidence) / 2) ** (1 / n_groups)
    return Estimate(value=1.0, low=bound, high=1.0) if value >= 1 else Estimate(value=0.0, low=0.0, high=1 - bound)
