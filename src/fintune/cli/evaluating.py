"""The command that measures a model, and results as it and training print them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fintune.cli.options import Overrides, Quiet
from fintune.cli.output import Output

if TYPE_CHECKING:
    from fintune.schema.results import EvaluationResults

_BASELINES = "majority,lexicon,tfidf,last_direction,always_rise"


def evaluate(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", "--model-path", "--model_path", help="Alias, hub id, folder, .gguf file, run or adapter."
        ),
    ],
    tasks: Annotated[
        str,
        typer.Option(
            "--tasks",
            "-t",
            "--benchmark",
            help="Separated by commas: task names, each optionally name@config (fiqa_sa@flare is FLARE's division), "
            "name:source or name@config:source; flare, fingpt, finlora or all.",
        ),
    ],
    overrides: Overrides = None,
    adapter: Annotated[
        str | None, typer.Option("--adapter", "-a", help="Adapter (folder or name) or run to measure.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="test or validation.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many documents a task.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Named prompt; `fintune tasks` lists them.")] = None,
    quantization: Annotated[str | None, typer.Option(help="none, nf4, int8 or fp8.")] = None,
    decoding: Annotated[
        Literal["constrained", "free", "both"] | None,
        typer.Option(
            help="Labels: constrained takes the likeliest, free writes an answer and reads it, both ranks for our "
            "rules and writes for FLARE's; default both for flare, else constrained."
        ),
    ] = None,
    shots: Annotated[
        int | None, typer.Option(min=0, help="Solved training rows of the task shown before each document.")
    ] = None,
    base_variants: Annotated[
        str | None, typer.Option(help="Further ways to ask the base, separated by commas: five_shot, calibrated.")
    ] = None,
    baselines: Annotated[str, typer.Option(help="Which of these to score beside; none for no baselines.")] = _BASELINES,
    output_dir: Annotated[
        Path | None,
        typer.Option(
            "--output-dir", "--output_dir", help="Where records and report go; a stopped evaluation goes on there."
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Measure a model, with or without an adapter, on financial tasks."""
    from fintune import api

    output: Output = context.obj
    # Only what was given is passed on, so that defaults stand in one place, the Python function. Baselines are the
    # exception: a script asks for what it needs, a person should see whether a language model was needed.
    given: dict[str, Any] = {
        "adapter": adapter,
        "split": split,
        "limit": limit,
        "prompt": prompt,
        "quantization": quantization,
        "decoding": decoding,
        "shots": shots,
        "base_variants": None if base_variants is None else _words(base_variants),
        "baselines": _words(baselines),
        "output_dir": output_dir,
        "overrides": overrides,
    }
    given = {name: value for name, value in given.items() if value is not None}
    output.interrupt_hint = (
        "With --output-dir, a stopped evaluation can go on where it was."
        if output_dir is None
        else "Give the same command again to go on after the last complete part."
    )
    with output.quiet_stdout():
        results = api.evaluate(model, tasks=_words(tasks), progress=not (quiet or output.json), **given)
    output.interrupt_hint = ""
    show_results(output, results)
    if output_dir is not None and (output_dir / "report.html").is_file():
        output.say(f"\nreport   {output_dir / 'report.html'}")
    output.emit(results)


def _words(text: str) -> tuple[str, ...]:
    words = tuple(word.strip() for word in text.split(",") if word.strip())
    return () if words == ("none",) else words


def show_results(output: Output, results: EvaluationResults) -> None:
    """Prints tables, comparisons and notes."""
    from fintune.cli import tables

    for task in tables.task_names(results):
        output.say("", tables.results_table(results, task))
    if results.comparisons:
        output.say("", *tables.comparison_sentences(results))
    output.say(*tables.notes(results))
