"""``fintune generate``: an answer to one prompt, or to every row of a file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fintune.cli.options import Quiet
from fintune.cli.output import Output
from fintune.cli.predicting import existing_place
from fintune.cli.streamed import Shown
from fintune.cli.writing_flags import WritingFlags, takes_writing

if TYPE_CHECKING:
    from fintune.serving.predictor import Predictor
    from fintune.serving.writing import Written
    from fintune.serving.written_files import GenerationOutcome

_FILES = "Whole files"


@takes_writing
def generate(
    context: typer.Context,
    flags: WritingFlags,
    place: Annotated[str, typer.Argument(metavar="PLACE", help="Run, adapter directory or name, or model.")],
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="One prompt; its answer is streamed.")] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--input",
            "-i",
            help="Prompts: .txt, one a line, or JSONL, CSV, Parquet, Excel.",
            rich_help_panel=_FILES,
        ),
    ] = None,
    output_file: Annotated[
        Path | None, typer.Option("--output", "-o", help="Answers: .jsonl, .csv, .parquet.", rich_help_panel=_FILES)
    ] = None,
    column: Annotated[str, typer.Option("--column", help="Column with the prompt.", rich_help_panel=_FILES)] = "prompt",
    quiet: Quiet = False,
) -> None:
    """Write an answer to a prompt, or to every row of a file, with any model."""
    from fintune.answering import load_writer
    from fintune.serving.writing import MAX_PROMPT_TOKENS

    output: Output = context.obj
    if (prompt is None) == (source is None):
        raise typer.BadParameter("Give either --prompt TEXT, or --input FILE with --output FILE.")
    if (source is None) != (output_file is None):
        raise typer.BadParameter("--input FILE and --output FILE belong together.")
    options = flags.options(max_prompt_tokens=MAX_PROMPT_TOKENS)
    found = existing_place(place)
    with output.quiet_stdout():
        predictor = load_writer(found, quantization=flags.quantization)
        if source is not None and output_file is not None:
            from fintune.serving.written_files import write_file

            output.interrupt_hint = "Give the same command again to go on after the last complete part."
            progress = not (quiet or output.json)
            outcome = write_file(predictor, source, output_file, options, column=column, progress=progress)
            output.say(_summary(outcome))
            output.emit(outcome)
            return
        written = _one(output, predictor, prompt or "", flags)
    speed = {"tokens_per_s": written.tokens_per_s, "seed": options.sampling.seed}
    output.emit({"prompt": prompt, **asdict(written), **speed})


def _one(output: Output, predictor: Predictor, prompt: str, flags: WritingFlags) -> Written:
    """Streams one answer; what it took goes to standard error."""
    from fintune.schema.example import Message
    from fintune.serving.predictor import DROPPED
    from fintune.serving.writing import MAX_PROMPT_TOKENS, stream_written

    options = flags.options(max_prompt_tokens=MAX_PROMPT_TOKENS)
    asked = options.ask(predictor, [Message("user", prompt)])
    if asked.dropped:
        typer.echo(f"warning: {DROPPED % (asked.dropped, len(asked.tokens))}", err=True)
    written = Shown(output.console.file).show(stream_written(predictor, asked, options))
    assert written is not None  # a stream says at least how it ended
    output.say("")
    typer.echo(timing_line(written), err=True)
    return written


def timing_line(written: Written) -> str:
    """What an answer took."""
    parts = [f"{written.n_tokens:,} tokens after a prompt of {written.prompt_tokens:,}"]
    if written.time_to_first_token_s is not None:
        parts.append(f"first after {written.time_to_first_token_s:.2f} s")
    if written.tokens_per_s is not None:
        parts.append(f"then {written.tokens_per_s:.1f} a second")
    if written.ended == "limit":
        parts.append("cut off by --max-new-tokens")
    return f"({'; '.join(parts)})"


def _summary(outcome: GenerationOutcome) -> str:
    parts = [f"{outcome.rows:,} rows in {outcome.output}, {outcome.tokens:,} tokens of answers."]
    if outcome.resumed_from:
        parts.append(f"{outcome.resumed_from:,} of them were answered before.")
    if outcome.shortened:
        parts.append(f"{outcome.shortened:,} prompts were too long and lost their beginning.")
    if outcome.unanswered:
        parts.append(f"{outcome.unanswered:,} rows have no answer; their note says why.")
    if outcome.tokens_per_s is not None:
        parts.append(f"{outcome.tokens_per_s:.1f} tokens a second.")
    if outcome.time_to_first_token_s is not None:
        parts.append(f"The first token came after {outcome.time_to_first_token_s:.2f} s.")
    return " ".join(parts)
