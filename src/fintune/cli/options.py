"""Arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="Name of a shipped recipe, or path to your own YAML file.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Changes to the recipe, such as training.epochs=2."),
]
OutputDir = Annotated[Path | None, typer.Option(help="Run directory; default runs/<name>.")]
Resume = Annotated[bool, typer.Option(help="Go on from the newest checkpoint, or start afresh in <run>-2.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]
