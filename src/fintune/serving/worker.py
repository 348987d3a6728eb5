"""A process that answers groups of rows for another: ``python -m fintune.serving.worker``.

Enters, on standard input: a line with the question (``Posed``), then a line for each group. Leaves, on standard output:
a line with what must be known of the question, then a line for each group; or a line with an error. It ends when its
standard input does, even in the middle of a group: then nobody is left to answer.
"""

from __future__ import annotations

import json
import os
import sys
from queue import Queue, SimpleQueue
from threading import Thread
from typing import IO, Any

from fintune.schema.errors import FintuneError
from fintune.serving.answers import Question
from fintune.serving.posed import Posed


def main() -> None:
    """Answers until the input ends."""
    told = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what libraries print must not land among the answers
    lines: SimpleQueue[str] = SimpleQueue()
    Thread(target=_listen, args=(sys.stdin, lines), daemon=True).start()
    try:
        question = (posed := Posed(**json.loads(lines.get()))).open()
        _tell(told, posed.known(question))
        answer(question, lines, told)
    except FintuneError as error:
        _tell(told, {"error": [type(error).__name__, error.message, error.remedy]})
        raise SystemExit(1) from None


def _listen(stream: IO[str], lines: SimpleQueue[str]) -> None:
    """Reads ahead, so that whoever writes never waits for an answer."""
    for line in stream:
        lines.put(line)
    os._exit(0)


def answer(question: Question, lines: SimpleQueue[str], told: IO[str]) -> None:
    """Answers the groups of the lines as they come, and reads the next one meanwhile.

    Raises:
        FintuneError: what the question raises.
    """
    ahead: Queue[Any] = Queue(maxsize=1)
    Thread(target=_read_ahead, args=(question, lines, ahead), daemon=True).start()
    while True:
        start, read = _unless_error(ahead.get())
        _tell(told, {"start": start, "values": list(question.values(read))})


def _read_ahead(question: Question, lines: SimpleQueue[str], ahead: Queue[Any]) -> None:
    """Reads the next group while one is answered; what goes wrong is handed over, and ends it."""
    try:
        while True:
            group = json.loads(lines.get())
            ahead.put((group["start"], question.read(group["texts"])))
    except BaseException as error:
        ahead.put(error)


def _unless_error(handed: Any) -> Any:
    if isinstance(handed, BaseException):
        raise handed
    return handed


def _tell(stream: IO[str], value: dict[str, Any]) -> None:
    stream.write(json.dumps(value) + "\n")
    stream.flush()


if __name__ == "__main__":
    main()
