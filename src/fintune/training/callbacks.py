"""What watches a run: the metrics file, the progress bar, saving and validating at fixed steps, and signals."""

from __future__ import annotations

import logging
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback

from fintune.models.hand_over import FrozenPart
from fintune.schema.recipe import TrainingSection
from fintune.training.by_task import TASK_LOSS
from fintune.training.devices import DeviceSampler
from fintune.training.metrics_log import MetricsLog
from fintune.training.stopping import should_stop
from fintune.training.utilization import ModelFlops, Work
from fintune.trees.plan import Step

log = logging.getLogger(__name__)


def peak_bytes() -> int:
    """Peak memory so far: reserved on the GPU, or resident of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved()
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage * 1024  # kilobytes everywhere but on macOS


@dataclass
class Totals:
    """What the run has computed: tokens before and after sharing and with padding, samples, seconds, operations."""

    sample_tokens: int = 0
    distinct_tokens: int = 0
    samples: int = 0
    seconds: float = 0.0
    own_tokens: int = 0
    computed_tokens: int = 0
    flops: float = 0.0

    def add(self, step: Step, seconds: float, flops: float = 0.0) -> None:
        """Adds one step, over all ranks; what was computed, padding included, and its operations are this rank's."""
        self.sample_tokens += step.sample_tokens
        self.distinct_tokens += step.distinct_tokens
        self.samples += step.n_samples
        self.seconds += seconds
        self.own_tokens += sum(batch.real_tokens for batch in step.batches)
        self.computed_tokens += sum(map(len, step.batches))
        self.flops += flops

    @property
    def sharing_ratio(self) -> float:
        """Tokens of the samples for each one computed."""
        return self.sample_tokens / max(self.distinct_tokens, 1)

    @property
    def padding_ratio(self) -> float:
        """Share of padding in what was computed."""
        return 1 - min(1.0, self.own_tokens / max(self.computed_tokens, 1))

    @property
    def tflops_per_s(self) -> float | None:
        """Operations by time; None where they were not counted."""
        return self.flops / max(self.seconds, 1e-9) / 1e12 if self.flops else None

    def utilization(self, peak_flops: float | None) -> float | None:
        """Share of the card's peak; None where either is not known."""
        rate = self.tflops_per_s
        return None if peak_flops is None or rate is None else rate * 1e12 / peak_flops


class MetricsCallback(TrainerCallback):
    """Writes metrics.jsonl and keeps the run's totals.

    ``tokens_per_s`` counts the samples' own tokens, as trainers that do not share prefixes count them;
    ``distinct_tokens_per_s`` counts what was computed. ``mfu`` is the share of the card's dense bf16 peak that the
    model's own operations use, None where the card is not known. Trackers, which come after it, get the same figures.

    Args:
        log: the file of this rank.
        steps_per_epoch: optimiser steps.
        flops: operations of a step.
        peak_flops: of the card, a second.
    """

    def __init__(
        self,
        log: MetricsLog,
        steps_per_epoch: int,
        flops: ModelFlops | None = None,
        peak_flops: float | None = None,
    ) -> None:
        self.log = log
        self.steps_per_epoch = steps_per_epoch
        self.flops, self.peak_flops = flops, peak_flops
        self.devices: DeviceSampler | None = None  # set while training runs
        self.trainer: Any = None  # set once the trainer exists
        self.run, self.since_log = Totals(), Totals()
        self.latest: dict[str, Any] = {}
        self.resumed_on = ""  # what changed since the checkpoint, for the first line after it
        self._started = self._step_started = time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Starts the clock."""
        self._started = time.perf_counter()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Starts the step's clock."""
        self._step_started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Adds the step to the totals."""
        seconds = time.perf_counter() - self._step_started
        step = self.trainer.last_step
        flops = self.flops.of(Work.of(step.batches)) if self.flops is not None else 0.0
        for totals in (self.run, self.since_log):
            totals.add(step, seconds, flops)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Writes one line for a training step or a validation."""
        logs = logs or {}
        is_training = "loss" in logs
        if not is_training and not any(key.startswith("eval_") for key in logs):
            return
        row: dict[str, Any] = {"step": state.global_step, "epoch": round(state.global_step / self.steps_per_epoch, 6)}
        row |= {key: value for key, value in logs.items() if key != "epoch" and not key.startswith(TASK_LOSS)}
        if is_training:
            figures = self._figures()
            row |= figures
            logs.update((name, value) for name, value in figures.items() if value is not None)
            row |= self.trainer.logged_tasks
            row |= self._memory()
            row |= {"skipped": skipped} if (skipped := self.trainer.logged_skips) else {}
            row |= {"resumed_on": self.resumed_on} if self.resumed_on else {}
            self.resumed_on = ""
            self.since_log = Totals()
            self.latest = row
        row["elapsed_s"] = round(self.log.elapsed_before_s + time.perf_counter() - self._started, 3)
        self.log.append(row)  # every process into its own file

    def _figures(self) -> dict[str, float | None]:
        """Speed, use of the card and of the batches since the last line."""
        totals, seconds = self.since_log, max(self.since_log.seconds, 1e-9)
        return {
            "tokens_per_s": totals.sample_tokens / seconds,
            "distinct_tokens_per_s": totals.distinct_tokens / seconds,
            "samples_per_s": totals.samples / seconds,
            "sharing_ratio": totals.sharing_ratio,
            "padding_ratio": totals.padding_ratio,
            "tflops_per_s": totals.tflops_per_s,
            "mfu": totals.utilization(self.peak_flops),
            "peak_bytes": peak_bytes(),
            **(self.devices.take() if self.devices is not None else {}),
        }

    def _memory(self) -> dict[str, Any]:
        """The budget in use, once it is no longer the recipe's; how activations are kept, where that was chosen."""
        budget = self.trainer.budget
        row: dict[str, Any] = {} if budget.memory is None else {"activations": budget.memory}
        row |= {"whole_layers": budget.whole_layers} if budget.whole_layers else {}
        return row | ({"memory_retries": budget.retries, "tokens_per_batch": budget.tokens} if budget.retries else {})


