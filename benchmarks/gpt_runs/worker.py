"""One process that holds one model and answers commands: prepare, time a window, run the race.

Enters: a job file, then a JSON command a line on standard input. Leaves: a marked JSON answer a line on standard
output; libraries may print what they like beside them. Between commands no memory is held but weights and moments.
"""

from __future__ import annotations

import gc
import json
import math
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt_runs.contenders import Contender, contender, shape
from gpt_runs.settings import Job, job_from
from gpt_runs.tokens import Rows

MARK = "@@ "
_WARM_UP = 2  # steps before a window of the probe; the first compiles


def serve(file: Path) -> None:
    """Answers until told to stop; a failure is an answer too, and ends the process."""
    job = job_from(json.loads(file.read_text(encoding="utf-8")))
    if not job.compiles:
        leave_uncompiled()
    torch._dynamo.config.automatic_dynamic_shapes = False  # else a second number of rows would get slower kernels
    end_with_the_benchmark()
    commands = commands_read()
    worker = Worker(job)
    while True:
        line = commands.get()
        command = json.loads(line)
        name = command.pop("do")
        if name == "stop":
            return
        try:
            answer = getattr(worker, name)(**command)
        except Exception as error:
            print(MARK + json.dumps({"error": said(error)}), flush=True)
            raise
        print(MARK + json.dumps(answer), flush=True)


def end_with_the_benchmark() -> None:
    """Linux kills this process when the thread that started it has ended."""
    if sys.platform == "linux":
        import ctypes

        set_parent_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, signal.SIGKILL, 0, 0, 0)


def commands_read() -> queue.SimpleQueue[str]:
    """Lines of standard input; its end ends this process and what it started, also while it trains."""
    commands: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        with open(0, "rb", buffering=0, closefd=False) as stream:  # no lock is held at exit, as sys.stdin's would be
            for line in stream:
                commands.put(line.decode())
        if os.getpgrp() == os.getpid():  # compilers are in the same group
            os.killpg(os.getpid(), signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=read, daemon=True).start()
    return commands


def said(error: BaseException) -> str:
    """The first line of what an error says."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def leave_uncompiled() -> None:
    """``torch.compile`` gives back what it was given, also as the decorator that nanochat's optimiser uses."""

    def as_it_is(function: Any = None, **options: Any) -> Any:
        return function if function is not None else lambda decorated: decorated

    torch.compile = as_it_is  # type: ignore[assignment]  # in this process alone
    torch.nn.Module.compile = lambda module, **options: None  # type: ignore[method-assign]  # likewise


