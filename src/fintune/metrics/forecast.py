"""How good weekly forecasts are: coverage, direction and size, with intervals and paired tests over weeks.

Enters: ``Forecast`` of one system, or of several on the same stocks and weeks. Leaves: ``ForecastScores`` and
``PairedDifference``. All stocks of a week move together, so a week is one group; below 30 weeks the intervals are
Student's t and the tests flip signs (``fintune.metrics.intervals``, ``fintune.metrics.paired``).

Shape legend: ``N`` forecasts, ``G`` weeks, ``F`` features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fintune.metrics import classification
from fintune.metrics.classification import Floats, Ints, Tally
from fintune.metrics.families import Measure, group_sums
from fintune.metrics.forecast_answers import ForecastAnswer
from fintune.metrics.intervals import estimate, replicate
from fintune.metrics.multiple import holm
from fintune.metrics.paired import sign_flip_p, swap_p
from fintune.metrics.return_bins import bin_of, middle_of, sign_of
from fintune.schema.errors import DataError
from fintune.schema.results import Estimate


@dataclass(frozen=True)
class Forecast:
    """One forecast beside what happened.

    Attributes:
        symbol: the stock.
        week: names the week; what statistics cluster by.
        change: the real return of the week as a ratio, finite.
        direction: 1 up, -1 down, 0 no change; None where nothing was forecast.
        magnitude: expected change in signed percent points, None where none was given.
        p_up: probability of a rise, None where there is none.
    """

    symbol: str
    week: str
    change: float
    direction: int | None = None
    magnitude: float | None = None
    p_up: float | None = None

    @classmethod
    def of(cls, answer: ForecastAnswer, *, symbol: str, week: str, change: float) -> Forecast:
        """What a written answer forecasts."""
        return cls(symbol, week, change, answer.direction, answer.magnitude)


@dataclass(frozen=True)
class ForecastScores:
    """Scores of one system; ``missing`` of the ``n`` forecasts say nothing."""

    n: int
    n_weeks: int
    missing: int
    metrics: Mapping[str, Estimate]


@dataclass(frozen=True)
class PairedDifference:
    """System minus reference in one score on the same forecasts; ``holm_p`` is corrected over all that were made."""

    system: str
    reference: str
    metric: str
    n: int
    n_weeks: int
    difference: Estimate
    p: float
    holm_p: float


def score_forecasts(
    forecasts: Sequence[Forecast], *, confidence: float = 0.95, n_resamples: int = 2000, seed: int = 0
) -> ForecastScores:
    """The scores of one system, with intervals over weeks.

    - ``coverage``: share of forecasts with a direction ("no change" is one).
    - ``direction_accuracy``: share whose direction is right, over all; a missing forecast is wrong, and so is "no
      change". A return of exactly 0 counts as a rise, as the bins have it.
    - ``direction_accuracy_answered``: the same over those with a direction only.
    - ``balanced_accuracy``: mean of the shares right among rises and among falls; 0.5 for a constant answer.
    - ``mcc``: Matthews correlation, missing and "no change" being a class of their own.
    - ``mse``, ``mae``: squared and absolute error of the magnitude in percent points against the real return, over
      forecasts that give one; ``mse_bin``, ``mae_bin`` the same against the middle of the real return's bin, which is
      what FinGPT compares with. ``magnitude_coverage`` is the share that gives one.
    - ``mse_all``, ``mae_all``: over all forecasts, one without a magnitude counting as 0, no change.

    Raises:
        DataError: there are no forecasts, one occurs twice, or a return is not finite.
    """
    week_N, features_NF = _features(forecasts)
    shared = replicate(group_sums(features_NF, week_N), n_resamples=n_resamples, seed=seed)
    metrics = {
        name: estimate(shared, measure.score, confidence=confidence, bounds=measure.bounds)
        for name, measure in MEASURES.items()
        if name not in _OF_MAGNITUDES or any(one.magnitude is not None for one in forecasts)
    }
    missing = sum(one.direction is None for one in forecasts)
    return ForecastScores(len(forecasts), int(week_N.max()) + 1, missing, metrics)


def compare_forecasts(
    systems: Mapping[str, Sequence[Forecast]],
    references: Mapping[str, Sequence[Forecast]],
    *,
    confidence: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> list[PairedDifference]:
    """Each system against each reference, in direction accuracy and in ``mse_all``; Holm's correction over all of them.

    A score that no forecast of the reference, or of the system, gives is left out: zero return has no direction. The
    tests flip whole weeks: exactly for accuracy, otherwise all ways or 9,999 random ones.

    Raises:
        DataError: two of them are not about the same stocks and weeks.
    """
    found = [
        _difference(metric, ours, theirs, (name, other), confidence, n_resamples, seed)
        for name, ours in systems.items()
        for other, theirs in references.items()
        for metric in ("direction_accuracy", "mse_all")
        if _gives(metric, ours) and _gives(metric, theirs)
    ]
    corrected = holm([one.p for one in found])
    return [replace(one, holm_p=p) for one, p in zip(found, corrected, strict=True)]


def mean_over_weeks(
    values: Sequence[float],
    weeks: Sequence[str],
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
    confidence: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """The mean of any per-forecast score, with its interval over weeks; NaN without values."""
    if not values:
        return Estimate(value=math.nan)
    features_NF = np.stack([np.asarray(values, np.float64), np.ones(len(values))], axis=1)
    shared = replicate(group_sums(features_NF, number_weeks(weeks)), n_resamples=n_resamples, seed=seed)
    return estimate(shared, lambda total: total[..., 0] / total[..., 1], confidence=confidence, bounds=bounds)


def number_weeks(weeks: Sequence[str]) -> Ints:
    """The weeks as numbers from 0, in order of appearance."""
    codes: dict[str, int] = {}
    return np.array([codes.setdefault(week, len(codes)) for week in weeks], dtype=np.int64)


_SIDES = ("up", "down")
_N_TALLY = 6  # hits, targets and predictions of up and down
_COLUMNS = (
    *("n", "answered", "with_magnitude", "right"),
    *("squared", "absolute", "squared_bin", "absolute_bin", "squared_all", "absolute_all"),
)
_AT = {name: _N_TALLY + number for number, name in enumerate(_COLUMNS)}


def _features(forecasts: Sequence[Forecast]) -> tuple[Ints, Floats]:
    """Each forecast's week and what it adds to the totals, ``(N, F)``."""
    if not forecasts:
        raise DataError("There are no forecasts to score.", "Check the split and the limit of the evaluation.")
    if len({(one.symbol, one.week) for one in forecasts}) < len(forecasts):
        raise DataError("A stock has two forecasts for one week.", "Score one system at a time.")
    if odd := next((one for one in forecasts if not math.isfinite(one.change)), None):
        raise DataError(f"The return of {odd.symbol} in {odd.week} is {odd.change}.", "Leave that week out.")
    real = [_SIDES[0] if sign_of(bin_of(one.change)) > 0 else _SIDES[1] for one in forecasts]
    said = [{1: _SIDES[0], -1: _SIDES[1]}.get(one.direction or 0) for one in forecasts]
    eye = np.eye(3, 2)
    real_NK, said_NK = eye[classification.encode(real, _SIDES)], eye[classification.encode(said, _SIDES)]
    parts = [real_NK * said_NK, real_NK, said_NK, np.array([_row(one) for one in forecasts])]
    return number_weeks([one.week for one in forecasts]), np.concatenate(parts, axis=1)


