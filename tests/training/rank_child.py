"""The command line with a mishap built in: what FINTUNE_TEST_MISHAP names, as rank:step:what, happens there.

Either as a program of its own, or as forks of the server of ``tests.forks``, which has the libraries loaded.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import NoReturn

from fintune import launch
from fintune.cli import main
from fintune.schema.errors import RunError
from fintune.schema.processes import this_process

PROGRAM = ("-m", "tests.training.rank_child")


def mishap(what: str) -> None:
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "interrupt":
        os.kill(os.getpid(), signal.SIGTERM)
    if what == "error":
        raise RunError("The planted error came.", "Remove it.")
    if what == "memory":
        raise MemoryError("planted")


def plant(rank: int, step: int, what: str) -> None:
    if rank != this_process().rank:
        return
    from fintune.training.trainer import TreeTrainer

    train_step = TreeTrainer.training_step

    def stumbles(self, *arguments):
        if self.state.global_step == step:
            mishap(what)
        return train_step(self, *arguments)

    TreeTrainer.training_step = stumbles


def command(arguments: Sequence[str]) -> int:
    """The command's exit code, unless the mishap comes first."""
    launch._PROGRAM = PROGRAM  # here, for tests import this module too
    if planted := os.environ.get("FINTUNE_TEST_MISHAP"):
        rank, step, what = planted.split(":")
        plant(int(rank), int(step), what)
    return main(arguments)


def forked(arguments: Sequence[str], environment: dict[str, str], outputs: Sequence[str], processes: int) -> None:
    """The command in a fork: its outputs are two files, its processes forks too, and it ends as a program does."""
    for descriptor, path in zip((1, 2), outputs, strict=True):
        opened = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(opened, descriptor)
        os.close(opened)
    # Before anything starts a thread, of which a fork would have no copy.
    spare = [SpareProcess() for _ in range(processes if processes > 1 else 0)]
    launch.subprocess = SimpleNamespace(Popen=lambda program, **options: spare.pop().become(program, **options))
    _end_as_program(arguments, environment)


def _end_as_program(arguments: Sequence[str], environment: dict[str, str]) -> NoReturn:
    import torch

    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))  # the library has read the variable in the server
    code = command(arguments)
    atexit._run_exitfuncs()  # which multiprocessing leaves out
    sys.exit(code)


class SpareProcess:
    """A fork that waits to become one of the run's processes: what ``launch`` needs of ``subprocess.Popen``."""

    def __init__(self) -> None:
        receive, self._send = multiprocessing.Pipe(duplex=False)
        self.pid = os.fork()
        self._code: int | None = None
        if self.pid == 0:
            self._send.close()
            os.setsid()
            _end_as_program(*receive.recv())
        receive.close()

    def become(self, program: Sequence[str], *, env: dict[str, str], start_new_session: bool) -> SpareProcess:
        start = 1 + len(PROGRAM)
        assert tuple(program[:start]) == (sys.executable, *PROGRAM) and start_new_session
        self._send.send((program[start:], env))
        return self

    def poll(self) -> int | None:
        return self._code if self._code is not None else self._ended(os.WNOHANG)

    def wait(self) -> None:
        if self._code is None:
            self._ended(0)

    def _ended(self, options: int) -> int | None:
        pid, status = os.waitpid(self.pid, options)
        if pid:
            self._code = os.waitstatus_to_exitcode(status)
        return self._code

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


if __name__ == "__main__":
    sys.exit(command(sys.argv[1:]))
