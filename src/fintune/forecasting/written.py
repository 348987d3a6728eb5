"""Written forecasts as texts: how they are made, how close to a reference, and what FinGPT's own rules make of them.

Enters: signals that carry the answer they were read from. Leaves: means over answers, with intervals over weeks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fintune.forecasting.signals import Signal
from fintune.metrics.forecast import Forecast, ForecastScores, mean_over_weeks, score_forecasts
from fintune.metrics.forecast_answers import parse_robust, parse_strict
from fintune.metrics.forecast_quality import SHARES, quality
from fintune.metrics.forecast_text import fingpt_scores, section_rouge
from fintune.schema.results import Estimate


@dataclass(frozen=True)
class WrittenScores:
    """One system's written answers.

    Attributes:
        n: answers.
        measures: execution, depth and clarity (``fintune.metrics.forecast_quality.quality``) and ROUGE of each section
            of a reference, where there is one.
        strict: direction and size as FinGPT's parser reads them; None where no outcome is known.
        fingpt: FinGPT's published figures, made in its way from answers and references; empty without references.
    """

    n: int
    measures: Mapping[str, Estimate]
    strict: ForecastScores | None
    fingpt: Mapping[str, float]


def written_scores(
    signals: Sequence[Signal], outcomes: Sequence[Forecast], *, confidence: float = 0.95, seed: int = 0
) -> WrittenScores | None:
    """The scores of a system's written answers; None where it wrote none.

    Args:
        signals: of one system.
        outcomes: its forecasts beside the known returns.
        confidence: level of the intervals.
        seed: of resampling.
    """
    told = [(one, one.output) for one in signals if one.output is not None]
    if not told:
        return None
    found = [(one.made.isoformat(), _measures(one, output)) for one, output in told]
    names = dict.fromkeys(name for _, values in found for name in values)
    referenced = [(output, one.reference) for one, output in told if parse_robust(one.reference).positives]
    return WrittenScores(
        n=len(told),
        measures={name: _mean(name, found, confidence, seed) for name in names},
        strict=_strict(told, outcomes, confidence, seed),
        fingpt=fingpt_scores([output for output, _ in referenced], [reference for _, reference in referenced]),
    )


def _measures(signal: Signal, output: str) -> dict[str, float]:
    reference = parse_robust(signal.reference)
    rouge = section_rouge(parse_robust(output), reference) if reference.positives else {}
    return {**quality(output, signal.prompt), **rouge}


def _mean(name: str, found: Sequence[tuple[str, Mapping[str, float]]], confidence: float, seed: int) -> Estimate:
    rows = [(week, values[name]) for week, values in found if name in values]
    weeks, values = [week for week, _ in rows], [value for _, value in rows]
    high = 1.0 if name in SHARES or "_rouge" in name else math.inf
    return mean_over_weeks(values, weeks, bounds=(0.0, high), confidence=confidence, seed=seed)


def _strict(
    told: Sequence[tuple[Signal, str]], outcomes: Sequence[Forecast], confidence: float, seed: int
) -> ForecastScores | None:
    changes = {(one.symbol, one.week): one.change for one in outcomes}
    places = [(output, (one.symbol, one.made.isoformat())) for one, output in told]
    rows = [
        Forecast.of(parse_strict(output), symbol=place[0], week=place[1], change=changes[place])
        for output, place in places
        if place in changes
    ]
    return score_forecasts(rows, confidence=confidence, seed=seed) if rows else None
