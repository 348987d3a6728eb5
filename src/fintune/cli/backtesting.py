"""``fintune backtest``: weekly forecasts against real returns, baselines, and doing nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from fintune.cli.output import Output


def backtest(
    context: typer.Context,
    forecasts: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN_OR_PREDICTIONS...",
            help="Run, its predictions.jsonl, or a table with symbol, date and forecast; several stand side by side.",
        ),
    ],
    prices: Annotated[Path, typer.Option(help="Table with symbol, date, open, close and perhaps adjusted close.")],
    output_dir: Annotated[
        Path | None,
        typer.Option("--output-dir", "--output_dir", help="Where it is written; beside the forecasts, if of one run."),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Task whose forecasts are meant; all, if about the same weeks.")
    ] = None,
    rule: Annotated[
        Literal["sign", "magnitude"], typer.Option(help="Equal shares, or shares by the size of the expected change.")
    ] = "sign",
    commission: Annotated[float, typer.Option(help="Basis points of every amount bought or sold.")] = 5.0,
    slippage: Annotated[float, typer.Option(help="Basis points lost by trading at a worse price.")] = 5.0,
    long_only: Annotated[bool, typer.Option("--long-only", help="An expected fall is cash, not a short.")] = False,
    trials: Annotated[
        int, typer.Option(min=1, help="Strategies tried to arrive at these, discarded ones included.")
    ] = 1,
) -> None:
    """Score weekly forecasts beside naive baselines, and trade on them from the next open, after costs."""
    from fintune.backtesting import backtest as assess
    from fintune.backtesting import place_of
    from fintune.cli.tables import as_rich
    from fintune.reporting.backtest import FILE, PICTURE, assessment_sentences, assessment_tables

    output: Output = context.obj
    with output.quiet_stdout():
        found = assess(
            forecasts,
            prices=prices,
            output_dir=output_dir,
            task=task,
            rule=rule,
            commission_bp=commission,
            slippage_bp=slippage,
            long_only=long_only,
            trials=trials,
        )
    for table in assessment_tables(found):
        output.say("", as_rich(table))
    output.say(*assessment_sentences(found))
    place = place_of(forecasts, output_dir)
    output.say(f"\nresults  {place / FILE}", f"figure   {place / PICTURE}")
    output.emit(found)
