"""Where a command's words go: people read the console, machines read one JSON document on standard output.

Enters: renderables and results. Leaves: standard output and standard error, never mixed up.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


class Terminated(KeyboardInterrupt):
    """Someone ends the command from outside; where Ctrl-C only stops an answer, this still ends everything."""


class Output:
    """One command's output.

    Args:
        json: people's text goes to standard error, and ``emit`` writes JSON to standard output.
        debug: unexpected errors show their traceback.
        silent: another process of the run speaks; only errors are said.
        arguments: what the command was started with.
    """

    def __init__(
        self, *, json: bool = False, debug: bool = False, silent: bool = False, arguments: Sequence[str] = ()
    ) -> None:
        self.json = json
        self.debug = debug
        self.silent = silent
        self.arguments = tuple(arguments)
        self.interrupt_hint = ""
        self._console: Console | None = None

    @property
    def console(self) -> Console:
        """The console people read."""
        if self._console is None:
            from rich.console import Console

            self._console = Console(stderr=self.json, highlight=False)
        return self._console

    def say(self, *renderables: Any) -> None:
        """Prints for people: text as it is, tables and other rich renderables as they render."""
        for renderable in renderables if not self.silent else ():
            self.console.print(renderable, markup=False, soft_wrap=isinstance(renderable, str))

    def emit(self, value: Any) -> None:
        """Prints for machines, where they asked for it."""
        if self.json and not self.silent:
            sys.stdout.write(json.dumps(to_jsonable(value), indent=2, ensure_ascii=False) + "\n")

    def error(self, kind: str, message: str, remedy: str) -> None:
        """One sentence and its remedy on standard error, and as JSON where machines listen."""
        from rich.console import Console
        from rich.text import Text

        text = Text.assemble(("error: ", "bold red"), message, "\n" if remedy else "", (remedy, "cyan"))
        Console(stderr=True, highlight=False).print(text, soft_wrap=True)
        self.emit({"error": {"type": kind, "message": message, "remedy": remedy}})

    @contextmanager
    def quiet_stdout(self) -> Iterator[None]:
        """While a library runs, its prints must not land in the JSON."""
        with contextlib.redirect_stdout(sys.stderr) if self.json else contextlib.nullcontext():
            yield


def to_jsonable(value: Any) -> Any:
    """Plain JSON values; a number that is not finite becomes null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if hasattr(value, "model_dump"):
        return to_jsonable(value.model_dump())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: to_jsonable(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_jsonable(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(to_jsonable, value))
    if isinstance(value, PurePath):
        return str(value)
    return to_jsonable(value.item()) if hasattr(value, "item") else str(value)
