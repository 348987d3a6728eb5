"""Clocks and gauges of one run of the bench.

Enters: what is to be timed. Leaves: ``Measured``: speed once warm, what warming up took, peak memory, the held-out loss
along the way, and the time of a written token.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

TURN = "FINTUNE_BENCH_TURN"  # names the lock file of a device that several processes share
Clock = Literal["wall", "processor"]


@dataclass(frozen=True)
class Point:
    """The held-out loss after some training.

    Attributes:
        seconds: of training, without warming up and without measuring.
        tokens: trained on.
        loss: see ``Measured.unit``.
    """

    seconds: float
    tokens: int
    loss: float


@dataclass
class Measured:
    """One run.

    Attributes:
        unit: of the losses.
        cold_s: the first passes, compilation included, before any update.
        peak_bytes: of training: reserved on the GPU, or resident beyond what the process held before the model.
        parameters: of the model.
        trained: weights that were trained.
        curve: the held-out loss along the way; the first point is before any update.
        chunk_rates: tokens a second of each part of the run.
        latency_ms: of a written token, one answer at a time.
        notes: what to know about it.
    """

    unit: str
    cold_s: float = 0.0
    peak_bytes: int = 0
    parameters: int = 0
    trained: int = 0
    curve: list[Point] = field(default_factory=list)
    chunk_rates: list[float] = field(default_factory=list)
    latency_ms: float | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def tokens_per_s(self) -> float | None:
        """The median over the parts of the run, which a short disturbance does not move."""
        return statistics.median(self.chunk_rates) if self.chunk_rates else None


class Gauge:
    """The peak memory of this process from now on.

    Args:
        device: whose memory is meant.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._before = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            import psutil

            self._before = psutil.Process().memory_info().rss

    def peak(self) -> int:
        """Bytes: reserved by PyTorch on the GPU; on the CPU resident beyond what was when the gauge was made."""
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_reserved(self.device))
        return max(0, _peak_resident() - self._before)


def _peak_resident() -> int:
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def wait_for(device: torch.device) -> None:
    """Returns once the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def own_turn(*, shared: bool = False) -> Iterator[None]:
    """Where several processes share a device: waits until no other is measuring or warming up; until the end none is.

    Args:
        shared: of work that is not measured, such as warming up; others may do the like meanwhile.
    """
    place = os.environ.get(TURN)
    if place is None:
        yield
        return
    import fcntl  # no device is shared on Windows

    with open(place, "a", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
        if shared and torch.cuda.is_available():
            torch.cuda.empty_cache()  # others need what only waits here


def seconds_of(work: Callable[[], object], device: torch.device, clock: Clock = "wall") -> float:
    """Seconds until the work is done, on the device too; or those in which this process was given a processor."""
    now = time.process_time if clock == "processor" else time.perf_counter
    wait_for(device)
    started = now()
    work()
    wait_for(device)
    return now() - started


def run_in_chunks(
    measured: Measured,
    device: torch.device,
    *,
    steps: int,
    chunks: int,
    clock: Clock,
    step: Callable[[int], int],
    loss: Callable[[], float] | None,
) -> None:
    """Runs all steps, timing each chunk of them, and measures the held-out loss before the first and after each.

    Args:
        measured: gets the curve and the rates.
        device: where the work is done.
        steps: of the run.
        chunks: parts of the run, at most ``steps``.
        clock: what seconds are.
        step: does the step of a number, and says how many tokens it took.
        loss: the held-out loss; None measures speed alone.
    """
    seconds, tokens = 0.0, 0
    bounds = [round(part * steps / chunks) for part in range(chunks + 1)]
    if loss is not None:
        measured.curve.append(Point(seconds, tokens, loss()))
    for first, last in zip(bounds, bounds[1:], strict=False):
        counts: list[int] = []

        def work(numbers: range = range(first, last), counts: list[int] = counts) -> None:
            counts.extend(step(number) for number in numbers)

        took = seconds_of(work, device, clock)
        seconds, tokens = seconds + took, tokens + sum(counts)
        measured.chunk_rates.append(sum(counts) / took)
        if loss is not None:
            measured.curve.append(Point(seconds, tokens, loss()))


@torch.no_grad()
def written_token_ms(
    model: Any, prompt: torch.Tensor, new_tokens: int, *, use_cache: bool, clock: Clock, repeats: int = 3
) -> float:
    """Milliseconds a written token takes, one answer at a time, likeliest token first; the median of repeats.

    The prompt is read in that time too. Compiled code is left aside: it would be compiled anew for each length.

    Args:
        model: of ``transformers``, in evaluation mode.
        prompt: (1, T) token ids.
        new_tokens: to write.
        use_cache: keep keys and values of earlier tokens.
        clock: what seconds are.
        repeats: how often, after a first time that does not count.
    """

    def write() -> None:
        model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            use_cache=use_cache,
            do_sample=False,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            pad_token_id=0,
        )

    with torch.compiler.set_stance("force_eager"):
        write()
        times = [seconds_of(write, prompt.device, clock) for _ in range(repeats)]
    return 1000 * statistics.median(times) / new_tokens
