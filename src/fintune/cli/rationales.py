"""``fintune rationales``: a teacher explains the training weeks of a forecasting task."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fintune.cli.output import Output


def rationales(
    context: typer.Context,
    task: Annotated[str, typer.Argument(metavar="TASK", help="A task such as weekly_acl18_forecast.")],
    endpoint: Annotated[
        str, typer.Option(help="Base URL of an OpenAI-compatible endpoint, such as http://localhost:8000/v1.")
    ],
    teacher: Annotated[str, typer.Option(help="What the endpoint calls the teacher.")],
    output_file: Annotated[Path, typer.Option("--output", help="Where the rationales go.")] = Path("rationales.jsonl"),
    source: Annotated[str | None, typer.Option(help="Where the task's rows are.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many weeks.")] = None,
    told: Annotated[bool, typer.Option("--told", help="Tell the teacher the outcome: it writes hindsight.")] = False,
    dollars_in: Annotated[float | None, typer.Option(min=0, help="Price of a million prompt tokens.")] = None,
    dollars_out: Annotated[float | None, typer.Option(min=0, help="Price of a million answered tokens.")] = None,
    ask: Annotated[bool, typer.Option("--ask", help="Ask now; without it, only the cost is estimated.")] = False,
) -> None:
    """Rationales for a task's training weeks, written by a model you name; first only what they would cost.

    Answers without the sections, refusals and predictions that did not come true are counted, not learnt. The
    endpoint's key is read from FINTUNE_JUDGE_KEY or OPENAI_API_KEY and written nowhere.
    """
    from fintune.evaluation.judge import judge_from_environment
    from fintune.forecasting.rationales import Teaching, plan_rationales, training_weeks, write_rationales

    output: Output = context.obj
    with output.quiet_stdout():
        teaching = Teaching(task, judge_from_environment(endpoint, teacher), output_file, source, told, limit)
        weeks = training_weeks(teaching)
        plan = plan_rationales(teaching, weeks, dollars_in, dollars_out)
        cost = "" if plan.dollars is None else f", at most {plan.dollars:,.2f} dollars"
        output.say(
            f"{plan.rows:,} training weeks of {task}, {plan.known:,} of them answered already. The rest takes about "
            f"{plan.prompt_tokens:,} prompt tokens and at most {plan.answer_tokens:,} answered ones{cost}."
        )
        if not ask:
            output.say("Nothing was asked; add --ask to ask.")
            output.emit(plan)
            return
        counts = write_rationales(teaching, weeks, progress=not output.json)
    output.say(", ".join(f"{number:,} {status}" for status, number in counts.items()))
    output.say(f"rationales  {output_file}; learn them with config teacher and FINTUNE_RATIONALES={output_file}")
    output.emit(counts)
