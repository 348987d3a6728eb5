"""Weekly forecasts against prices: from a run, or a table of forecasts, to ``backtest.json`` and its figure.

Enters: a run directory or a file of predictions, and a price table. Leaves: ``Assessment``, written beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fintune.forecasting.assessment import Assessment, Settings, assess, write_assessment
from fintune.forecasting.backtest import Costs, Rule
from fintune.forecasting.prices import read_prices
from fintune.forecasting.signals import read_signals
from fintune.reporting.backtest import FILE, PICTURE, write_equity
from fintune.schema.errors import RecipeError
from fintune.schema.run_directory import writing

MOST_BASIS_POINTS = 5000


def backtest(
    forecasts: str | Path | Sequence[str | Path],
    *,
    prices: str | Path,
    output_dir: str | Path | None = None,
    task: str | None = None,
    rule: Rule = "sign",
    commission_bp: float = 5.0,
    slippage_bp: float = 5.0,
    long_only: bool = False,
    trials: int = 1,
    confidence: float = 0.95,
    seed: int = 0,
) -> Assessment:
    """Scores weekly forecasts against real returns and naive baselines, and trades on them.

    Args:
        forecasts: a run directory, its ``predictions.jsonl``, or a table with symbol, date and a forecast; several of
            them are set side by side.
        prices: a table with symbol (or ticker), date, open, close and, where there is one, adjusted close.
        output_dir: where ``backtest.json`` and ``figures/backtest.png`` go; the run directory, or the folder of the
            file, when None. Several forecasts need one.
        task: which task's records, where a run has several; None for all, if they are about the same stock-weeks.
        rule: ``sign`` gives each stock an equal share; ``magnitude`` divides by the size of the expected change.
        commission_bp: basis points of every amount bought or sold.
        slippage_bp: the same, for trading at a worse price than the open.
        long_only: an expected fall is cash instead of a short position.
        trials: strategies tried to arrive at these, those thrown away included; it deflates the Sharpe ratio.
        confidence: level of the intervals.
        seed: of resampling.

    Raises:
        DataError: a file cannot be read, the weeks overlap, or the prices do not cover them.
        RecipeError: costs, trials or confidence make no sense, or several forecasts have no place to be written to.
    """
    if not (0 <= commission_bp <= MOST_BASIS_POINTS and 0 <= slippage_bp <= MOST_BASIS_POINTS):
        raise RecipeError("Costs lie between 0 and 5,000 basis points.", "Write 5 for 0.05%.")
    if trials < 1 or not 0 < confidence < 1:
        raise RecipeError(
            "At least one strategy was tried, and confidence lies between 0 and 1.", "Write 0.95 for 95%."
        )
    settings = Settings(rule, Costs(commission_bp, slippage_bp), long_only, trials, confidence, seed)
    sources = [forecasts] if isinstance(forecasts, str | Path) else list(forecasts)
    place = place_of(sources, output_dir)
    found = assess(read_signals(*sources, task=task), read_prices(prices), settings)
    with writing(place):
        write_assessment(place / FILE, found)
        write_equity(found, place / PICTURE)
    return found


def place_of(sources: Sequence[str | Path], output_dir: str | Path | None) -> Path:
    """Where the backtest of some forecasts is written: beside a single one, unless a place is named.

    Raises:
        RecipeError: there are several forecasts, or none, and no place.
    """
    if output_dir is not None:
        return Path(output_dir)
    if len(sources) != 1:
        raise RecipeError(
            f"A backtest of {len(sources)} forecasts side by side belongs to none of their folders.",
            "Name a folder with --output-dir.",
        )
    source = Path(sources[0])
    return source if source.is_dir() else source.parent
