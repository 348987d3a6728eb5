"""``fintune figures``: what runs hold, drawn into a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fintune.cli.output import Output


def figures(
    context: typer.Context,
    runs: Annotated[
        list[str],
        typer.Argument(metavar="[NAME=]RUN...", help="Run directories; a name is what figures call the run."),
    ],
    output_dir: Annotated[
        Path | None,
        typer.Option("--output-dir", "-o", help="Where the files go; of one run, its figures/ when left out."),
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", help="png, pdf or svg; may be given again. png and pdf when left out."),
    ] = None,
) -> None:
    """Draw the figures of one or several runs, and write their tables as LaTeX."""
    from fintune.drawing import figures as draw
    from fintune.reporting.captions import not_drawn

    output: Output = context.obj
    with output.quiet_stdout():
        drawn = draw(named_places(runs), output_dir=output_dir, formats=formats or ("png", "pdf"))
    for name, files in drawn.files.items():
        output.say(f"{name}  {', '.join(file.name for file in files)}")
    output.say(*not_drawn(drawn.left_out))
    if drawn.tables is not None:
        output.say(f"tables   {drawn.tables}")
    output.say(f"document {drawn.document}  (compile it with pdflatex)")
    output.emit(drawn)


def named_places(words: list[str]) -> dict[str, Path]:
    """``NAME=RUN``, or a run by the name of its folder."""
    named: dict[str, Path] = {}
    for word in words:
        before, equals, place = word.partition("=")
        if not (equals and before and place) or "/" in before or Path(word).exists():
            before, place = Path(word).resolve().name, word
        if before in named:
            raise typer.BadParameter(f"Two runs are called {before!r}; write NAME=RUN, with a name for each.")
        named[before] = Path(place)
    return named
