"""One training run: arguments for the Trainer from a recipe, resume from the newest checkpoint, the best weights."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

from torch import Tensor

from fintune.inference.forward import EdgeModel
from fintune.models.adapter_files import save_adapter
from fintune.models.hand_over import FrozenPart
from fintune.models.load import LoadedBase
from fintune.schema.errors import ModelError, RunError
from fintune.schema.recipe import Packing, Recipe, TrainingSection
from fintune.schema.run_directory import RunDirectory
from fintune.training.arguments import trainer_arguments
from fintune.training.by_task import TaskMeter
from fintune.training.callbacks import (
    FrozenCallback,
    InterruptCallback,
    MetricsCallback,
    ProgressCallback,
    ScheduleCallback,
    StoppingCallback,
    peak_bytes,
)
from fintune.training.checkpoints import Checkpoint, is_intact, list_checkpoints
from fintune.training.compiling import compile_for_training, end_compilation
from fintune.training.devices import sampling
from fintune.training.guard import LossGuard
from fintune.training.memory_choice import base_shape, choose_memory
from fintune.training.metrics_log import MetricsLog
from fintune.training.muon import recipe_optimiser
from fintune.training.numerics import describe_numerics
from fintune.training.plateau import plateau_schedule
from fintune.training.ranks import Ranks
from fintune.training.resume import checkpoint_facts, find_resume_point
from fintune.training.sharding import FsdpShards, shard_model
from fintune.training.steps import StepDataset
from fintune.training.stopping import should_stop
from fintune.training.token_budget import memory_remedy
from fintune.training.trackers import require_trackers, trackers
from fintune.training.trained import TrainedRun
from fintune.training.trainer import TreeTrainer
from fintune.training.utilization import ModelFlops, model_flops, peak_flops
from fintune.training.weights import restore_weights
from fintune.training.zero import ZeroSettings, ZeroShards, require_deepspeed
from fintune.trees.mixture import make_mixture
from fintune.trees.plan import StepPlan
from fintune.trees.prefix_tree import TokenSample

log = logging.getLogger(__name__)


def train_model(
    recipe: Recipe,
    base: LoadedBase,
    model: EdgeModel,
    samples: Sequence[TokenSample],
    groups: Sequence[int],
    run: RunDirectory,
    *,
    packing: Packing,
    validate: Callable[[], dict[str, float]] | None,
    fingerprint: dict[str, Any],
    progress: bool = True,
    tasks: Sequence[int] = (),
    task_names: Sequence[str] = (),
    ranks: Ranks | None = None,
    frozen: FrozenPart | None = None,
) -> TrainedRun:
    """Trains ``model`` in place and writes checkpoints, metrics and the adapter into the run directory.

    Args:
        recipe: the resolved recipe.
        base: the loaded base, whose model ``model`` wraps.
        model: the model to train.
        samples: training samples as tokens.
        groups: one group number per sample.
        run: where everything is written.
        packing: how samples become batches.
        validate: returns ``eval_*`` metrics; None when the recipe does not validate.
        fingerprint: hashes of recipe, data and base, kept in each checkpoint and compared on resume.
        progress: show the progress bar.
        tasks: one task number per sample; needed for a mixture, and for figures by task.
        task_names: the tasks by number; each has samples.
        ranks: the processes that share the run, all of which call this with the same arguments; None: this one alone.
        frozen: the part of the trained matrices that stays as it is.

    Raises:
        RecipeError: the mixture cannot be drawn.
        RunError: a checkpoint belongs to another recipe, data set or base, or could not be written.
        KeyboardInterrupt: Ctrl-C or SIGTERM came; the step in progress was finished and saved.
    """
    training, ranks = recipe.training, ranks or Ranks()
    several = len(task_names) > 1
    mixture = make_mixture(recipe.data, tasks, task_names)
    plan = StepPlan(tuple(groups), training.samples_per_step, recipe.seed, training.sampler, mixture)
    total_steps = plan.total_steps(training.epochs, training.max_steps)
    steps = StepDataset(
        samples,
        plan,
        total_steps,
        packing,
        training.tokens_per_batch,
        buckets=model.is_blockwise,
        rank=ranks.me.rank,
        world=ranks.world,
        tasks=tasks if several else (),
        n_tasks=len(task_names) if several else 0,
    )
    numerics = describe_numerics(model, training, packing, ranks.world)
    ranks.require_same("hash of recipe, data and base", fingerprint)
    with ranks.first_goes_first():  # who removes what is damaged
        start = find_resume_point(run, fingerprint, numerics)
    ranks.require_same("checkpoint to go on from", start.step)
    budget = start.token_budget(training.tokens_per_batch)
    steps.tokens_per_batch = budget.tokens
    if start.checkpoint is not None:
        restore_weights(model.model, start.checkpoint.path / "weights")
    sharing = _sharing(recipe, base, model, ranks)
    if training.sampler == "by_document":
        log.warning("training.sampler=by_document: steps draw whole groups, which is not random sampling.")
    choice = choose_memory(recipe, base, model, samples, packing, budget, ranks.world)
    budget.memory, budget.whole_layers = choice.memory, choice.whole_layers
    budget.predicted_bytes, budget.free_bytes = choice.predicted_bytes, choice.free_bytes
    if choice.memory is not None:
        model.memory, model.whole_layers = choice.memory, choice.whole_layers
    elif training.gradient_checkpointing:
        recompute_layers(model.model)
    metrics = MetricsCallback(
        MetricsLog(run.metrics_of(ranks.me.rank), start.step),
        plan.steps_per_epoch,
        _flops(base, model),
        peak_flops(model.device),
    )
    metrics.run, metrics.resumed_on = start.totals, start.change
    guard = LossGuard(training.loss_spike, training.rollback_after)
    guard.state = start.guard
    meter = TaskMeter(task_names, start.tasks) if several else None
    bar = ProgressCallback(metrics) if progress and ranks.is_first else None
    schedule, interrupt = ScheduleCallback(training.save_steps, training.eval_steps), InterruptCallback()
    callbacks = [metrics, schedule, StoppingCallback(training), interrupt, *([bar] if bar else [])]
    callbacks += [FrozenCallback(frozen)] if frozen else []
    if ranks.is_first:
        with _full_disk_in_words(run):
            callbacks += trackers(recipe.training.tracking, run.tensorboard, start.step)
    trainer = TreeTrainer(
        model,
        trainer_arguments(recipe, base, run.checkpoints, total_steps),
        steps,
        save_weights=lambda folder, weights: _save_weights(model.model, base, folder, weights),
        validate=validate,
        checkpoint_facts=lambda: checkpoint_facts(
            fingerprint, numerics, metrics.run, guard.state, budget, start.resumed_on, meter.state() if meter else {}
        ),
        keep_checkpoints=training.keep_checkpoints,
        save_steps=training.save_steps,
        guard=guard,
        callbacks=callbacks,
        budget=budget,
        policies=choice.policies,
        memory_remedy=memory_remedy(recipe, fast=bool(choice.policies)),
        may_record=choice.has_room_for_graphs,
        meter=meter,
        schedule=partial(plateau_schedule, training=training) if training.schedule == "plateau" else None,
        ranks=ranks,
        interrupt=interrupt,
        sharing=sharing,
        frozen=frozen,
    )
    metrics.trainer = trainer
    if training.optimizer == "muon":
        trainer.make_optimizer = partial(recipe_optimiser, model.model, training.learning_rate, training.weight_decay)
    if training.compile:
        compile_for_training(model)
    started = time.perf_counter()
    try:
        with (
            interrupt.watching(),
            _full_disk_in_words(run),
            _unreadable_state_in_words(run, start.checkpoint),
            sampling(model.device) as metrics.devices,
        ):
            _train(trainer, start.checkpoint, training)
    finally:
        if bar is not None:
            bar.close()
    done = trainer.state.global_step
    stopped_early = done < total_steps and should_stop(trainer.state.log_history, training)
    if interrupt.is_due and done < total_steps and not stopped_early:
        raise KeyboardInterrupt  # the command line says how to go on
    log.info("Training took %.1f s.", time.perf_counter() - started)
    if stopped_early:
        log.info(
            "Stopped early, after step %d of %d: %d validations in a row without a better %s.",
            done,
            total_steps,
            training.early_stopping_patience,
            training.best_metric,
        )
    if isinstance(trainer.shards, ZeroShards):
        trainer.shards.gather()
    best_step = _load_best(trainer, model, run) if training.best_metric else None
    weights = None
    if isinstance(trainer.shards, FsdpShards):
        weights = trainer.shards.weights()
        trainer.shards.gather()
    model.end_training()
    if training.compile:
        end_compilation(model)
    return TrainedRun(
        steps=done,
        resumed_from=start.step,
        best_step=best_step,
        final_loss=_last_loss(run),
        seconds=metrics.run.seconds,
        sample_tokens=metrics.run.sample_tokens,
        distinct_tokens=metrics.run.distinct_tokens,
        samples=metrics.run.samples,
        peak_bytes=peak_bytes(),
        padding_ratio=metrics.run.padding_ratio,
        tflops_per_s=metrics.run.tflops_per_s,
        mfu=metrics.run.utilization(metrics.peak_flops),
        planned_steps=total_steps,
        stopped_early=stopped_early,
        skipped_steps=guard.state.skipped,
        rollbacks=guard.state.rollbacks,
        resumed_on=start.resumed_on,
        memory_retries=budget.retries,
        tokens_per_batch=budget.tokens,
        activations=budget.memory,
        whole_layers=budget.whole_layers,
        predicted_bytes=choice.predicted_bytes,
        free_bytes=choice.free_bytes,
        by_task=meter.totals() if meter else {},
        weights=weights,
    )


def _sharing(recipe: Recipe, base: LoadedBase, model: EdgeModel, ranks: Ranks) -> FsdpShards | ZeroSettings | None:
    """What the recipe's strategy asks for; one process by itself shares nothing out."""
    section = recipe.distributed
    if ranks.world == 1 or section.strategy in ("auto", "ddp"):
        return None
    if base.facts.needs_loss_scaling:
        raise RunError(
            f"distributed.strategy={section.strategy} computes in bf16 or fp32, and this GPU in fp16.",
            "Set distributed.strategy=ddp, or model.dtype=float32.",
        )
    model.fast = False  # our kernels read whole weights
    if section.strategy == "fsdp2":
        shard_model(model.model, ranks, offload=section.offload_param)
        return FsdpShards(model.model)
    stage: Literal[2, 3] = 2 if section.strategy == "zero2" else 3
    return ZeroSettings(stage, section.offload_optimizer, section.offload_param)


