"""``TrainingArguments`` from a recipe: the Trainer counts steps, and we decide about saving, validating and batches."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

from fintune.models.load import LoadedBase
from fintune.schema.recipe import Recipe, TrainingSection

log = logging.getLogger(__name__)

_OPTIMIZERS = {
    "adamw": "adamw_torch_fused",
    "adamw_8bit": "adamw_bnb_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
    "muon": "adamw_torch",  # a name the library knows; the optimiser itself is made by us
}


def warmup_steps(training: TrainingSection, total_steps: int) -> int:
    """Warm-up in optimiser steps, from either way of giving it; a run that ends within it is warned about."""
    if training.warmup_steps is None:
        return math.ceil((training.warmup_ratio or 0.0) * total_steps)
    if training.warmup_steps >= total_steps > 1:
        log.warning(
            "training.warmup_steps is %d, but the run has %d steps: the learning rate never reaches its peak.",
            training.warmup_steps,
            total_steps,
        )
    return training.warmup_steps


def trainer_arguments(recipe: Recipe, base: LoadedBase, folder: Path, total_steps: int) -> Any:
    """``TrainingArguments`` of a recipe; one data-set item is one optimiser step."""
    from transformers import TrainingArguments

    training = recipe.training
    warmup = warmup_steps(training, total_steps)
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        max_steps=total_steps,
        learning_rate=training.learning_rate,
        lr_scheduler_type=_schedule(training.schedule, warmup),
        lr_scheduler_kwargs=_decay(training, warmup, total_steps),
        warmup_steps=warmup,
        optim=_OPTIMIZERS[training.optimizer],
        weight_decay=training.weight_decay,
        adam_beta1=training.adam_beta1,
        adam_beta2=training.adam_beta2,
        max_grad_norm=training.max_grad_norm,
        fp16=base.facts.needs_loss_scaling and base.model.device.type == "cuda",
        logging_steps=training.log_steps,
        logging_nan_inf_filter=False,  # a NaN loss must be seen, not replaced by the last mean
        save_strategy="no",  # ScheduleCallback decides
        eval_strategy="no",
        metric_for_best_model=training.best_metric,
        greater_is_better=training.best_metric != "loss" if training.best_metric else None,
        seed=recipe.seed,
        report_to=[],  # trackers come after the callback whose figures they are to have
        run_name=recipe.name,
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=base.model.device.type == "cpu",
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # else DataParallel would split the edge list between the GPUs it sees
    return arguments


def _schedule(name: str, warmup: int) -> str:
    if name == "plateau":
        return "constant"  # made by ``plateau_schedule``; the Trainer's own would insist on validating by itself
    if name == "wsd":
        return "warmup_stable_decay"
    return "constant_with_warmup" if name == "constant" and warmup else name  # the library's constant has no warm-up


def _decay(training: TrainingSection, warmup: int, total_steps: int) -> dict[str, Any]:
    """What ``get_wsd_schedule`` is to know beside the warm-up; a warm-up that leaves fewer steps shortens the decay."""
    if training.schedule != "wsd":
        return {}
    steps = min(math.ceil(training.decay_ratio * total_steps), max(total_steps - warmup, 0))
    return {"num_decay_steps": steps, "decay_type": "linear"}
