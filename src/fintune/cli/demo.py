"""``fintune demo``: a page for forecasts, sentiment and comparison, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fintune.cli.output import Output
from fintune.cli.predicting import existing_place

DEFAULT_MODEL = "smollm2-135m"


def demo(
    context: typer.Context,
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="Run, adapter directory or name.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help=f"Base model in place of a run; {DEFAULT_MODEL} without both.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder that `fintune collect` filled; else a sample of invented companies.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; this one is reachable from this machine only.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port; the first free one from 7860.")] = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Open no browser.")] = False,
) -> None:
    """Show a page that forecasts weeks, labels texts, and sets a base model beside its adapter."""
    from fintune.serving.demo.forecast import read_data
    from fintune.serving.demo.models import load_models
    from fintune.serving.demo.page import open_page, require_gradio
    from fintune.session import default_device

    if run is not None and model is not None:
        raise typer.BadParameter("Name a run or --model, not both.")
    output: Output = context.obj
    require_gradio()
    with output.quiet_stdout():
        read = read_data(data)
        models = load_models(existing_place(run or model or DEFAULT_MODEL), device=default_device())
        page, address = open_page(models, read, host=host, port=port, open_browser=not no_browser)
        output.say(f"page     {address}", "Ctrl-C ends it.")
        page.block_thread()