class ProgressCallback(TrainerCallback):
    """A Rich progress bar on standard error: loss, learning rate, throughput, memory, time left."""

    def __init__(self, metrics: MetricsCallback) -> None:
        from rich.console import Console

        self.metrics = metrics
        self.bar = Progress(
            SpinnerColumn(),
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self.task: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Shows the bar."""
        self.task = self.bar.add_task("training", total=state.max_steps, completed=state.global_step, figures="")
        self.bar.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Moves the bar."""
        self.bar.update(self.task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Refreshes the figures."""
        row = self.metrics.latest
        if self.task is not None and "loss" in row:
            figures = (
                f"loss {row['loss']:.3f} · lr {row['learning_rate']:.1e} · {row['tokens_per_s']:,.0f} tokens/s · "
                f"{row['samples_per_s']:.1f} samples/s · {row['peak_bytes'] / 2**30:.1f} GiB"
            )
            self.bar.update(self.task, figures=figures)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Closes the bar, full also when training stopped early."""
        self.bar.update(self.task, total=state.global_step)
        self.close()

    def close(self) -> None:
        """Closes the bar, also when training stopped with an error."""
        self.bar.stop()


class FrozenCallback(TrainerCallback):
    """Puts the part of the trained matrices back that no update may change, after each update."""

    def __init__(self, frozen: FrozenPart) -> None:
        self.frozen = frozen

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Restores it."""
        self.frozen.restore()


class ScheduleCallback(TrainerCallback):
    """Saves every ``save_steps`` and validates every ``eval_steps``, both also after the last step, which is logged."""

    def __init__(self, save_steps: int, eval_steps: int | None) -> None:
        self.save_steps = save_steps
        self.eval_steps = eval_steps

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Asks the trainer to save or validate."""
        last = state.global_step >= state.max_steps
        control.should_log = control.should_log or last
        control.should_save = last or state.global_step % self.save_steps == 0
        control.should_evaluate = self.eval_steps is not None and (last or state.global_step % self.eval_steps == 0)
        return control


class StoppingCallback(TrainerCallback):
    """Ends training once validations stop getting better, with a checkpoint that knows it."""

    def __init__(self, training: TrainingSection) -> None:
        self.training = training

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Asks the trainer to save and stop."""
        if should_stop(state.log_history, self.training):
            control.should_save = True
            control.should_training_stop = True
        return control


class InterruptCallback(TrainerCallback):
    """Ctrl-C and SIGTERM end a run after the step in progress, with a checkpoint; a second one ends it at once.

    It must come after ``ScheduleCallback``, whose decisions it overrides. Processes that share a run stop after the
    same step: ``agreed`` is then what they have found together, and None in a process by itself.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.agreed: bool | None = None

    @property
    def is_due(self) -> bool:
        """Whether the run is to stop."""
        return self.received is not None if self.agreed is None else self.agreed

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Catches the signals while the block runs; Python allows that in the main thread only."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        self.received = number
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.default_int_handler if each == signal.SIGINT else signal.SIG_DFL)
        log.warning("Stopping after this step, with a checkpoint; once more stops at once.")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Asks the trainer to save and stop once a signal has come."""
        if self.is_due:
            control.should_save = True
            control.should_training_stop = True
        return control
