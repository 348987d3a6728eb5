"""``TreeTrainer``: ``transformers.Trainer`` whose batch is a whole optimiser step of token trees.

The Trainer keeps its loop, optimiser, schedule, callbacks and resume. What differs: one data-set item is one step;
the loss divides by the step's total weight over all its batches and ranks; a step that runs out of memory is repeated
in smaller batches; a guard looks at loss and gradient before the update; a checkpoint is written aside first.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainingArguments

from fintune.inference.forward import EdgeModel
from fintune.models.fast_layers import Memory
from fintune.models.hand_over import FrozenPart
from fintune.schema.errors import RunError
from fintune.training.ahead import StepsAhead
from fintune.training.by_task import TASK_LOSS, TaskMeter
from fintune.training.checkpoints import newest_intact, rotate, staged_checkpoint
from fintune.training.graphs import GraphedPasses
from fintune.training.guard import REMEDY, LossGuard
from fintune.training.steps import StepDataset
from fintune.training.token_budget import (
    RandomState,
    TokenBudget,
    is_out_of_memory,
    release_memory,
    require_divisible,
    require_one_process,
)
from fintune.training.weights import restore_optimizer, restore_weights
from fintune.trees.batch import TreeBatch
from fintune.trees.plan import Step

log = logging.getLogger(__name__)

SaveModel = Callable[[Path], None]


class TreeTrainer(Trainer):
    """Runs a ``StepDataset``.

    Args:
        edge_model: the model with its tree attention.
        arguments: ``TrainingArguments``; batch size and accumulation must be 1, a step being one item.
        steps: the data set of steps.
        save_weights: writes the trained weights (adapter and tokenizer) into a folder.
        validate: returns validation metrics named ``eval_*``; None when the run does not validate.
        checkpoint_facts: returns what is written into every checkpoint's manifest.
        keep_checkpoints: newest checkpoints kept beside the best.
        save_steps: interval of regular checkpoints, the only ones a rollback goes back to: one that a signal caused
            would make the resumed run differ from the straight one.
        guard: decides which updates are made.
        callbacks: further callbacks.
        budget: tokens computed at once, and how activations are kept; less of either when they do not fit into memory.
        policies: ways to keep activations that the model's layers know, from the one that needs most memory.
        memory_remedy: what to do when a single sample does not fit.
        may_record: whether memory has room for passes recorded as CUDA graphs beside those that are not.
        meter: adds up losses by task; None when the steps do not tell tasks apart.
        frozen: the part of the trained matrices that no update may change; None when there is none.
    """

    def __init__(
        self,
        edge_model: EdgeModel,
        arguments: TrainingArguments,
        steps: StepDataset,
        *,
        save_weights: SaveModel,
        validate: Callable[[], dict[str, float]] | None,
        checkpoint_facts: Callable[[], dict[str, Any]],
        keep_checkpoints: int,
        save_steps: int,
        guard: LossGuard,
        callbacks: list[Any],
        budget: TokenBudget | None = None,
        policies: Sequence[Memory] = (),
        memory_remedy: str = "",
        may_record: bool = True,
        meter: TaskMeter | None = None,
        frozen: FrozenPart | None = None,
    ) -> None:
        self.edge_model = edge_model
        self.steps = steps
        self.save_weights = save_weights
        self.validate = validate
        self.checkpoint_facts = checkpoint_facts
        self.keep_checkpoints = keep_checkpoints
        self.save_steps = save_steps
        self.guard = guard
        self.budget = budget or TokenBudget(steps.tokens_per_batch)
        self.policies = policies
        self.memory_remedy = memory_remedy
        self.may_record = may_record
        self.meter = meter
        self.frozen = frozen
        self.last_step: Step | None = None
        self.logged_skips = ""  # of the latest line of metrics, for MetricsCallback; likewise the next
        self.logged_tasks: dict[str, dict[str, float]] = {}
        self._step_loss, self._loss = torch.zeros(()), 0.0
        self._unlogged_loss = torch.zeros(())  # on the host, where the Trainer reads it without waiting for the GPU
        self._trained: list[nn.Parameter] = []
        self._is_first_step = True
        self._is_graphed: bool | None = None
        self._recorded: GraphedPasses | None = None
        self._task_losses = torch.zeros(0)
        super().__init__(model=edge_model.model, args=arguments, train_dataset=steps, callbacks=callbacks)
        self.loss_is_scaled_for_ga = True
        self.ahead = StepsAhead(steps, self.args.device)
        self.remove_callback(PrinterCallback)  # metrics.jsonl and the progress bar say it

    def train(self, *arguments: Any, **options: Any) -> Any:
        """The Trainer's own, without its walks through all modules at every step."""
        model: Any = self.model
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._is_first_step = True
        model.zero_grad = self._drop_gradients
        try:
            return super().train(*arguments, **options)
        finally:
            del model.zero_grad
            self.ahead.close()

    def _drop_gradients(self, set_to_none: bool = True) -> None:
        for parameter in self._trained:
            parameter.grad = None

    def get_train_dataloader(self) -> DataLoader[int]:
        """Numbers of steps in order; the plan behind them has already drawn and dealt out the samples."""
        numbers: Any = range(len(self.steps))
        return DataLoader(numbers, batch_size=1, shuffle=False, collate_fn=_only)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Step], None]:
        """The steps behind the numbers."""
        numbers, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return [self.ahead.take(number) for number in numbers], None

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward over all batches of one step; what it returns, the Trainer would only add up."""
        step: Step = inputs
        if step.budget > self.budget.tokens:  # planned ahead, before memory ran out
            step = self.steps[step.number]
        if self._is_first_step or not model.training:  # an adapter may train around a base that does not yet
            model.train()
            self._is_first_step = False
        drawn = RandomState.of(self.args.device)
        while (failed := self._accumulate(model, step)) is not None:
            step = self._with_less_memory(model, step, failed)
            drawn.restore()
        if self.frozen is not None:
            self.frozen.drop_gradients()
        self.last_step = step
        return torch.zeros((), device=self.args.device)  # ``_get_grad_norm`` knows the loss without a second wait

    def _accumulate(self, model: nn.Module, step: Step) -> int | None:
        """Adds up the gradients of a step; the number of the batch that did not fit into memory, None when all did.

        Returns rather than raises, because an exception being handled keeps the failed batch's tensors alive.
        """
        scale = self.steps.world / step.total_weight if step.total_weight else 0.0  # DDP averages over ranks
        total = torch.zeros((), device=self.args.device)
        self._task_losses = torch.zeros(self.steps.n_tasks, device=self.args.device)
        graphs = self._graphs()
        if graphs is not None:
            graphs.start()
        for number in range(len(step.batches)):
            try:
                batch = step.batches[number]
                if graphs is not None and isinstance(batch, TreeBatch):
                    loss, losses = graphs.add(batch, scale)
                    self._note_tasks(step, number, losses)
                else:
                    with self._synchronised(model, last=number == len(step.batches) - 1):
                        loss = self._batch_loss(step, number, model) * scale
                        self._backward(loss)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                return number
            total += loss.detach()
        self._step_loss = total
        return None

    def _backward(self, loss: Tensor) -> None:
        if getattr(self.accelerator, "scaler", None) is None:
            torch.autograd.backward(loss)
        else:
            self.accelerator.backward(loss)

    def _with_less_memory(self, model: nn.Module, step: Step, failed: int) -> Step:
        """The step to compute in place of one that failed; nothing of the failed attempt is left.

        Raises:
            RunError: nothing is left to be had.
        """
        model.zero_grad(set_to_none=True)
        self._is_graphed = self._recorded = None  # graphs hold memory, and compute as they were recorded
        release_memory()
        require_one_process(step.number + 1, self.steps.world)
        before = self.budget.memory
        if not self.budget.keep_less(self.policies):
            return self._in_smaller_batches(step, failed)
        assert self.budget.memory is not None
        self.edge_model.memory = self.budget.memory
        log.warning(
            "Step %d ran out of memory: from here on activations are kept by %s instead of %s, which takes longer and "
            "changes neither the effective batch nor the result.",
            step.number + 1,
            self.budget.memory,
            before,
        )
        return step

    def _in_smaller_batches(self, step: Step, failed: int) -> Step:
        """The same samples under a smaller budget, which stays."""
        batch, before = step.batches[failed], self.budget.tokens
        require_divisible(step.number + 1, batch, self.memory_remedy)
        self.budget.shrink(batch)
        self.steps.tokens_per_batch = self.budget.tokens
        log.warning(
            "Step %d ran out of memory: from here on at most %d tokens are computed at once instead of %d "
            "(training.tokens_per_batch), which changes neither the effective batch nor the result.",
            step.number + 1,
            self.budget.tokens,
            before,
        )
        return replace(self.steps[step.number], total_weight=step.total_weight)

    def _batch_loss(self, step: Step, number: int, model: nn.Module) -> Tensor:
        """The loss of one batch summed over its edges; by task too, where the step tells tasks apart."""
        batch = step.batches[number].to(self.args.device)
        if not step.by_task:
            return self.edge_model.loss_sum(batch, model)
        loss, losses = self.edge_model.loss_by_edge(batch, model)
        self._note_tasks(step, number, losses)
        return loss

    def _note_tasks(self, step: Step, number: int, losses: Tensor) -> None:
        if step.by_task:
            weight = step.by_task[number].weight.to(self.args.device, non_blocking=True)
            self._task_losses += (weight * losses).sum(1)  # not a product, which a GPU may round to TF32

    def _graphs(self) -> GraphedPasses | None:
        """Recorded passes where the model and the run suit them; decided once all is on its device."""
        if self._is_graphed is None:
            scaler = getattr(self.accelerator, "scaler", None)
            alone = self.steps.world == 1 and scaler is None and self.steps.packing != "none"
            self._is_graphed = self.may_record and alone
            if self._is_graphed and GraphedPasses.suits(self.edge_model):
                self._recorded = GraphedPasses(self.edge_model)
        return self._recorded

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        return self.accelerator.clip_grad_norm_(self._trained, self.args.max_grad_norm)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> float:
        """The gradient norm; the last point before the update, so the guard decides here, with one synchronisation."""
        if grad_norm is None:
            grad_norm = self.accelerator.clip_grad_norm_(self._trained, math.inf)  # an infinite limit clips nothing
        norm = torch.as_tensor(grad_norm, device=self._step_loss.device)
        figures = torch.cat([torch.stack([self._step_loss, norm.float()]), self._task_losses])
        if self.steps.world > 1:
            figures = self.accelerator.reduce(figures, reduction="mean")
        self.ahead.prepare(self.state.global_step + 1)  # the GPU is still computing: what follows waits for it
        self._loss, norm_value, *task_losses = figures.tolist()
        self._unlogged_loss += self._loss if math.isfinite(self._loss) else 0.0
        step = self.state.global_step + 1
        fault = self.guard.fault(self._loss, norm_value)
        if fault is None:
            self.guard.accept(step, self._loss)
        else:
            self._skip_update(model, step, fault)
        if self.meter is not None and self.last_step is not None:
            sums = [loss * self.steps.world for loss in task_losses]  # the mean over ranks is a sum again
            self.meter.add(self.last_step, sums if fault is None else None)
        return float(norm_value)

    def _skip_update(self, model: nn.Module, step: int, fault: str) -> None:
        log.warning("Step %d: %s; its update is skipped.", step, fault)
        # Without gradients AdamW does nothing at all. A GradScaler has looked at them already, so it does not mind.
        model.zero_grad(set_to_none=True)
        scaler = getattr(self.accelerator, "scaler", None)
        is_scaler_at_work = scaler is not None and math.isfinite(self._loss) and scaler.get_scale() > 1.0
        overflow = is_scaler_at_work and fault.startswith("gradient norm")
        if self.guard.skip(step, fault, counts=not overflow):
            self._roll_back(model, step)

    def _roll_back(self, model: nn.Module, step: int) -> None:
        self.guard.require_rollback(step)
        trusted = self.guard.state.trusted_step
        checkpoint = newest_intact(
            Path(str(self.args.output_dir)), lambda c: c.step <= trusted and c.step % self.save_steps == 0
        )
        if checkpoint is None:
            raise RunError(f"The updates up to step {step} fail and no checkpoint is left to go back to.", REMEDY)
        restore_weights(self.edge_model.model, checkpoint.path / "weights")
        restore_optimizer(self.optimizer, checkpoint.path)
        self.guard.rolled_back(checkpoint.step)
        log.warning("Weights and optimiser of step %d are restored; training goes on with new rows.", checkpoint.step)

    def _maybe_log_save_evaluate(self, tr_loss: Any, *arguments: Any, **options: Any) -> None:
        super()._maybe_log_save_evaluate(self._unlogged_loss, *arguments, **options)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Passes metrics on, with the loss as a mean over the updates that were made."""
        if "loss" in logs:
            logs["loss"], self.logged_skips = self.guard.take_unlogged(self._loss)
            self.logged_tasks = self.meter.take_unlogged() if self.meter is not None else {}
            logs |= {f"{TASK_LOSS}{name}": loss for name, loss in self.logged_tasks.get("loss_by_task", {}).items()}
        super().log(logs, start_time)

    def _synchronised(self, model: nn.Module, *, last: bool) -> Any:
        import contextlib

        return contextlib.nullcontext() if last else self.accelerator.no_sync(model)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Validation metrics, logged like the rest."""
        if self.validate is None:
            return {}
        self.edge_model.model.eval()
        metrics = self.validate()
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.edge_model.model.train()
        return metrics

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        is_best = bool(super()._determine_best_metric(metrics, trial))
        if is_best:  # the Trainer itself only notes the step under a save strategy of its own
            self.state.best_global_step = self.state.global_step
        return is_best

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: the estimate of ``transformers`` knows nothing of shared prefixes."""
        return 0

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> None:
        return None

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(str(self.args.output_dir))
        step = self.state.global_step
        with staged_checkpoint(folder, step, self.checkpoint_facts()) as staging:
            if self.args.should_save:
                self.save_weights(staging / "weights")
            self._save_optimizer_and_scheduler(str(staging))
            self._save_scaler(str(staging))
            self._save_rng_state(str(staging))
            self._export_callback_states()
            self.state.save_to_json(str(staging / "trainer_state.json"))
        self.rotate_checkpoints()

    def rotate_checkpoints(self) -> None:
        """Deletes old checkpoints, but none that a rollback may soon need."""
        if not self.guard.state.unproven:
            folder, best = Path(str(self.args.output_dir)), self.state.best_global_step
            rotate(folder, self.keep_checkpoints, self.save_steps, best)

    def _export_callback_states(self) -> None:
        from transformers.trainer_callback import ExportableState

        exported: Any = self.state.stateful_callbacks

        for callback in [*self.callback_handler.callbacks, self.control]:
            if isinstance(callback, ExportableState):
                exported[type(callback).__name__] = callback.state()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Weights are loaded by the caller, who knows whether they are an adapter or a whole model."""

    def _load_scaler(self, checkpoint: str | None) -> None:
        """The loss scale of a checkpoint, where both it and this run scale the loss; else a fresh one, or none."""
        if getattr(self.accelerator, "scaler", None) is None:
            return
        try:
            super()._load_scaler(checkpoint)
        except (RuntimeError, KeyError) as exc:
            log.warning("The loss scale of %s cannot be used (%s); it starts afresh.", checkpoint, exc)


def _only(items: list[Step]) -> Step:
    return items[0]
