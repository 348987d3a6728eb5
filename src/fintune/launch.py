"""Several processes of this program on this machine, one per GPU: started together, and ended together.

Enters: arguments of the command line. Leaves: the exit code of the run. Where several machines take part, torchrun or
Slurm starts the processes; ``docs/distributed.md`` says how.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from fintune.schema.errors import RunError
from fintune.schema.processes import this_process
from fintune.training.watch import AGAIN, FAILED, GRACE_S

_PROGRAM = ("-m", "fintune.cli")


def is_launched() -> bool:
    """Whether a launcher has started this process already."""
    return "WORLD_SIZE" in os.environ or this_process().world > 1


def launch(count: int, arguments: Sequence[str], *, gpus: bool) -> int:
    """Runs the command in ``count`` processes and returns their exit code.

    The store at which they meet lives here, so that it outlives whichever of them is killed.

    Args:
        count: processes.
        arguments: of the command line.
        gpus: each of them needs a GPU of its own.

    Raises:
        RunError: there are fewer GPUs, or a process was killed.
    """
    from torch._C._distributed_c10d import TCPStore
    from torch.cuda import device_count

    if gpus and device_count() < count:
        raise RunError(f"--gpus {count} was asked for, but this machine has {device_count()}.", "Ask for fewer.")
    store: Any = TCPStore("localhost", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30))
    processes = [
        subprocess.Popen(
            [sys.executable, *_PROGRAM, *arguments],
            env={**os.environ, **_variables(rank, count, store.port)},
            start_new_session=True,  # Ctrl-C comes here, and is passed on once
        )
        for rank in range(count)
    ]
    with _passing_on_signals(processes):
        try:
            codes, first = _wait(processes)
        finally:
            _end(processes)
    if not any(codes):
        return 0
    if store.check([FAILED]):  # the process that failed has said why
        speaker = int(store.get(FAILED).split(b":")[0])
        return codes[speaker] if codes[speaker] > 0 else 1
    raise RunError(f"Process {first} of {count} ended with {_in_words(codes[first])}; the others were stopped.", AGAIN)


def _variables(rank: int, count: int, port: int) -> dict[str, str]:
    threads = max(1, (os.cpu_count() or 1) // count)
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # torchrun's way to say that no process need open the store
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
    }


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> tuple[list[int], int]:
    """Exit codes, once all have ended or the time is over that they have to follow one that failed; and which did.

    NCCL aborts a process that has lost another, so the lowest number that failed need not be the cause.
    """
    deadline, first = math.inf, 0
    while True:
        codes = [process.poll() for process in processes]
        if deadline == math.inf and any(codes):
            first = next(rank for rank, code in enumerate(codes) if code)
            deadline = time.monotonic() + GRACE_S
        if None not in codes or time.monotonic() > deadline:
            return [code or 0 for code in codes], first
        time.sleep(0.1)


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Kills what is left; each process is the leader of a group, to which its helpers belong."""
    for process in processes:
        if process.poll() is None:
            process.kill()
    for process in processes:
        process.wait()


@contextmanager
def _passing_on_signals(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """The processes stop as one would that had been started by itself: after a step, and at once the second time."""

    def pass_on(number: int, frame: Any) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    before: dict[int, Callable[..., Any] | int | None] = {
        number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _in_words(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
