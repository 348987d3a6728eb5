"""``fintune collect``: news, prices, profiles and financials of companies into a folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fintune.cli.data_commands import words
from fintune.cli.options import Quiet
from fintune.cli.output import Output

if TYPE_CHECKING:
    from fintune.sources.collect import Collected

_SHOWN = 5


def collect(
    context: typer.Context,
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Tickers, dow30 or sp500.")],
    first: Annotated[str, typer.Option("--from", help="First day of news and prices, such as 2024-01-01.")],
    last: Annotated[str, typer.Option("--to", help="Last day, included.")],
    output_dir: Annotated[Path, typer.Option("--output-dir", "--output_dir", help="Where tables and answers go.")],
    what: Annotated[
        str, typer.Option(help="Of news, prices, profile and financials.")
    ] = "news,prices,profile,financials",
    provider: Annotated[str, typer.Option(help="Who is asked for news: finnhub, eodhd or both.")] = "finnhub",
    largest: Annotated[
        int | None, typer.Option(min=1, help="Of sp500, only this many by market capitalisation.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Collect news, prices, profiles and financials; exit code 1 where something was not to be had.

    Keys are read from FINNHUB_API_KEY and EODHD_API_KEY, or from the keyring, and written nowhere.
    """
    from fintune.collecting import collect as collect_data

    output: Output = context.obj
    output.interrupt_hint = "Give the same command again to go on; what was collected is kept and not asked for again."
    with output.quiet_stdout():
        found = collect_data(
            names, first=first, last=last, output_dir=output_dir, what=words(what), provider=words(provider),
            largest=largest, progress=not (quiet or output.json),
        )  # fmt: skip
    output.interrupt_hint = ""
    output.say(*_lines(found))
    output.emit(found)
    if found.failed:
        raise typer.Exit(1)


def _lines(found: Collected) -> Iterator[str]:
    rows = ", ".join(f"{count:,} in {name}" for name, count in found.rows.items())
    asked = ", ".join(f"{count:,} of {provider}" for provider, count in found.requests.items() if count)
    yield f"{found.members:,} companies. Rows: {rows}. Requests: {asked or 'none, all was there'}."
    for kind, reasons in found.dropped.items():
        for reason, count in reasons.items():
            yield f"Dropped {count:,} of {kind}: {reason}."
    yield from _first([f"Note: {note}." for note in found.notes], "notes")
    yield from _first([f"Missing: {why}" for kinds in found.failed.values() for why in kinds.values()], "are missing")
    yield f"written  {found.folder}"


def _first(lines: list[str], kind: str) -> Iterator[str]:
    yield from lines[:_SHOWN]
    if len(lines) > _SHOWN:
        yield f"... and {len(lines) - _SHOWN:,} more {kind}; collected.json has them all."