def _row(one: Forecast) -> list[float]:
    change, sign = 100 * one.change, sign_of(bin_of(one.change))
    errors = [0.0] * 4
    if one.magnitude is not None:
        gap, gap_bin = one.magnitude - change, one.magnitude - 100 * middle_of(bin_of(one.change))
        errors = [gap**2, abs(gap), gap_bin**2, abs(gap_bin)]
    whole = (one.magnitude or 0.0) - change
    counts = [1.0, float(one.direction is not None), float(one.magnitude is not None), float(one.direction == sign)]
    return [*counts, *errors, whole**2, abs(whole)]


def _ratio(top: str, bottom: str, high: float = 1.0) -> Measure:
    def score(totals: Floats) -> Floats:
        return np.asarray(totals[..., _AT[top]] / np.maximum(totals[..., _AT[bottom]], 1.0))

    return Measure(score, (0.0, high))


def _tally(totals: Floats) -> Tally:
    return Tally(totals[..., 0:2], totals[..., 2:4], totals[..., 4:6])


def _balanced(totals: Floats) -> Floats:
    """Mean recall of the sides that occurred."""
    counts = _tally(totals)
    recall = counts.hits / np.maximum(counts.targets, 1.0)
    return np.asarray(recall.sum(-1) / np.maximum((counts.targets > 0).sum(-1), 1))


