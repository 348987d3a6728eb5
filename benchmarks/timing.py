"""Timing of short pieces of work, shared by the benchmarks of kernels.

Enters: something to call. Leaves: milliseconds of each repeat.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def time_on_gpu(work: Callable[[], object], repeats: int) -> list[float]:
    """Milliseconds of each repeat, the second-level cache overwritten before, as the rest of a layer would."""
    flush = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for _ in range(3):
        work()
    for first, last in events:
        for _ in range(8):  # keeps the card busy while the launches are prepared
            flush.zero_()
        first.record()
        work()
        last.record()
    torch.cuda.synchronize()
    return [first.elapsed_time(last) for first, last in events]


def time_on_cpu(work: Callable[[], object], repeats: int) -> list[float]:
    """Milliseconds of each repeat."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - started))
    return times
