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
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, TrainingArguments

from fintune.inference.forward import EdgeModel
from fintune.inference.out_of_memory import is_out_of_memory, release_memory
from fintune.models.fast_layers import Memory
from fintune.models.hand_over import FrozenPart
from fintune.schema.errors import RunError
from fintune.training.ahead import StepsAhead
from fintune.training.by_task import TASK_LOSS, TaskMeter
from fintune.training.callbacks import InterruptCallback
from fintune.training.graphs import GraphedPasses
from fintune.training.guard import REMEDY, LossGuard
from fintune.training.kept_trainer import KeptTrainer, SaveModel
from fintune.training.optimizer_states import STATES_REMEDY
from fintune.training.ranks import Ranks, step_seed
from fintune.training.sharding import FsdpShards, whole
from fintune.training.step_figures import StepFigures
from fintune.training.steps import StepDataset
from fintune.training.token_budget import (
    RandomState,
    TokenBudget,
    in_words,
    require_divisible,
    require_one_process,
)
from fintune.training.zero import ZeroSettings, ZeroShards
from fintune.trees.batch import TreeBatch
from fintune.trees.plan import Step

log = logging.getLogger(__name__)

MakeSchedule = Callable[[torch.optim.Optimizer], Any]


class TreeTrainer(KeptTrainer):
    """Runs a ``StepDataset``.

    Args:
        edge_model: the model with its tree attention.
        arguments: ``TrainingArguments``; batch size and accumulation must be 1, a step being one item.
        steps: the data set of steps.
        save_weights: writes the trained weights (adapter and tokenizer) into a folder; they are given where the model
            has only a part of them.
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
        schedule: makes the learning-rate schedule of an optimiser; the one ``arguments`` name when None.
        ranks: the processes that share the run; each computes its batches as one alone would, and gradients are added
            up once a step. No wrapper stands around the model, so everything that is quick on one GPU stays so.
        interrupt: knows of signals, which all processes must follow at the same step.
        sharing: how the ranks share out what one of them would hold; None: each holds everything.
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
        schedule: MakeSchedule | None = None,
        ranks: Ranks | None = None,
        interrupt: InterruptCallback | None = None,
        sharing: FsdpShards | ZeroSettings | None = None,
        frozen: FrozenPart | None = None,
    ) -> None:
        self.make_schedule = schedule
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
        self.ranks = ranks or Ranks()
        self.interrupt = interrupt or InterruptCallback()
        self.frozen = frozen
        self.last_step: Step | None = None
        self.logged_skips = ""  # of the latest line of metrics, for MetricsCallback; likewise the next
        self.logged_tasks: dict[str, dict[str, float]] = {}
        self._figures, self._loss = StepFigures.fresh(0, "cpu"), 0.0
        self.sharing = sharing
        self.shards: FsdpShards | ZeroShards | None = sharing if isinstance(sharing, FsdpShards) else None
        self._unlogged_loss = torch.zeros(())  # on the host, where the Trainer reads it without waiting for the GPU
        self._trained: list[nn.Parameter] = []
        self._is_first_step = True
        self._is_graphed: bool | None = None
        self._recorded: GraphedPasses | None = None
        if self.ranks.world > 1:
            edge_model.model._is_accelerate_prepared = True  # else it would be wrapped in DistributedDataParallel
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
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise RunError(
                f"Step {self.state.global_step + 1} ran out of memory beside its forward and backward passes; what was "
                "saved before it stays.",
                STATES_REMEDY,
            ) from error
        finally:
            del model.zero_grad
            self.ahead.close()

    def _drop_gradients(self, set_to_none: bool = True) -> None:
        for parameter in self._trained:
            parameter.grad = None

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The schedule that was given, or the Trainer's own."""
        if self.make_schedule is None:
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:
            chosen: Any = self.optimizer if optimizer is None else optimizer
            self.lr_scheduler = self.make_schedule(chosen)
        return self.lr_scheduler

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
        if self.ranks.world > 1:
            torch.manual_seed(step_seed(self.args.seed, step.number, self.ranks.me.rank))
        drawn = RandomState.of(self.args.device)
        while (failed := self._accumulate(model, step)) is not None:
            step = self._with_less_memory(model, step, failed)
            drawn.restore()
        if self.frozen is not None:
            self.frozen.drop_gradients()
        self.last_step = step
        self._add_up_ranks()
        return torch.zeros((), device=self.args.device)  # ``_get_grad_norm`` knows the loss without a second wait

    def _accumulate(self, model: nn.Module, step: Step) -> int | None:
        """Adds up the gradients of a step; the number of the batch that did not fit into memory, None when all did.

        Returns rather than raises, because an exception being handled keeps the failed batch's tensors alive.
        """
        scale = 1 / step.total_weight if step.total_weight else 0.0
        figures = self._figures = StepFigures.fresh(self.steps.n_tasks, self.args.device)
        graphs = self._graphs()
        if graphs is not None:
            graphs.start()
        called = self.shards.engine if isinstance(self.shards, ZeroShards) else model
        for number in range(len(step.batches)):
            try:
                batch = step.batches[number]
                if graphs is not None and isinstance(batch, TreeBatch):
                    loss, losses = graphs.add(batch, scale)
                    figures.note_tasks(step, number, losses)
                else:
                    loss = self._batch_loss(step, number, called) * scale
                    self._backward(loss)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                return number
            figures.loss += loss.detach()
        return None

    def _add_up_ranks(self) -> None:
        """Makes gradients and figures those of all ranks together."""
        if self.ranks.world == 1:
            return
        trained = [] if self.shards is not None else self._trained  # there the backward pass has added them up
        for parameter in trained:
            if parameter.grad is None:  # nothing of this rank's batches reached it
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
        self._figures.add_up(self.ranks, gradients, wants_to_stop=self.interrupt.received is not None)

    def _backward(self, loss: Tensor) -> None:
        if self.shards is not None:
            self.shards.backward(loss)
        elif getattr(self.accelerator, "scaler", None) is None:
            torch.autograd.backward(loss)
        else:
            self.accelerator.backward(loss)

    def _with_less_memory(self, model: nn.Module, step: Step, failed: int) -> Step:
        """The step to compute in place of one that failed; nothing of the failed attempt is left.

        Raises:
            RunError: nothing is left to be had.
        """
        if self.shards is not None:  # the others compute the same layer of another batch
            require_one_process(step.number + 1, self.ranks.world)
        model.zero_grad(set_to_none=True)
        self._release_memory()
        before = in_words(self.budget.memory, self.budget.whole_layers)
        if not self.budget.keep_less(self.policies):
            return self._in_smaller_batches(step, failed)
        assert self.budget.memory is not None
        self.edge_model.memory, self.edge_model.whole_layers = self.budget.memory, self.budget.whole_layers
        log.warning(
            "Step %d ran out of memory: from here on activations are kept by %s instead of %s, which takes longer and "
            "changes neither the effective batch nor the result.",
            step.number + 1,
            in_words(self.budget.memory, self.budget.whole_layers),
            before,
        )
        return step

    def _release_memory(self) -> None:
        self._is_graphed = self._recorded = None  # graphs hold memory, and compute as they were recorded
        release_memory()

    def _in_smaller_batches(self, step: Step, failed: int) -> Step:
        """The same samples under a smaller budget, which stays."""
        require_one_process(step.number + 1, self.ranks.world)
        batch, before = step.batches[failed], self.budget.tokens
        require_divisible(step.number + 1, batch, self.memory_remedy)
        self.budget.shrink(batch)
        self.steps.tokens_per_batch = self.budget.tokens
        log.warning(
            "Step %d ran out of memory: from here on at most %d tokens are computed at once instead of %d "
            "(training.tokens_per_batch); the effective batch stays, and without dropout the result but for rounding.",
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
        self._figures.note_tasks(step, number, losses)
        return loss

    def _graphs(self) -> GraphedPasses | None:
        """Recorded passes where the model and the run suit them; decided once all is on its device."""
        if self._is_graphed is None:
            scaler = getattr(self.accelerator, "scaler", None)
            alone = scaler is None and self.shards is None and self.steps.packing != "none"
            self._is_graphed = self.may_record and alone
            if self._is_graphed and GraphedPasses.suits(self.edge_model):
                self._recorded = GraphedPasses(self.edge_model)
        return self._recorded

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        if isinstance(self.shards, ZeroShards):
            return None  # DeepSpeed does
        return self.accelerator.clip_grad_norm_(self._trained, self.args.max_grad_norm)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> float:
        """The gradient norm; the last point before the update, so the guard decides here, with one synchronisation."""
        if isinstance(self.shards, ZeroShards):
            if (fault := self.guard.fault(float(self._figures.loss), 0.0)) is not None:
                self._skip_update(model, self.state.global_step + 1, fault)
            grad_norm = self.shards.update()
        elif grad_norm is None:
            grad_norm = self.accelerator.clip_grad_norm_(self._trained, math.inf)  # an infinite limit clips nothing
        figures = self._figures.joined(torch.as_tensor(whole(grad_norm)))
        self.ahead.prepare(self.state.global_step + 1)  # the GPU is still computing: what follows waits for it
        self._loss, norm_value, wishes, *task_losses = figures.tolist()
        self.interrupt.agreed = wishes > 0 if self.ranks.world > 1 else None
        self._unlogged_loss += self._loss if math.isfinite(self._loss) else 0.0
        step = self.state.global_step + 1
        fault = self.guard.fault(self._loss, norm_value)
        if fault is None:
            self._begin_states(step)
            self.guard.accept(step, self._loss)
        else:
            self._skip_update(model, step, fault)
        if self.meter is not None and self.last_step is not None:
            self.meter.add(self.last_step, task_losses if fault is None else None)
        return float(norm_value)

    def _skip_update(self, model: nn.Module, step: int, fault: str) -> None:
        if isinstance(self.shards, ZeroShards):
            raise RunError(f"Step {step}: {fault}, and DeepSpeed cannot leave out an update.", REMEDY)
        log.warning("Step %d: %s; its update is skipped.", step, fault)
        # Without gradients AdamW does nothing at all. A GradScaler has looked at them already, so it does not mind.
        model.zero_grad(set_to_none=True)
        scaler = getattr(self.accelerator, "scaler", None)
        is_scaler_at_work = scaler is not None and math.isfinite(self._loss) and scaler.get_scale() > 1.0
        overflow = is_scaler_at_work and fault.startswith("gradient norm")
        if self.guard.skip(step, fault, counts=not overflow):
            self._roll_back(step)

    def _maybe_log_save_evaluate(self, tr_loss: Any, *arguments: Any, **options: Any) -> None:
        super()._maybe_log_save_evaluate(self._unlogged_loss, *arguments, **options)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Passes metrics on, with the loss as a mean over the updates that were made."""
        if "loss" in logs:
            logs["loss"], self.logged_skips = self.guard.take_unlogged(self._loss)
            self.logged_tasks = self.meter.take_unlogged() if self.meter is not None else {}
            logs |= {f"{TASK_LOSS}{name}": loss for name, loss in self.logged_tasks.get("loss_by_task", {}).items()}
        super().log(logs, start_time)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Validation metrics, measured by the first rank and logged like the rest."""
        if self.validate is None:
            return {}
        self.edge_model.model.eval()
        shares = self.ranks.is_first or self.shards is not None  # no process can compute with its part alone
        metrics: dict[str, float] = self.ranks.from_first(self.validate() if shares else {})
        if self.shards is not None:
            self.shards.drop_gathered()
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


def _only(items: list[Step]) -> Step:
    return items[0]
