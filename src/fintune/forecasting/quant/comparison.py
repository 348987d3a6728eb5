"""Scores of several models on the same ticker-days, with intervals and tests by day, and a verdict in words.

Enters: ``Targets`` and each model's ``Forecasts``. Leaves: ``QuantEvaluation``. All tickers of a day move together: a
day is one group. The first model is compared with every other one, p-values corrected by Holm over those.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fintune.forecasting.quant.forecasts import Forecasts, Targets
from fintune.metrics.binned import coverage, crps, log_scores, pit_histogram
from fintune.metrics.classification import Floats
from fintune.metrics.families import group_sums
from fintune.metrics.intervals import estimate, replicate
from fintune.metrics.multiple import holm
from fintune.metrics.paired import swap_p
from fintune.schema.results import SIGNIFICANT, Estimate

SCORES = ("log_score", "crps", "coverage_50", "coverage_90")
Verdict = Literal["better", "worse", "not told apart"]
_BOUNDS = {"log_score": (-np.inf, 0.0), "crps": (0.0, np.inf), "coverage_50": (0.0, 1.0), "coverage_90": (0.0, 1.0)}
_PER_CENT = 100
_RESAMPLES = 2000


@dataclass(frozen=True)
class ModelScores:
    """One model's scores.

    Attributes:
        name: of the model.
        metrics: ``log_score`` in nats a ticker-day (more is better), ``crps`` in per cent (less is better), shares of
            outcomes in the central 50 % and 90 % intervals.
        pit: shares of outcomes in ten equal parts of their distributions.
        chosen: what was chosen on validation days.
        counts: what went wrong.
    """

    name: str
    metrics: Mapping[str, Estimate]
    pit: tuple[float, ...]
    chosen: str
    counts: Mapping[str, float]


@dataclass(frozen=True)
class Difference:
    """The first model minus another in one score on the same ticker-days.

    Attributes:
        reference: the other model.
        score: ``log_score`` or ``crps``.
        difference: with its interval by day.
        p: two-sided, days swapped at random.
        holm_p: corrected over all other models.
        week_holm_p: the same with whole weeks swapped, which allows for days that resemble the day before.
        persistence: correlation of a day's mean difference with the day before's; near 0, days are independent groups.
        verdict: whether the first model is better: only where the interval excludes 0 and both tests say so.
    """

    reference: str
    score: str
    difference: Estimate
    p: float
    holm_p: float
    week_holm_p: float
    persistence: float
    verdict: Verdict


@dataclass(frozen=True)
class QuantEvaluation:
    """All models on the same ticker-days of one split."""

    split: str
    n: int
    n_days: int
    n_tickers: int
    first_day: str
    last_day: str
    n_bins: int
    confidence: float
    scores: tuple[ModelScores, ...]
    differences: tuple[Difference, ...]


def evaluate_forecasts(
    targets: Targets, forecasts: Sequence[Forecasts], *, split: str, confidence: float = 0.95, seed: int = 0
) -> QuantEvaluation:
    """Scores every model and compares the first with the others.

    Args:
        targets: what was forecast.
        forecasts: of each model, the one that is asked about first.
        split: what the targets are called.
        confidence: level of the intervals.
        seed: of resampling.
    """
    days = targets.days.dates[targets.rows]
    values = [_values(targets, one) for one in forecasts]
    sums = [group_sums(one, targets.day) for one in values]
    weekly = [group_sums(one, targets.week) for one in values]
    return QuantEvaluation(
        split=split,
        n=len(targets.rows),
        n_days=len(sums[0]),
        n_tickers=len(np.unique(targets.days.ticker[targets.rows])),
        first_day=str(days.min()),
        last_day=str(days.max()),
        n_bins=targets.n_bins,
        confidence=confidence,
        scores=tuple(
            ModelScores(
                one.name,
                _estimates(by_day, confidence, seed),
                tuple(pit_histogram(one.probabilities, targets.code).tolist()),
                one.chosen,
                one.counts,
            )
            for one, by_day in zip(forecasts, sums, strict=True)
        ),
        differences=tuple(
            difference
            for score in SCORES[:2]
            for difference in _differences([one.name for one in forecasts], sums, weekly, score, confidence, seed)
        ),
    )


def _values(targets: Targets, forecasts: Forecasts) -> Floats:
    """(N, 5) the scores of each forecast, and 1, by which their sums are divided."""
    chances, code = forecasts.probabilities, targets.code
    columns = (
        log_scores(chances, code),
        crps(chances, _PER_CENT * targets.log_edges, _PER_CENT * targets.change),
        coverage(chances, code, 0.5),
        coverage(chances, code, 0.9),
        np.ones(len(code)),
    )
    return np.stack(columns, axis=1)


def _mean(place: int) -> Callable[[Floats], Floats]:
    return lambda totals: totals[..., place] / totals[..., -1]


def _estimates(sums: Floats, confidence: float, seed: int) -> dict[str, Estimate]:
    replicates = replicate(sums, n_resamples=_RESAMPLES, seed=seed)
    return {
        name: estimate(replicates, _mean(place), confidence=confidence, bounds=_BOUNDS[name])
        for place, name in enumerate(SCORES)
    }


def _differences(
    names: Sequence[str],
    sums: Sequence[Floats],
    weekly: Sequence[Floats],
    score: str,
    confidence: float,
    seed: int,
) -> list[Difference]:
    place = SCORES.index(score)
    by_day, by_week = (
        [swap_p(grouped[0], theirs, _mean(place), seed=seed) for theirs in grouped[1:]] for grouped in (sums, weekly)
    )
    found = []
    for name, theirs, p, holm_p, week_p in zip(names[1:], sums[1:], by_day, holm(by_day), holm(by_week), strict=True):
        gaps = np.stack([sums[0][:, place] - theirs[:, place], theirs[:, -1]], axis=1)
        replicates = replicate(gaps, n_resamples=_RESAMPLES, seed=seed)
        gap = estimate(replicates, _mean(0), confidence=confidence, bounds=(-np.inf, np.inf))
        verdict = _verdict(gap, max(holm_p, week_p), less_is_better=score == "crps")
        found.append(Difference(name, score, gap, p, holm_p, week_p, _persistence(gaps), verdict))
    return found


def _verdict(gap: Estimate, holm_p: float, *, less_is_better: bool) -> Verdict:
    if gap.low is None or gap.high is None or gap.low <= 0 <= gap.high or holm_p >= SIGNIFICANT:
        return "not told apart"
    return "better" if (gap.value > 0) != less_is_better else "worse"


def _persistence(gaps: Floats) -> float:
    """Correlation of the daily mean differences with those of the day before; 0 where there are too few."""
    daily = gaps[:, 0] / gaps[:, 1]
    apart = daily - daily.mean()
    total = float((apart**2).sum())
    return float((apart[1:] * apart[:-1]).sum() / total) if total > 0 else 0.0
