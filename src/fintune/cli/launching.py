"""``fintune train --gpus N``: the command runs again, in several processes, and this one only waits for them."""

from __future__ import annotations

from typing import Annotated

import typer

from fintune.cli.output import Output
from fintune.schema.errors import SaidElsewhere

Gpus = Annotated[int | None, typer.Option(min=1, help="Train in this many processes on this machine, one per GPU.")]
ProcessCount = Annotated[
    int | None, typer.Option("--processes", min=1, help="The same on the CPU, where it only serves tests.", hidden=True)
]


def share_out(output: Output, gpus: int | None, processes: int | None) -> None:
    """Runs the command in several processes and leaves with their exit code; nothing where one is enough.

    Raises:
        typer.Exit: all have done their part.
        SaidElsewhere: one has not, and has said why.
    """
    from fintune.launch import is_launched, launch

    count = gpus or processes or 1
    if count == 1 or is_launched():
        return
    if code := launch(count, output.arguments, gpus=gpus is not None):
        said = SaidElsewhere("One of the processes has failed.")
        said.exit_code = code
        raise said
    raise typer.Exit