@contextmanager
def _unreadable_state_in_words(run: RunDirectory, checkpoint: Checkpoint | None) -> Iterator[None]:
    """A state file that holds more than tensors is refused by torch; nothing of it has run."""
    try:
        yield
    except UnpicklingError as exc:
        place = checkpoint.path if checkpoint else run.checkpoints
        raise RunError(
            f"The state in the checkpoint {place} cannot be read safely, so it was not loaded.",
            "Remove that checkpoint and start the same command again.",
        ) from exc


def _train(trainer: TreeTrainer, checkpoint: Checkpoint | None, training: TrainingSection) -> None:
    """Trains from ``checkpoint`` on, unless the run had stopped there: the Trainer itself would train on."""
    from transformers import TrainerState

    if checkpoint is None:
        trainer.train()
        return
    trainer.state = TrainerState.load_from_json(str(checkpoint.path / "trainer_state.json"))
    trainer.rotate_checkpoints()  # a kill may have come before the rotation that followed this checkpoint
    if not should_stop(trainer.state.log_history, training):
        trainer.train(resume_from_checkpoint=str(checkpoint.path))


@contextmanager
def _full_disk_in_words(run: RunDirectory) -> Iterator[None]:
    """A full disk that a library met while it wrote (TensorBoard, say) ends in one sentence too."""
    try:
        yield
    except OSError as exc:
        if exc.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            raise
        raise RunError(
            f"{run.path} could not be written to ({exc.strerror}).",
            "Free some space and start the same command again; it goes on from the last complete checkpoint.",
        ) from exc