MEASURES: Mapping[str, Measure] = {
    "coverage": _ratio("answered", "n"),
    "direction_accuracy": _ratio("right", "n"),
    "direction_accuracy_answered": _ratio("right", "answered"),
    "balanced_accuracy": Measure(_balanced),
    "mcc": Measure(lambda totals: classification.mcc(_tally(totals)), (-1.0, 1.0)),
    "magnitude_coverage": _ratio("with_magnitude", "n"),
    "mse": _ratio("squared", "with_magnitude", math.inf),
    "mae": _ratio("absolute", "with_magnitude", math.inf),
    "mse_bin": _ratio("squared_bin", "with_magnitude", math.inf),
    "mae_bin": _ratio("absolute_bin", "with_magnitude", math.inf),
    "mse_all": _ratio("squared_all", "n", math.inf),
    "mae_all": _ratio("absolute_all", "n", math.inf),
}
"""Scores of feature totals, by name."""
_OF_MAGNITUDES = frozenset({"mse", "mae", "mse_bin", "mae_bin", "mse_all", "mae_all"})


def _gives(metric: str, forecasts: Sequence[Forecast]) -> bool:
    if metric in _OF_MAGNITUDES:
        return any(one.magnitude is not None for one in forecasts)
    return any(one.direction for one in forecasts)


def _difference(
    metric: str,
    ours: Sequence[Forecast],
    theirs: Sequence[Forecast],
    names: tuple[str, str],
    confidence: float,
    n_resamples: int,
    seed: int,
) -> PairedDifference:
    by_place = {(one.symbol, one.week): one for one in theirs}
    if by_place.keys() != {(one.symbol, one.week) for one in ours}:
        raise DataError(
            f"{names[0]} and {names[1]} forecast different stocks and weeks.", "Compare them on the same ones."
        )
    week_N, ours_NF = _features(ours)
    _, theirs_NF = _features([by_place[one.symbol, one.week] for one in ours])
    ours_GF, theirs_GF = group_sums(ours_NF, week_N), group_sums(theirs_NF, week_N)
    score, high = MEASURES[metric].score, MEASURES[metric].bounds[1]
    width = ours_GF.shape[1]
    shared = replicate(np.concatenate([ours_GF, theirs_GF], axis=1), n_resamples=n_resamples, seed=seed)
    is_exact = metric == "direction_accuracy"
    gained_G = (ours_GF - theirs_GF)[:, _AT["right"]]
    p = sign_flip_p(gained_G) if is_exact else swap_p(ours_GF, theirs_GF, score, seed=seed)
    difference = estimate(
        shared,
        lambda total: np.asarray(score(total[..., :width]) - score(total[..., width:])),
        confidence=confidence,
        bounds=(-high, high),
    )
    return PairedDifference(*names, metric, len(ours), len(ours_GF), difference, p, p)
