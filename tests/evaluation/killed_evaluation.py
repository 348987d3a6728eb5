"""An evaluation in a process of its own that kills itself.

In the write of a chunk that it is told, it stops with SIGKILL when half of the bytes are in the file.
"""

from __future__ import annotations

import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import torch

import fintune
from fintune import session
from fintune.evaluation import resuming


def evaluate(send: Connection, base: Path, place: Path, chunk: int, killed_at: int) -> None:
    """Sends the number of chunks that were written; is killed in write number ``killed_at``, or never if it is 0."""
    append, appended = resuming.ScoredFile.append, 0

    def dies(file, records):
        nonlocal appended
        appended += 1
        before = file.path.stat().st_size
        append(file, records)
        if appended == killed_at:
            os.truncate(file.path, (before + file.path.stat().st_size) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    os.environ["FINTUNE_CACHE"] = str(place.parent / "cache")
    session.CHUNK = chunk
    resuming.ScoredFile.append = dies
    fintune.evaluate(
        str(base),
        tasks=["tfns:sample"],
        limit=20,
        base_variants=["calibrated"],
        output_dir=place,
        overrides=["evaluation.bootstrap_samples=100", "report.enabled=false"],
        progress=False,
    )
    send.send(appended)
