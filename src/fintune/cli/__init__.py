"""The command line: thin commands over ``fintune.api``, one sentence and a remedy for every mistake.

Enters: arguments. Leaves: an exit code (0 done, 2 the user's mistake, 1 ours, 130 interrupted), text for people or,
with ``--json``, one JSON document on standard output and everything else on standard error.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from fintune.cli.logs import shown_messages
from fintune.cli.output import Output, Terminated
from fintune.schema.network import offline_mode
from fintune.schema.processes import Processes, this_process

_GLOBAL_FLAGS = ("--json", "--debug", "--offline")
_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    rest, flags = _split_flags(given)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without Unicode shows ? instead of dying
    output = Output(json="--json" in flags, debug="--debug" in flags, arguments=given)
    me = Processes()
    with _terminable():
        try:
            me = this_process()
            output.silent = not me.is_first
            messages = nullcontext() if output.silent else shown_messages()
            with messages, offline_mode("--offline" in flags):
                return _run(rest, output)
        except BaseException as error:
            return _left_behind(_report(error, output), me)


def _left_behind(code: int, me: Processes) -> int:
    """The exit code; one of several processes ends with it at once, for threads of lost collectives may abort it."""
    if me.world > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM stops a command as Ctrl-C does, and a second one at once; where a handler is set, it stays."""
    in_main_thread = threading.current_thread() is threading.main_thread()  # Python allows handlers in no other
    if not in_main_thread or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _stop(number: int, frame: Any) -> None:
    signal.signal(number, signal.SIG_DFL)
    raise Terminated


def _split_flags(arguments: Sequence[str]) -> tuple[list[str], set[str]]:
    """The global flags may stand anywhere before ``--``; what follows it is text."""
    position = list(arguments).index("--") if "--" in arguments else len(arguments)
    before, after = list(arguments[:position]), list(arguments[position:])
    return [a for a in before if a not in _GLOBAL_FLAGS] + after, {a for a in before if a in _GLOBAL_FLAGS}


def _run(arguments: list[str], output: Output) -> int:
    from typer.main import get_command

    from fintune.cli.app import app

    # Without standalone mode the exit code comes back as the result, and errors reach us instead of the terminal.
    result = get_command(app)(arguments, prog_name="fintune", standalone_mode=False, obj=output)
    if result == _INTERRUPTED:
        raise KeyboardInterrupt  # Typer swallowed it and kept only the code
    return result if isinstance(result, int) else 0


def _report(error: BaseException, output: Output) -> int:
    import typer
    from typer.exceptions import TyperException

    from fintune.schema.errors import FintuneError, SaidElsewhere

    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, SaidElsewhere):
        return error.exit_code
    if output.debug and not isinstance(error, TyperException):
        traceback.print_exception(error, file=sys.stderr)
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        output.error("Interrupted", "Stopped.", output.interrupt_hint)
        return _INTERRUPTED
    if isinstance(error, TyperException):
        command = getattr(getattr(error, "ctx", None), "command_path", "fintune")
        remedy = f"See: {command} --help"
        if command.endswith(" predict") and getattr(error, "option_name", None):
            remedy = f"Write -- before a text that begins with a dash. {remedy}"
        output.error("UsageError", error.format_message(), remedy)
        return error.exit_code
    if isinstance(error, FintuneError):
        output.error(type(error).__name__, error.message, error.remedy)
        return error.exit_code
    first_line = (str(error).strip() or "no message").splitlines()[0].rstrip(".")
    summary = f"fintune failed unexpectedly ({type(error).__name__}: {first_line})."
    output.error(type(error).__name__, summary, "" if output.debug else "Add --debug to see where.")
    return 1
