"""A function called in a process of its own, so that peaks of memory and compiled code belong to it alone.

Enters: a function at the top of a module, and arguments. Leaves: what it returned, or why it failed. For the CPU,
processes are forked from a server that has imported the libraries and done nothing else, where the platform has one:
they start at once. For a CUDA device each starts from nothing: libraries ask CUDA, as they are imported, what devices
there are, after which no process forked from theirs can use one.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fintune.schema.errors import FintuneError

PRELOADED = "fintune.bench.worker"  # by the server of processes

_LOOK_EVERY_S = 0.2


@dataclass(frozen=True)
class Finished:
    """How a process ended.

    Attributes:
        value: what the function returned; None where it failed.
        problem: why it failed, in a sentence; empty where it did not.
        seconds: of the process.
    """

    value: Any
    problem: str
    seconds: float


def call_apart(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    *,
    limit_s: float,
    device: str = "cpu",
    variables: Mapping[str, str] | None = None,
    stopping: threading.Event | None = None,
) -> Finished:
    """Calls a function in a fresh process and waits for it.

    Args:
        function: importable by its module and name.
        arguments: plain data.
        limit_s: the process is ended after so long.
        device: ``cpu`` or ``cuda``: what it will use.
        variables: of its environment, set before the function's module is imported.
        stopping: once set, the process is ended.
    """
    is_forked = device == "cpu" and sys.platform != "win32"
    context: Any = multiprocessing.get_context("forkserver" if is_forked else "spawn")
    if is_forked:
        context.set_forkserver_preload([PRELOADED])
    ours, theirs = context.Pipe()
    process = context.Process(target=_answer, args=(theirs, dict(variables or {})), daemon=False)
    started = time.perf_counter()
    process.start()
    theirs.close()
    value, problem = None, ""
    try:
        # Not among the arguments of the process: to read it is to import its module, and the modules that it imports.
        ours.send((function, arguments))
        if _answers(ours, started + limit_s, stopping):
            value, problem = ours.recv()
        else:
            was_stopped = stopping is not None and stopping.is_set()
            problem = "was stopped" if was_stopped else f"took longer than {limit_s:g} seconds and was ended"
    except (EOFError, OSError):
        process.join()
        problem = f"its process ended with code {process.exitcode} before it answered; memory may have run out"
    finally:
        if process.is_alive() and (problem or value is None):
            process.kill()
        process.join()
        ours.close()
    return Finished(value, problem, time.perf_counter() - started)


def _answers(pipe: Any, deadline: float, stopping: threading.Event | None) -> bool:
    """Waits until the process answers or ends; False where time is over or the wait is stopped before that."""
    while stopping is None or not stopping.is_set():
        left = deadline - time.perf_counter()
        if pipe.poll(max(0.0, left if stopping is None else min(left, _LOOK_EVERY_S))):
            return True
        if left <= 0:
            return False
    return False


def _answer(pipe: Any, variables: dict[str, str]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the first decides
    os.environ.update(variables)
    with tempfile.TemporaryDirectory(prefix="fintune-bench-", ignore_cleanup_errors=True) as compiled:
        # Compiled code of its own: what is kept from an earlier variant would make compilation look free.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = compiled
        os.environ["TRITON_CACHE_DIR"] = os.path.join(compiled, "triton")
        pipe.send(_outcome(pipe))
        pipe.close()


def _outcome(pipe: Any) -> tuple[Any, str]:
    import torch

    try:
        function, arguments = pipe.recv()
        return function(*arguments), ""
    except torch.OutOfMemoryError:
        return None, "memory ran out"
    except FintuneError as error:
        return None, str(error)
    except Exception as error:  # whatever a library raises is one cell of the table, not the end of the bench
        lines = str(error).strip().splitlines()
        return None, f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:300]
