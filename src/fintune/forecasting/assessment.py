"""All that prices say about forecasts: scores of the forecasts beside baselines, and what trading on them earned.

Enters: signals of several systems, and prices. Leaves: ``Assessment``, which ``backtest.json`` holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from fintune.forecasting.backtest import Backtest, Costs, Rule, Slot, Weights, forecast_weights, make_plan, run
from fintune.forecasting.outcomes import outcomes_of
from fintune.forecasting.performance import Performance, interval_note, judged, performance
from fintune.forecasting.prices import Prices
from fintune.forecasting.signals import Signal
from fintune.forecasting.written import WrittenScores, written_scores
from fintune.metrics.forecast import Forecast, ForecastScores, PairedDifference, compare_forecasts, score_forecasts
from fintune.metrics.forecast_calibration import UpCalibration, up_calibration
from fintune.schema.errors import DataError, RunError
from fintune.schema.run_directory import write_text_atomically

HOLD, EQUAL = "buy_and_hold", "equal_weight"


@dataclass(frozen=True)
class Settings:
    """How forecasts are traded and judged.

    Attributes:
        rule: positions by the sign of a forecast, or by its magnitude.
        costs: of trading.
        long_only: no short positions; a forecast fall is cash.
        n_trials: strategies tried to arrive at these, those thrown away included; the systems at hand if fewer.
        confidence: level of the intervals.
        seed: of resampling and random flips.
    """

    rule: Rule = "sign"
    costs: Costs = field(default_factory=Costs)
    long_only: bool = False
    n_trials: int = 1
    confidence: float = 0.95
    seed: int = 0


@dataclass(frozen=True)
class Assessment:
    """Scores and backtests of all systems over the same weeks.

    Attributes:
        settings: what was asked for.
        scores: of each system and baseline.
        comparisons: each system against each baseline, Holm-corrected.
        calibration: of systems that give a probability of a rise.
        written: of systems that answer in words, the answers as texts.
        strategies: performance of trading on each system's forecasts.
        benchmarks: buy-and-hold and equal weight of the same stocks over the same weeks.
        curves: equity at daily closes, by strategy and benchmark.
        counts: what was left out, and how much there was.
        notes: what a reader has to know.
    """

    settings: Settings
    scores: Mapping[str, ForecastScores]
    comparisons: Sequence[PairedDifference]
    calibration: Mapping[str, UpCalibration]
    written: Mapping[str, WrittenScores]
    strategies: Sequence[Performance]
    benchmarks: Sequence[Performance]
    curves: Mapping[str, Sequence[tuple[date, float]]]
    counts: Mapping[str, int]
    notes: Sequence[str]


def assess(systems: Mapping[str, Sequence[Signal]], prices: Prices, settings: Settings | None = None) -> Assessment:
    """Scores and trades the forecasts of each system.

    Raises:
        DataError: the prices cover none of the weeks, or weeks overlap.
    """
    settings = settings or Settings()
    _require_single(systems)
    prices = prices.only({one.symbol for signals in systems.values() for one in signals})
    outcomes = outcomes_of(systems, prices)
    everything = {(one.made, one.symbol): one for signals in systems.values() for one in signals}
    plan = make_plan(list(everything.values()), prices)
    traded = {
        name: run(
            plan,
            prices,
            forecast_weights(signals, prices, settings.rule, long_only=settings.long_only),
            settings.costs,
        )
        for name, signals in systems.items()
    }
    beside = {
        HOLD: run(plan, prices, _held(list(everything.values()), plan.slots[0], prices), settings.costs),
        EQUAL: run(plan, prices, _all_up(list(everything.values()), prices), settings.costs),
    }
    n_trials, sure = max(settings.n_trials, len(systems)), settings.confidence
    backtests: dict[str, Backtest] = {**traded, **beside}
    return Assessment(
        settings=settings,
        scores={
            name: score_forecasts(rows, confidence=sure, seed=settings.seed)
            for name, rows in {**outcomes.systems, **outcomes.baselines}.items()
        },
        comparisons=compare_forecasts(outcomes.systems, outcomes.baselines, confidence=sure, seed=settings.seed),
        calibration=_calibrations(outcomes.systems, settings),
        written=_written(systems, outcomes.systems, settings),
        strategies=judged(traded, beside[HOLD], n_trials=n_trials, confidence=sure, seed=settings.seed),
        benchmarks=[performance(name, one, confidence=sure) for name, one in beside.items()],
        curves={name: one.curve for name, one in backtests.items()},
        counts={
            "stock-weeks forecast": len(everything),
            "of these not forecast by every system": _not_by_all(systems),
            "of these without a known return": outcomes.unknown,
            "of these without a price at the entry": plan.unpriced,
            "forecast dates that the prices do not cover": plan.unfinished,
            "weeks traded": len(plan.slots),
            "weeks that baselines learnt from": outcomes.training_weeks,
            "price rows dropped": prices.dropped,
            "strategies tried": n_trials,
        },
        notes=_notes(prices, len(plan.slots)),
    )


def write_assessment(path: Path, assessment: Assessment) -> None:
    """Writes it as one JSON document, atomically."""
    write_text_atomically(path, _FORM.dump_json(assessment, indent=1).decode() + "\n")


def read_assessment(path: Path) -> Assessment:
    """What ``write_assessment`` wrote.

    Raises:
        RunError: the file is damaged.
    """
    try:
        return _FORM.validate_json(path.read_bytes())
    except ValidationError as error:
        raise RunError(f"{path} is damaged.", "Run `fintune backtest` again.") from error


def _require_single(systems: Mapping[str, Sequence[Signal]]) -> None:
    for name, signals in systems.items():
        places = Counter((one.symbol, one.made) for one in signals)
        twice = next((place for place, count in places.items() if count > 1), None)
        if twice is not None:
            raise DataError(f"{name} forecasts {twice[0]} twice on {twice[1]}.", "Keep one forecast for each.")


def _not_by_all(systems: Mapping[str, Sequence[Signal]]) -> int:
    """Stock-weeks that count as missing for some system, because it was not asked about them."""
    places = [{(one.symbol, one.made) for one in signals} for signals in systems.values()]
    return len(set[tuple[str, date]]().union(*places) - places[0].intersection(*places))


def _all_up(signals: Sequence[Signal], prices: Prices) -> Callable[[Slot], Weights | None]:
    """Every week an equal share of each stock that any system forecasts then."""
    rising = [replace(one, direction=1) for one in signals]
    return forecast_weights(rising, prices, "sign")


def _held(signals: Sequence[Signal], first: Slot, prices: Prices) -> Callable[[Slot], Weights | None]:
    """Equal shares of all stocks that have a price in the first week, bought then and kept until the end."""
    each = {one.symbol: replace(one, made=first.made) for one in signals}
    bought = _all_up(list(each.values()), prices)(first)
    return lambda slot: bought if slot == first else None


def _calibrations(systems: Mapping[str, Sequence[Forecast]], settings: Settings) -> dict[str, UpCalibration]:
    """Of systems that give a probability of a rise for every forecast."""
    found = {}
    for name, rows in systems.items():
        p_up = [one.p_up for one in rows if one.p_up is not None]
        if rows and len(p_up) == len(rows):
            rose, weeks = [one.change >= 0 for one in rows], [one.week for one in rows]
            found[name] = up_calibration(p_up, rose, weeks, confidence=settings.confidence, seed=settings.seed)
    return found


def _written(
    systems: Mapping[str, Sequence[Signal]], outcomes: Mapping[str, Sequence[Forecast]], settings: Settings
) -> dict[str, WrittenScores]:
    found = {
        name: written_scores(signals, outcomes[name], confidence=settings.confidence, seed=settings.seed)
        for name, signals in systems.items()
    }
    return {name: scores for name, scores in found.items() if scores is not None}


def _notes(prices: Prices, n_weeks: int) -> list[str]:
    unadjusted = "The prices are not adjusted for splits and dividends: a split looks like a crash."
    survivors = "Stocks that are in the price table because they still trade today make every strategy look better."
    found = [interval_note(n_weeks), "" if prices.adjusted else unadjusted, survivors]
    return [note for note in found if note]


_FORM = TypeAdapter(Assessment)
