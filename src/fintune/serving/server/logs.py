"""The server's log: one JSON object a line, on standard error.

Enters: what happened. Leaves: lines for machines. Prompts and answers are in none of them unless the server was told
to write them. What modules of the server log themselves, errors with their traceback, becomes such lines too.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any


def _to_stderr(line: str) -> None:
    sys.stderr.write(line)
    sys.stderr.flush()


@dataclass(frozen=True)
class ServerLog:
    """Where lines go.

    Attributes:
        write: takes a line with its end.
        text: whether prompts and answers are written.
    """

    write: Callable[[str], Any] = _to_stderr
    text: bool = False

    def event(self, event: str, **facts: Any) -> None:
        """Writes one line; facts that are None are left out. What cannot be written is lost, and no error."""
        told = {name: _short(value) for name, value in facts.items() if value is not None}
        line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **told})
        with suppress(OSError, ValueError):  # a full disk, a pipe whose reader has gone, a closed file
            self.write(f"{line}\n")


def _short(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


class _Lines(logging.Handler):
    """Records as lines of a server's log."""

    def __init__(self, server_log: ServerLog) -> None:
        super().__init__()
        self._log, self._formatter = server_log, logging.Formatter()

    def emit(self, record: logging.LogRecord) -> None:
        trace = self._formatter.formatException(record.exc_info) if record.exc_info else None
        try:
            message = record.getMessage()
        except Exception:  # its arguments do not fit: whoever says something is not to fail for that
            message = str(record.msg)
        self._log.event("message", level=record.levelname.lower(), message=message, traceback=trace)


@contextmanager
def collected(server_log: ServerLog) -> Iterator[None]:
    """While the block runs, what fintune's modules say goes into the server's log."""
    logger, handler = logging.getLogger("fintune"), _Lines(server_log)
    before, propagates = logger.handlers[:], logger.propagate
    logger.handlers[:], logger.propagate = [handler], False
    try:
        yield
    finally:
        logger.handlers[:], logger.propagate = before, propagates
