"""Several processes on this machine that answer groups of rows side by side, one per GPU or a few on the CPU.

::

    this process: reads rows ──groups──▶ process 1: model ──answers──▶ this process: writes parts
                               └───────▶ process 2: model ──────────┘

Enters: groups. Leaves: their answers in any order. Each process holds two groups, one that it answers and one that it
reads meanwhile, and is given the next when it has answered one, so that none waits for a slower one. One that dies ends
them all, in one sentence; what was answered before is kept.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from queue import Queue
from threading import Event, Lock, Thread
from typing import Any

from fintune.schema import errors
from fintune.schema.errors import DataError, FintuneError, RunError
from fintune.serving.groups import Answered, Engine, Group
from fintune.serving.posed import Posed

_PROGRAM = ("-m", "fintune.serving.worker")
AGAIN = "Start the same command again: it goes on with the groups of rows that are missing."


@dataclass(frozen=True)
class Workers:
    """Processes with the model loaded.

    Attributes:
        known: what they say of the question (``Posed.known``).
        engine: answers groups with all of them.
    """

    known: Mapping[str, Any]
    engine: Engine


@contextmanager
def workers_for(posed: Posed, count: int, *, gpus: bool = False) -> Iterator[Workers]:
    """Starts the processes, and ends them with the block.

    Args:
        posed: the question.
        count: how many.
        gpus: each gets a GPU of its own; else they share the CPU's threads.

    Raises:
        RunError: there are fewer GPUs, or a process died.
        FintuneError: what a process could not do, as it would be raised here.
    """
    workers: list[_Worker] = []
    try:
        workers += (_Worker(number, count, _environment(number, count, gpus)) for number in range(count))
        for worker in workers:
            worker.give(asdict(posed))
        known = [worker.take() for worker in workers]
        if any(other["fingerprint"] != known[0]["fingerprint"] for other in known):
            raise DataError(f"{posed.place} changed while it was loaded.", "Start again.")
        yield Workers(known[0], lambda groups: _side_by_side(workers, groups))
    finally:
        for worker in workers:
            worker.end()


def _environment(number: int, count: int, gpus: bool) -> dict[str, str]:
    if gpus:
        return {**os.environ, "CUDA_VISIBLE_DEVICES": _gpus(count)[number]}
    # Forty threads for each of eight processes on forty cores would only be in each other's way.
    threads = max(1, len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)))
    return {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, threads // count)))}


def require_gpus(count: int) -> None:
    """Raises a ``RunError`` where PyTorch finds fewer GPUs here."""
    from torch.cuda import device_count

    if (found := device_count()) < count:
        remedy = "Ask for fewer." if found else "Leave --gpus out to use the CPU; `fintune doctor` says what is here."
        raise RunError(f"--gpus {count} was asked for, but PyTorch finds {found} on this machine.", remedy)


def _gpus(count: int) -> list[str]:
    """The GPUs by the names under which processes are shown them."""
    require_gpus(count)
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    return shown.split(",") if shown else [str(number) for number in range(count)]


class _Worker:
    """One process, with its number among all for messages."""

    def __init__(self, number: int, count: int, environment: Mapping[str, str]) -> None:
        self.name = f"Process {number + 1} of {count}"
        self.process = subprocess.Popen(
            [sys.executable, *_PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=dict(environment),
            text=True,
            encoding="ascii",
            start_new_session=True,  # Ctrl-C comes to this process, which ends the others
        )

    def give(self, value: Mapping[str, Any]) -> None:
        """Sends a line."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(value) + "\n")
            self.process.stdin.flush()
        except OSError:  # it is gone
            raise self._death() from None

    def take(self) -> dict[str, Any]:
        """Waits for a line."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.endswith("\n"):
            raise self._death()
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            kind, message, remedy = found["error"]
            raise getattr(errors, kind, FintuneError)(message, remedy)
        return found

    def _death(self) -> RunError:
        code = self.process.wait()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return RunError(f"{self.name} ended with {how}; the others were stopped.", AGAIN)

    def end(self) -> None:
        """Ends it, whatever it is doing."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with suppress(OSError):  # what was still to be sent, to a process that is gone
                    stream.close()


def _side_by_side(workers: list[_Worker], groups: Iterator[Group]) -> Iterator[Answered]:
    """Answers as they come. A thread for each process gives it a second group while it answers the first."""
    lock, left = Lock(), Event()
    # After ``left`` is set a thread puts two things at most, for which an empty queue has room: none waits for ever.
    answers: Queue[Answered | BaseException | None] = Queue(maxsize=2 * len(workers))

    def next_group() -> Group | None:
        with lock:
            return next(groups, None)

    def serve(worker: _Worker) -> None:
        try:
            given = 0
            while not left.is_set() and ((group := next_group() if given < 2 else None) is not None or given):
                if group is not None:
                    worker.give(asdict(group))
                    given += 1
                    if given < 2:
                        continue
                found = worker.take()
                given -= 1
                answers.put(Answered(found["start"], found["values"]))
            answers.put(None)
        except BaseException as error:  # it belongs to the thread that reads
            answers.put(error)

    threads = [Thread(target=serve, args=(worker,), daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    try:
        yield from _taken(answers, len(threads))
    finally:  # also where whoever asked has stopped reading
        left.set()
        while not answers.empty():
            answers.get()


def _taken(answers: Queue[Answered | BaseException | None], at_work: int) -> Iterator[Answered]:
    """What is put there until each of the threads at work has put None, or one a failure."""
    failure = None
    while at_work and failure is None:
        found = answers.get()
        if isinstance(found, Answered):
            yield found
        elif found is None:
            at_work -= 1
        else:
            failure = found
    while failure is not None and not answers.empty():  # done before the failure was noticed: not to be done again
        if isinstance(found := answers.get(), Answered):
            yield found
    if failure is not None:
        raise failure
