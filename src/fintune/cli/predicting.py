"""What ``fintune predict`` reads and shows: a place that must be there, and texts that may begin with a minus sign.

Enters: arguments and predictions. Leaves: the place as a path or name that the api takes, the texts as they were
written, and what people read of the answers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from fintune.schema.adapter_records import find_stored, names, registry_root
from fintune.schema.errors import DataError, RunError

if TYPE_CHECKING:
    from fintune.metrics.abstention import Abstention
    from fintune.serving.answers import Prediction
    from fintune.serving.files import FileOutcome

TABLES = "Whole tables"
Bf16Products = Annotated[
    bool,
    typer.Option("--bf16-products", help="Multiply in bf16 on the CPU: faster; near-ties may fall otherwise."),
]
LabellingProcesses = Annotated[
    int | None,
    typer.Option("--processes", min=1, help="Processes that hold the model.", rich_help_panel=TABLES),
]
LabellingGpus = Annotated[
    int | None,
    typer.Option("--gpus", min=1, help="Processes with a GPU each.", rich_help_panel=TABLES),
]
LabellingEngine = Annotated[
    Literal["local", "ray"],
    typer.Option("--engine", help="On this machine, or on a Ray cluster.", rich_help_panel=TABLES),
]

_MARK = "\0"  # no argument of a program can hold it
_MINUS_TEXT = re.compile(r"-[^A-Za-z-]")
_VALUED = (
    "--file",
    "-f",
    "--task",
    "--data",
    "--text",
    "--output",
    "-o",
    "--abstain",
    "--processes",
    "--gpus",
    "--engine",
)


class PredictCommand(TyperCommand):
    """Takes ``-8% after the warning`` for a text: no option begins with a dash and anything but a letter."""

    def parse_args(self, ctx, args):  # type: ignore[no-untyped-def]
        """Marks such texts, so that the parser does not look for options in them."""
        end = args.index("--") if "--" in args else len(args)
        previous = ["", *args]
        marked = [
            _MARK + word if _MINUS_TEXT.match(word) and before not in _VALUED else word
            for before, word in zip(previous, args[:end], strict=False)
        ]
        return super().parse_args(ctx, marked + args[end:])


def unmarked(texts: Sequence[str] | None) -> list[str]:
    """The texts as they were written."""
    return [text.removeprefix(_MARK) for text in texts or ()]


def existing_place(run: str) -> str:
    """What to load; a local path that leads nowhere is an error here, not a question to the hub.

    The name of a stored adapter is returned as it is.

    Raises:
        RunError: ``run`` reads as a path, and nothing is there.
    """
    run = unmarked([run])[0]
    try:
        path = Path(run).expanduser()
        if path.exists():
            return str(path)
        is_path = run.startswith((".", "/", "~", "runs/")) or path.parent.is_dir()
    except (OSError, RuntimeError, ValueError):  # a name too long, an unknown ~user, a null byte
        is_path, path = True, Path(run)
    if find_stored(registry_root(), run) is not None:
        return run
    from fintune.models.locate import ALIASES  # loads torch: only for names that are no place here

    if run in ALIASES or path.suffix == ".gguf" or not is_path:
        return run
    known = [*ALIASES, *names(registry_root())]
    near = f"runs/{run}" if (Path("runs") / run).is_dir() else next(iter(get_close_matches(run, known, n=1)), "")
    hint = f"Did you mean {near}? " if near else ""
    raise RunError(
        f"There is no run, adapter or model at {run}.",
        f"{hint}Give the full path, or run the command from the folder that holds runs/.",
    )


def read_lines(file: Path | None) -> list[str]:
    """One text a line; ``-`` is standard input.

    Raises:
        DataError: the file cannot be read as UTF-8 text.
    """
    import sys

    if file is None:
        return []
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text.", "Save it as UTF-8.") from error
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}.", "Check the path.") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def predictions_table(predictions: Sequence[Prediction]) -> Any:
    """Label, probabilities and text of each prediction."""
    from rich.text import Text

    from fintune.cli.tables import plain_table

    table = plain_table("label", "probabilities", "text")
    for prediction in predictions:
        ordered = sorted(prediction.probabilities.items(), key=lambda item: -item[1])
        label = f"(unsure: {prediction.label})" if prediction.abstained else prediction.label
        table.add_row(label, " ".join(f"{name} {p:.2f}" for name, p in ordered), Text(prediction.text))
    return table


def abstention_line(found: Abstention) -> str:
    """The threshold in use and what it does on validation."""
    certainty = f"at least {found.accuracy_low:.3f} with 95 % certainty"
    if not found.is_bound:
        certainty = "less is to be expected on new rows: these also chose the checkpoint"
    return (
        f"Answers below a confidence of {found.threshold:.3f} are marked as unsure. On {found.n} validation rows this "
        f"answers {found.coverage:.0%} of them with an accuracy of {found.accuracy:.3f} ({certainty})."
    )


def file_summary(outcome: FileOutcome) -> str:
    """What was labelled, in a line."""
    labels = ", ".join(f"{label} {count:,}" for label, count in outcome.labels.items())
    parts = [f"{outcome.rows:,} rows in {outcome.output}: {labels}."]
    if outcome.resumed_from:
        parts.append(f"{outcome.resumed_from:,} of them were labelled before.")
    if outcome.abstained:
        parts.append(f"{outcome.abstained:,} answers are marked as unsure.")
    if outcome.unlabelled:
        parts.append(f"{outcome.unlabelled:,} rows have no answer; their note says why.")
    return " ".join(parts)
