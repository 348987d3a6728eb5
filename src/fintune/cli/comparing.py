"""``fintune compare``: finished runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from fintune.cli.output import Output

_MANY_TASKS = 3


def compare(
    context: typer.Context,
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME=RUN",
            help="A name and the run directory behind it; RUN:SYSTEM takes another system of the run than its tuned "
            "one, such as RUN:base. A name given again adds tasks or repeated runs (seeds); a pattern goes in quotes.",
        ),
    ],
    output_dir: Annotated[Path | None, typer.Option(help="Where results, records and the report go.")] = None,
) -> None:
    """Set finished runs side by side: paired tests on the same documents, Holm's correction, spread over seeds."""
    from fintune import api
    from fintune.cli import tables
    from fintune.reporting.scores import overview_table, repeats_tables

    named = named_runs(runs)
    output: Output = context.obj
    with output.quiet_stdout():
        results = api.compare(named, output_dir=output_dir)
    found = tables.task_names(results)
    overview = overview_table(results)
    if overview is not None:
        output.say("", tables.as_rich(overview))
    for task in found if len(found) <= _MANY_TASKS else ():
        output.say("", tables.results_table(results, task))
    for table in repeats_tables(results):
        output.say("", tables.as_rich(table))
    output.say("", *tables.comparison_sentences(results), *tables.notes(results))
    if output_dir is not None:
        output.say(f"report   {output_dir / 'report.html'}")
    output.emit(results)


def named_runs(words: Sequence[str]) -> dict[str, list[str]]:
    """``NAME=RUN`` by name; a run without a name belongs to the name before it, as a shell leaves expanded patterns."""
    named: dict[str, list[str]] = {}
    name = ""
    for word in words:
        before, equals, place = word.partition("=")
        if equals and "/" not in before:
            name = before
        elif not name:
            raise typer.BadParameter(f"{word!r} has no name; write NAME=RUN, such as base=runs/quickstart:base.")
        else:
            place = word
        named.setdefault(name, []).append(place)
    return named
