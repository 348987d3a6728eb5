"""What ``fintune predict`` reads: a place that must be there, and texts that may begin with a minus sign.

Enters: arguments. Leaves: the place as a path or name that the api takes, and the texts as they were written.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from typer.core import TyperCommand

from fintune.schema.errors import DataError, RunError

_MARK = "\0"  # no argument of a program can hold it
_MINUS_TEXT = re.compile(r"-[^A-Za-z-]")
_VALUED = ("--file", "-f", "--task")


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
    from fintune.models.locate import ALIASES  # loads torch: only for names that are no place here

    if run in ALIASES or path.suffix == ".gguf" or not is_path:
        return run
    near = f"runs/{run}" if (Path("runs") / run).is_dir() else next(iter(get_close_matches(run, ALIASES, n=1)), "")
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
