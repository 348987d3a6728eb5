"""``fintune quant``: daily prices as tokens, and next-day distributions beside random walks, n-grams and GARCH."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fintune.cli.output import Output

quant_app = typer.Typer(
    name="quant",
    help="Daily prices as tokens for a GPT, and its next-day distributions beside random walks, n-grams and GARCH.",
    no_args_is_help=True,
)
_Day = Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="First day; default by share of sessions.")]


@quant_app.command()
def build(
    context: typer.Context,
    prices: Annotated[Path, typer.Argument(help="Table with ticker, date, open, high, low, close and volume.")],
    output_dir: Annotated[Path, typer.Option("--output-dir", "-o", help="Where data, GPT and recipe go.")],
    tickers: Annotated[str | None, typer.Option(help="Tickers to take, divided by commas; default all.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many, chosen by a hash of their names.")] = None,
    validation_from: _Day = None,
    test_from: _Day = None,
    least_days: Annotated[int, typer.Option(min=1, help="Leave out tickers with fewer training days.")] = 250,
    window_days: Annotated[int, typer.Option(min=2, help="Days a training block holds.")] = 32,
    layers: Annotated[int, typer.Option(min=1, help="Of the GPT.")] = 4,
    width: Annotated[int, typer.Option(min=16, help="Of the GPT; a multiple of 16, from 256 on of 64.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Of its first weights.")] = 17,
) -> None:
    """Write tokens and lines of words by split, a tokenizer with an untrained GPT, and a recipe that trains it."""
    from fintune.quant import quant_build
    from fintune.reporting.quant import build_sentences

    output: Output = context.obj
    with output.quiet_stdout():
        facts = quant_build(
            prices,
            output_dir,
            tickers=[name.strip() for name in tickers.split(",")] if tickers else None,
            limit=limit,
            validation_from=_day(validation_from),
            test_from=_day(test_from),
            least_days=least_days,
            window_days=window_days,
            layers=layers,
            width=width,
            seed=seed,
        )
    output.say(*build_sentences(facts))
    output.say(f"\ndata     {output_dir}", f"train    fintune train {output_dir / 'recipe.yaml'} --output-dir RUN")
    output.emit(facts)


@quant_app.command()
def evaluate(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="Finished run, or a folder with a model.")],
    data: Annotated[Path, typer.Option(help="Folder that fintune quant build wrote.")],
    split: Annotated[
        Literal["validation", "test"], typer.Option(help="validation to choose among models; test once.")
    ] = "test",
    garch: Annotated[bool, typer.Option(help="Fit GARCH(1,1) too; needs fintune[quant].")] = True,
) -> None:
    """Score next-day distributions by likelihood, with intervals and paired tests by day."""
    from fintune.cli.tables import as_rich
    from fintune.quant import quant_evaluate, results_file
    from fintune.reporting.quant import differences_tables, pit_sentence, scores_table, verdict_sentences

    output: Output = context.obj
    again = split == "test" and results_file(run, split).exists()
    with output.quiet_stdout(), _progress(output) as tell:
        found = quant_evaluate(run, data=data, split=split, garch=garch, on_progress=tell)
    output.say("", as_rich(scores_table(found)), *map(as_rich, differences_tables(found)))
    output.say(*verdict_sentences(found), pit_sentence(found.scores[0]))
    if again:
        output.say("This run's test days were scored before: choose among models on validation days.")
    output.say(f"\nresults  {results_file(run, split)}")
    output.emit(found)


@contextmanager
def _progress(output: Output) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each thing that takes long, gone when all is done."""
    from rich.console import Console
    from rich.progress import Progress

    bars: dict[str, Any] = {}
    with Progress(console=Console(stderr=True, quiet=output.silent), transient=True) as progress:

        def tell(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = progress.add_task(what, total=total)
            progress.update(bars[what], completed=done)

        yield tell


def _day(given: datetime | None) -> date | None:
    return None if given is None else given.date()