class Worker:
    """Trains one variant.

    Args:
        job: what to run.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.rows = Rows(Path(job.tokens), job.length, job.validation_rows, job.device)
        self.contender: Contender = contender(job)
        # on the CPU, before any step: what the race starts from
        self.first = {name: value.cpu().clone() for name, value in self.contender.model.state_dict().items()}
        self.optimizer = self.contender.optimizer()
        self.at_once = job.candidates[0]
        self.next_row = 0

    def prepare(self) -> dict[str, Any]:
        """Compiles, tries how many rows at once are fastest, and says what the model is."""
        started = time.perf_counter()
        rates = self._tried()
        fitting = {rows: found["tokens_per_s"] for rows, found in rates.items() if "error" not in found}
        if not fitting:
            raise RuntimeError(f"no number of rows at once fits into memory: {rates}")
        self.at_once = int(max(fitting, key=lambda rows: fitting[rows]))
        return {
            "rows_at_once": self.at_once,
            "tried": rates,
            "prepared_s": round(time.perf_counter() - started, 1),
            "weights": sum(parameter.numel() for parameter in self.contender.model.parameters()),
            "multiplied": self.contender.multiplied,
            "flops_per_token": self._flops_per_token(),
            "peak_flops": self._peak_flops(),
            "device_name": torch.cuda.get_device_name() if self.job.device == "cuda" else "cpu",
            "torch": torch.__version__,
            **self.contender.notes,
        }

    def _tried(self) -> dict[str, Any]:
        """A window of each number of rows; more than one that does not fit are left out."""
        rates: dict[str, Any] = {}
        waiting = [rows for rows in self.job.candidates if self.job.rows_per_step % rows == 0]
        while waiting:
            self.at_once = rows = waiting.pop(0)
            try:
                cold = time.perf_counter()
                self._steps(_WARM_UP)
                cold = time.perf_counter() - cold
                rates[str(rows)] = {**self.window(1), "cold_s": round(cold, 1)}
            except torch.OutOfMemoryError as error:
                is_fewest = all("error" in found for found in rates.values())
                rates[str(rows)] = {"error": said(error)}
                # One number of rows is the same for all, and others may fill the memory meanwhile.
                is_fixed = len(self.job.candidates) == 1
                waiting = [rows // 2] if is_fewest and rows % 2 == 0 and not is_fixed else []
            finally:
                self._release()
        return rates

    def window(self, steps: int) -> dict[str, Any]:
        """Times whole optimiser steps."""
        if self.job.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds, loss = self._timed(steps)
        peak = torch.cuda.max_memory_allocated() if self.job.device == "cuda" else 0
        tokens = steps * self.job.rows_per_step * self.job.length
        self._release()
        return {"tokens_per_s": tokens / seconds, "seconds": seconds, "loss": loss.item(), "peak_bytes": peak}

    def race(self, curve: str) -> dict[str, Any]:
        """Trains from the first weights to the end of the schedule; validations are in the curve, not in the time.

        Compilation is not in the time either: ``prepare`` took steps, which are forgotten here.

        Args:
            curve: file to which each validation is appended as it is made.
        """
        cold = time.perf_counter()
        self._steps(1)
        self.validate()
        cold = time.perf_counter() - cold
        self.start_afresh()
        steps = max(1, round(self.job.steps * self.job.variant.horizon))
        factor = _schedule(self.job, steps)
        peaks = [group["lr"] for group in self.optimizer.param_groups]
        seconds, point = 0.0, {}
        for step in range(steps):
            for group, peak in zip(self.optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor(step)
            seconds += self._timed(1)[0]
            if (step + 1) % self.job.validate_every == 0 or step + 1 == steps:
                tokens = (step + 1) * self.job.rows_per_step * self.job.length
                point = {"step": step + 1, "tokens": tokens, "seconds": seconds, "validation_loss": self.validate()}
                with Path(curve).open("a", encoding="utf-8") as file:
                    file.write(json.dumps(point) + "\n")
        return {**point, "steps": steps, "cold_s": round(cold, 1)}

    def start_afresh(self) -> None:
        """The first weights, an optimiser that has seen nothing, and the first row."""
        self.contender.model.load_state_dict(self.first)
        self.optimizer, self.next_row = self.contender.optimizer(), 0

    @torch.no_grad()
    def validate(self) -> float:
        """Mean loss of the held-out rows; those that fill no batch are left out by ``main``."""
        losses = []
        for first in range(0, self.job.validation_rows, self.at_once):
            with self.contender.precision():
                losses.append(self.contender.loss(*self.rows.held_out(first, self.at_once)).float())
        return float(torch.stack(losses).mean())

    def _timed(self, steps: int) -> tuple[float, Tensor]:
        """Seconds and the last loss; Python collects no garbage meanwhile."""
        gc.disable()
        self._wait()
        started = time.perf_counter()
        loss = self._steps(steps)
        self._wait()
        seconds = time.perf_counter() - started
        gc.enable()
        return seconds, loss

    def _steps(self, steps: int) -> Tensor:
        loss = torch.zeros(())
        for _ in range(steps):
            loss = self._step()
        return loss

    def _step(self) -> Tensor:
        parts = self.job.rows_per_step // self.at_once
        total = torch.zeros((), device=self.job.device)
        for _ in range(parts):
            ids, targets = self.rows.training(self.next_row, self.at_once)
            self.next_row += self.at_once
            with self.contender.precision():
                loss = self.contender.loss(ids, targets) / parts
            loss.backward()
            total += loss.detach()
        if self.contender.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.contender.model.parameters(), self.contender.clip)
        self.optimizer.step()
        for parameter in self.contender.model.parameters():
            parameter.grad = None
        return total

    def _wait(self) -> None:
        if self.job.device == "cuda":
            torch.cuda.synchronize()

    def _release(self) -> None:
        """Others run on the same card meanwhile."""
        for parameter in self.contender.model.parameters():
            parameter.grad = None
        gc.collect()
        if self.job.device == "cuda":
            torch.cuda.empty_cache()

    def _flops_per_token(self) -> float:
        """6 for each multiplied weight and 12 L W T for attention, as if every token saw the whole row (PaLM, B)."""
        layers, _, width, _ = shape(self.job)
        return 6 * self.contender.multiplied + 12 * layers * width * self.job.length

    def _peak_flops(self) -> float | None:
        from fintune.training.utilization import peak_flops

        return peak_flops(torch.device(self.job.device))


def _schedule(job: Job, steps: int) -> Callable[[int], float]:
    """Share of the peak rate at a step: GPT-2's warm-up and cosine to a tenth, or warm-up, plateau and linear decay."""
    warm_up = max(1, round(0.02 * steps))
    if job.variant.kind == "baseline":
        return lambda step: min(1.0, (step + 1) / warm_up) * (0.55 + 0.45 * math.cos(math.pi * step / steps))
    decay = max(1, round(0.5 * steps))
    return lambda step: min((step + 1) / warm_up, 1.0, (steps - step) / decay)