def _flops(base: LoadedBase, model: EdgeModel) -> ModelFlops | None:
    try:
        return model_flops(base_shape(base), model.model)
    except ModelError as exc:  # a model made by code of its own, which is not run a second time, or without heads
        log.info("Operations are not counted: %s", exc.message)
        return None


def _save_weights(model: Any, base: LoadedBase, folder: Path, weights: dict[str, Tensor] | None) -> None:
    save_adapter(model, base.tokenizer, folder, base.files, weights)


def recompute_layers(model: Any) -> None:
    """Makes the model recompute each layer in the backward pass instead of keeping its activations."""
    if hasattr(model, "activation_checkpointing_enable"):  # the name since transformers 5.20
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def _load_best(trainer: TreeTrainer, model: EdgeModel, run: RunDirectory) -> int | None:
    """Restores the weights that validated best; where their checkpoint is damaged, the best that is intact."""
    step: int | None = trainer.state.best_global_step or None
    if step is None:
        return None
    best = Checkpoint(run.checkpoints / f"checkpoint-{step}", step)
    if not is_intact(best):
        found = _best_intact(trainer, run)
        if found is None:
            log.warning(
                "The best checkpoint %s is damaged and no other was validated: the last weights stay.", best.path
            )
            return None
        log.warning("The best checkpoint %s is damaged; the best intact one is %s.", best.path, found.path)
        best = found
    restore_weights(model.model, best.path / "weights")
    return best.step


def _best_intact(trainer: TreeTrainer, run: RunDirectory) -> Checkpoint | None:
    name, better = f"eval_{trainer.args.metric_for_best_model}", max if trainer.args.greater_is_better else min
    validated = {int(row["step"]): float(row[name]) for row in trainer.state.log_history if name in row}
    intact = [c for c in list_checkpoints(run.checkpoints) if c.step in validated and is_intact(c)]
    return better(intact, key=lambda c: validated[c.step]) if intact else None


def _last_loss(run: RunDirectory) -> float | None:
    return next((row["loss"] for row in reversed(run.read_history()) if row.get("loss") is not None), None)


def require_libraries(recipe: Recipe, processes: int) -> None:
    """Fails before anything is loaded when a library that the recipe names is not installed."""
    if processes > 1 and recipe.distributed.strategy in ("zero2", "zero3"):
        require_deepspeed()
    require_trackers(recipe)
