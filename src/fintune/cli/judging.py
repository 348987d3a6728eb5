"""``fintune judge``: a language model compares a run's written answers, base against tuned."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from fintune.cli.output import Output


def judge(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run with written answers of base and tuned.")],
    endpoint: Annotated[
        str, typer.Option(help="Base URL of an OpenAI-compatible endpoint, such as http://localhost:8000/v1.")
    ],
    model: Annotated[str, typer.Option(help="What the endpoint calls the judge.")],
    rubric: Annotated[
        Literal["chat", "forecast"], typer.Option(help="What to prefer: a good assistant, or a well-founded forecast.")
    ] = "chat",
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many documents a task.")] = None,
) -> None:
    """Win rate of the tuned model over its base, judged in both orders by a model you name.

    The endpoint's key is read from FINTUNE_JUDGE_KEY or OPENAI_API_KEY and written nowhere.
    """
    from fintune.cli import tables
    from fintune.judging import judge as judge_answers
    from fintune.judging import judged_folder

    output: Output = context.obj
    with output.quiet_stdout():
        results = judge_answers(
            run, endpoint=endpoint, model=model, rubric=rubric, limit=limit, progress=not output.json
        )
    for task in tables.task_names(results):
        output.say("", tables.results_table(results, task))
    output.say("", *tables.comparison_sentences(results), *tables.notes(results))
    output.say(f"results  {judged_folder(run, model, rubric) / 'results.json'}")
    output.emit(results)
