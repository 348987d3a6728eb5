"""Prices as tokens, and next-day distributions: build the data, evaluate a trained GPT beside its baselines.

Enters: a price table, or a trained run and the folder of its data. Leaves: ``BuildFacts`` or ``QuantEvaluation``,
written beside what they are about.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Literal

from fintune.forecasting.quant.building import DAYS, BuildFacts, BuildSettings, read_build
from fintune.forecasting.quant.building import build as build_folder
from fintune.forecasting.quant.comparison import QuantEvaluation, evaluate_forecasts
from fintune.forecasting.quant.days import read_days
from fintune.forecasting.quant.forecasts import Forecasts, Targets, targets_of
from fintune.forecasting.quant.starting import head_width, price_data, require_price_data
from fintune.schema.errors import ModelError, RecipeError, RunError
from fintune.schema.run_directory import RunDirectory, write_json
from fintune.sources.quant.codec import Codec

Progress = Callable[[str, int, int], None]
LEAST_WINDOW = 2


def quant_build(
    prices: str | Path,
    output_dir: str | Path,
    *,
    tickers: Sequence[str] | None = None,
    limit: int | None = None,
    validation_from: date | None = None,
    test_from: date | None = None,
    least_days: int = 250,
    window_days: int = 32,
    layers: int = 4,
    width: int = 64,
    seed: int = 17,
) -> BuildFacts:
    """Turns daily prices into tokens and lines of words, with a tokenizer, an untrained GPT and a recipe.

    Args:
        prices: a table with ticker (or symbol, name), date, open, high, low, close, volume and, where there is one,
            adjusted close.
        output_dir: where it goes; a folder without built data.
        tickers: names to take; None for all.
        limit: take at most so many, chosen by a hash of their names.
        validation_from: first day of validation; None after 70 % of the sessions.
        test_from: first day of test; None after 85 %.
        least_days: a ticker with fewer training days is left out.
        window_days: days a training block holds.
        layers: of the GPT.
        width: of the GPT, a multiple of 16, from 256 on of 64.
        seed: of its first weights.

    Raises:
        DataError: the prices cannot be read, or too few are left.
        RecipeError: a number makes no sense.
    """
    if min(limit or 1, layers, least_days) < 1 or window_days < LEAST_WINDOW or width < 16 or width % head_width(width):
        raise RecipeError(
            "The limit, layers, days or width of the GPT make no sense together.",
            "Take 1 or more, 2 days a window, and a width in steps of 16, from 256 on in steps of 64.",
        )
    settings = BuildSettings(
        tickers=tuple(tickers) if tickers else None,
        limit=limit,
        validation_from=validation_from,
        test_from=test_from,
        least_days=least_days,
        window_days=window_days,
        layers=layers,
        width=width,
        seed=seed,
    )
    return build_folder(prices, output_dir, settings)


def quant_evaluate(
    run: str | Path,
    *,
    data: str | Path,
    split: Literal["validation", "test"] = "test",
    garch: bool = True,
    confidence: float = 0.95,
    seed: int = 0,
    device: str | None = None,
    on_progress: Progress | None = None,
) -> QuantEvaluation:
    """Scores a trained GPT's next-day distributions beside random walks, an n-gram and GARCH(1,1).

    Args:
        run: run directory, or a folder with a model and its tokenizer.
        data: the folder that ``quant_build`` wrote.
        split: ``validation`` to choose among models, ``test`` once.
        garch: whether to fit GARCH(1,1), which needs ``arch``.
        confidence: level of the intervals.
        seed: of resampling.
        device: torch device; a GPU if there is one, when None.
        on_progress: told what is at work, how much is done, and of how much.

    Returns:
        The evaluation, also written to ``quant_SPLIT.json`` in the run directory.

    Raises:
        DataError: the data were not built.
        ModelError: the model cannot be read, or started from other built prices.
        DependencyError: ``arch`` is not installed.
    """
    codec, window_days, facts = read_build(data)
    model = _model_folder(Path(run))
    require_price_data(model, price_data(codec, facts["first_validation"], facts["first_test"]))
    days = read_days(Path(data) / DAYS)
    validation, targets = (targets_of(days, codec, name) for name in ("validation", split))
    tell = on_progress or (lambda what, done, total: None)
    forecasts = [
        _gpt(model, codec, targets, window_days, device, tell),
        *_baselines(targets, validation, Path(data) if garch else None, tell),
    ]
    found = evaluate_forecasts(targets, forecasts, split=split, confidence=confidence, seed=seed)
    write_json(results_file(run, split), _plain(found))
    return found


def results_file(run: str | Path, split: str) -> Path:
    """Where an evaluation of a run is written."""
    return Path(run) / f"quant_{split}.json"


def _gpt(
    model: Path, codec: Codec, targets: Targets, window_days: int, device: str | None, tell: Progress
) -> Forecasts:
    from fintune.forecasting.quant.gpt import gpt_forecasts
    from fintune.models.load import load_base
    from fintune.schema.recipe import ModelSection
    from fintune.session import find_device

    base = load_base(
        ModelSection(base=str(model), chat_template="plain"), device=find_device(device), for_training=False
    )
    return gpt_forecasts(
        base.model,
        base.tokenizer,
        codec,
        targets,
        window_days=window_days,
        on_batch=partial(tell, "forecasting"),
    )


def _model_folder(run: Path) -> Path:
    adapter = RunDirectory(run).adapter
    folder = adapter if adapter.is_dir() else run
    if (folder / "adapter_config.json").is_file():
        raise ModelError(f"{run} holds an adapter, not a whole model.", "Train with adapter.kind: none.")
    if not (folder / "config.json").is_file():
        raise RunError(f"{run} holds no trained model.", "Name a finished run, or a folder with a model.")
    return folder


def _baselines(targets: Targets, validation: Targets, garch_folder: Path | None, tell: Progress) -> list[Forecasts]:
    from fintune.forecasting.quant.baselines import empirical, n_gram, own_history, random_walk
    from fintune.forecasting.quant.garch import garch

    simple = [random_walk(targets), empirical(targets), own_history(targets, validation), n_gram(targets, validation)]
    if garch_folder is None:
        return simple
    shapes: tuple[Literal["normal", "t"], ...] = ("normal", "t")
    return simple + [garch(targets, shape, garch_folder, partial(tell, f"fitting GARCH, {shape}")) for shape in shapes]


def _plain(found: QuantEvaluation) -> dict[str, object]:
    from dataclasses import asdict

    return {
        **{name: value for name, value in vars(found).items() if name not in ("scores", "differences")},
        "scores": [
            {**vars(one), "metrics": {k: v.model_dump() for k, v in one.metrics.items()}} for one in found.scores
        ],
        "differences": [{**asdict(one), "difference": one.difference.model_dump()} for one in found.differences],
    }
