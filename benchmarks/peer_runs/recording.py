"""The clock and the memory gauge of one subprocess, written down after every window.

Enters: each step's tokens and samples as it ends. Leaves: a JSON file that is whole at any time.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fintune.bench.measuring import TURN
from peer_runs.settings import Job

GIB = 2**30


@dataclass(frozen=True)
class Window:
    """Several steps timed together."""

    seconds: float
    tokens: int
    samples: int


class Recorder:
    """Follows one job; call ``ready`` when the model stands, ``step_done`` after every step, ``finish`` at the end."""

    def __init__(self, job: Job, file: Path) -> None:
        self.job = job
        self.file = file
        self.facts: dict[str, Any] = {}
        self.windows: list[Window] = []
        self._steps = self._tokens = self._samples = 0
        self._begun = self._window_begun = 0.0
        self._on_gpu = job.device.startswith("cuda")

    def ready(self) -> None:
        """Loading is over: what it needed is noted apart, and the gauges start anew."""
        self._synchronize()
        self.facts["load_s"] = round(time.time() - self.job.started, 2)
        if self._on_gpu:
            self.facts["load_peak_gib"] = round(torch.cuda.max_memory_allocated() / GIB, 3)
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        self._begun = time.perf_counter()

    def step_done(self, tokens: int, samples: int) -> None:
        """Counts one optimiser step; the device is waited for only where a time is taken."""
        self._steps += 1
        after = self._steps - self.job.warm_up
        for name, number in (("first_step_s", 1), ("cold_s", self.job.warm_up)):
            if self._steps == number:
                self._synchronize()
                self.facts[name] = round(time.perf_counter() - self._begun, 2)
        if after == 0:
            self._window_begun = time.perf_counter()
        if after <= 0:
            return
        self._tokens += tokens
        self._samples += samples
        if after % self.job.window == 0:
            self._synchronize()
            now = time.perf_counter()
            self.windows.append(Window(now - self._window_begun, self._tokens, self._samples))
            self._tokens = self._samples = 0
            self.write()
            self._window_begun = time.perf_counter()

    def finish(self, loss: float) -> None:
        """Notes the mean loss of the last window's steps, and what everything ran on."""
        self.facts |= {"loss": round(loss, 5), "steps": self._steps, "finished": True, "environment": environment()}
        self.write()

    def fail(self, error: BaseException) -> None:
        """Notes why there is no more."""
        self.facts["error"] = f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]
        self.write()

    def write(self) -> None:
        """Writes what is known so far, in one step."""
        aside = self.file.with_suffix(".tmp")
        result = {**self.facts, **self._memory(), **rates(self.windows), "windows": [asdict(w) for w in self.windows]}
        aside.write_text(json.dumps(result, indent=2), encoding="utf-8")
        os.replace(aside, self.file)

    def _memory(self) -> dict[str, float]:
        if not self._on_gpu:
            return {}
        own = {
            "peak_allocated_gib": round(torch.cuda.max_memory_allocated() / GIB, 3),
            "peak_reserved_gib": round(torch.cuda.max_memory_reserved() / GIB, 3),
        }
        if TURN in os.environ:  # the contexts of those that wait lie on the device too
            return own
        return {**own, "peak_device_gib": round(device_peak_bytes(on_gpu=True) / GIB, 3)}

    def _synchronize(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize()


def device_peak_bytes(on_gpu: bool) -> int:
    """The peak of memory reserved, and what lies outside PyTorch's allocator, the context above all.

    On the CPU the peak of the process, which no reset takes back.
    """
    if not on_gpu:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    free, total = torch.cuda.mem_get_info()
    outside = total - free - torch.cuda.memory_reserved()
    return int(torch.cuda.max_memory_reserved() + outside)


def rates(windows: list[Window]) -> dict[str, list[float]]:
    """Median, least and most of tokens and samples per second."""
    if not windows:
        return {}
    found = {}
    for name in ("tokens", "samples"):
        each = [getattr(window, name) / window.seconds for window in windows]
        found[f"{name}_per_s"] = [round(value, 2) for value in (statistics.median(each), min(each), max(each))]
    return found


def environment() -> dict[str, Any]:
    """What the subprocess ran on, the peers' versions among it."""
    from fintune.environment import describe_environment, library_version

    peers = {name: library_version(name) for name in ("unsloth", "unsloth_zoo", "trl", "liger-kernel", "triton")}
    return {**describe_environment(), "peers": {name: found for name, found in peers.items() if found}}
