"""What a training run measured about itself, and the facts that are kept of it.

Enters: the figures at the end of ``train_model``. Leaves: ``TrainedRun``, and its part of facts.json.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class TrainedRun:
    """What training measured.

    Attributes:
        steps: optimiser steps of the whole run that were taken.
        resumed_from: step of the checkpoint it went on from, 0 for a fresh run.
        best_step: step whose weights were kept, None when the last were.
        final_loss: mean training loss of the last logged step that has one.
        seconds: time in training steps, over all sessions of the run; likewise the counts below.
        sample_tokens: tokens of the samples, before sharing.
        distinct_tokens: tokens computed.
        samples: samples trained on.
        peak_bytes: peak memory.
        padding_ratio: share of padding in what was computed.
        tflops_per_s: operations of the model itself, by training time; None where they were not counted.
        mfu: their share of the card's dense bf16 peak; None where that is not known.
        planned_steps: optimiser steps the schedule was made for.
        stopped_early: validations had stopped getting better before the last planned step.
        skipped_steps: updates that were not made because loss or gradient could not be trusted.
        rollbacks: how often the weights of a checkpoint were restored after such updates.
        resumed_on: for each resume that is not bit-equal, at which step and what had changed.
        memory_retries: how often a step was repeated in smaller batches because memory had run out.
        tokens_per_batch: the packing budget in use at the end.
        activations: how they were kept at the end: keep, recompute or offload; None where transformers' layers ran.
        whole_layers: so many layers, the last ones, kept everything all the same.
        predicted_bytes: what a step was predicted to need beyond the loaded model, None where nothing was predicted.
        free_bytes: what was free when training began, likewise.
        by_task: mean loss, supervised weight, tokens and samples of each task; empty with one task, whose figures are
            those of the run.
        weights: the trained parameters by name, where ``fsdp2`` has shared out the model's own; else None.
    """

    steps: int
    resumed_from: int
    best_step: int | None
    final_loss: float | None
    seconds: float
    sample_tokens: int
    distinct_tokens: int
    samples: int
    peak_bytes: int
    padding_ratio: float
    tflops_per_s: float | None
    mfu: float | None
    planned_steps: int
    stopped_early: bool
    skipped_steps: int
    rollbacks: int
    resumed_on: tuple[str, ...]
    memory_retries: int
    tokens_per_batch: int
    activations: str | None
    whole_layers: int
    predicted_bytes: int | None
    free_bytes: int | None
    by_task: dict[str, dict[str, float | None]]
    weights: dict[str, Tensor] | None = None


def training_facts(trained: TrainedRun) -> dict[str, Any]:
    """As facts.json has it."""
    return {
        "steps": trained.steps,
        "planned_steps": trained.planned_steps,
        "stopped_early": trained.stopped_early,
        "skipped_steps": trained.skipped_steps,
        "rollbacks": trained.rollbacks,
        "resumed_from_step": trained.resumed_from,
        "resumed_on": trained.resumed_on,
        "memory_retries": trained.memory_retries,
        "tokens_per_batch": trained.tokens_per_batch,
        "activations": trained.activations,
        "whole_layers": trained.whole_layers,
        "predicted_bytes": trained.predicted_bytes,
        "free_bytes": trained.free_bytes,
        "best_step": trained.best_step,
        "final_loss": trained.final_loss,
        "training_seconds": round(trained.seconds, 2),
        "samples_drawn": trained.samples,
        "sample_tokens": trained.sample_tokens,
        "distinct_tokens": trained.distinct_tokens,
        "sharing_ratio": round(trained.sample_tokens / max(trained.distinct_tokens, 1), 3),
        "padding_ratio": round(trained.padding_ratio, 4),
        "tflops_per_s": trained.tflops_per_s,
        "mfu": trained.mfu,
        "peak_bytes": trained.peak_bytes,
        "by_task": trained.by_task,
    }
