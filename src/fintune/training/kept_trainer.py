"""The part of the trainer that makes its state, puts it on disk and takes it back, however many processes hold it.

A checkpoint is what one process by itself would write: whole weights and whole optimiser states. So it can be gone on
with by another number of processes, and under another strategy.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Trainer

from fintune.inference.forward import EdgeModel
from fintune.inference.out_of_memory import release_memory
from fintune.schema.errors import RunError
from fintune.training.checkpoints import newest_intact, rotate, staged_checkpoint
from fintune.training.guard import REMEDY, LossGuard
from fintune.training.optimizer_states import STATES_REMEDY, begin_states
from fintune.training.ranks import Ranks
from fintune.training.sharding import FsdpShards
from fintune.training.weights import restore_optimizer, restore_weights
from fintune.training.zero import ZeroSettings, ZeroShards

log = logging.getLogger(__name__)

SaveModel = Callable[[Path, dict[str, Tensor] | None], None]


class KeptTrainer(Trainer):
    """A ``Trainer`` with our checkpoints; ``TreeTrainer`` says what the attributes are."""

    edge_model: EdgeModel
    ranks: Ranks
    sharing: FsdpShards | ZeroSettings | None
    shards: FsdpShards | ZeroShards | None
    guard: LossGuard
    save_weights: SaveModel
    checkpoint_facts: Callable[[], dict[str, Any]]
    keep_checkpoints: int
    save_steps: int
    _trained: list[nn.Parameter]
    _has_states = False
    make_optimizer: Callable[[], torch.optim.Optimizer] | None = None  # the one that ``arguments`` name when None

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Written by the first rank; what the others would have to add follows from seed, step and rank."""
        weights = states = None
        if self.shards is not None:
            weights, states = self.shards.weights(), self.shards.states(self.optimizer)
        elif self.ranks.world > 1:
            sums = torch.stack([parameter.detach().double().sum() for parameter in self._trained])
            self.ranks.require_same("sum of the trained weights", float(sums.sum()))
        if self.ranks.is_first:
            self._write_checkpoint(weights, states)
        self.ranks.wait()

    def _write_checkpoint(self, weights: dict[str, Tensor] | None, states: dict[str, Any] | None) -> None:
        folder = Path(str(self.args.output_dir))
        step = self.state.global_step
        with staged_checkpoint(folder, step, self.checkpoint_facts()) as staging:
            self.save_weights(staging / "weights", weights)
            if states is None:
                self._save_optimizer_and_scheduler(str(staging))
            else:
                torch.save(states, staging / "optimizer.pt")
                schedule = _for_groups(self._schedule().state_dict(), len(states["param_groups"]))
                torch.save(schedule, staging / "scheduler.pt")
            self._save_scaler(str(staging))
            self._save_rng_state(str(staging))
            self._export_callback_states()
            self.state.save_to_json(str(staging / "trainer_state.json"))
        self.rotate_checkpoints()

    def _save_rng_state(self, output_dir: str) -> None:
        """Random states, where they do not follow from seed, step and rank."""
        if self.ranks.world == 1:
            super()._save_rng_state(output_dir)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Likewise; what a run of several processes left has none, and dropout then draws new masks."""
        if self.ranks.world == 1:
            super()._load_rng_state(checkpoint)

    def rotate_checkpoints(self) -> None:
        """Deletes old checkpoints, but none that a rollback may soon need."""
        if self.ranks.is_first and not self.guard.state.unproven:
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

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self.shards is None or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        states, schedule = (
            torch.load(Path(checkpoint) / name, map_location="cpu", weights_only=True)
            for name in ("optimizer.pt", "scheduler.pt")
        )
        self.shards.load_states(self.optimizer, states)
        groups = len(self._schedule().optimizer.param_groups)
        self._schedule().load_state_dict(_for_groups(schedule, groups))

    def create_optimizer(self, *arguments: Any, **options: Any) -> Any:
        """The one that was given or the Trainer's own, under DeepSpeed where the run shares out its states."""
        if self.make_optimizer is not None and self.optimizer is None:
            self.optimizer = self.make_optimizer()
        optimizer: Any = super().create_optimizer(*arguments, **options)
        if isinstance(self.sharing, ZeroSettings) and self.shards is None:
            limit = float(self.args.max_grad_norm)
            self.shards = ZeroShards(self.edge_model.model, optimizer, self.ranks, self.sharing, limit)
            optimizer = self.optimizer = cast(Any, self.shards)
        return optimizer

    def _begin_states(self, step: int) -> None:
        """Has the optimiser's states made before it first updates a weight, with a second try once memory is released.

        Raises:
            RunError: they do not fit.
        """
        if self._has_states or isinstance(self.shards, ZeroShards):  # DeepSpeed has made its own
            return
        inner: Any = getattr(self.optimizer, "optimizer", self.optimizer)  # accelerate wraps it
        if not begin_states(inner):
            self._release_memory()
            log.warning("Step %d: the optimiser's states did not fit into memory; what can be is released.", step)
            if not begin_states(inner):
                raise RunError(
                    f"Step {step}: the optimiser's states do not fit into memory; no weight was changed by it.",
                    STATES_REMEDY,
                )
        self._has_states = True

    def _release_memory(self) -> None:
        release_memory()

    def _roll_back(self, step: int) -> None:
        """Puts back the newest checkpoint that can be trusted.

        Raises:
            RunError: there is none.
        """
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

    def _schedule(self) -> Any:
        return self.lr_scheduler

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The Trainer's own; under DeepSpeed it sets the learning rate of the AdamW within."""
        inner = self.shards.inner if isinstance(self.shards, ZeroShards) else optimizer
        return super().create_scheduler(num_training_steps, inner)

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        """Nowhere: it lies where it belongs, and parts of it that are offloaded must not be moved."""

    def _load_scaler(self, checkpoint: str | None) -> None:
        """The loss scale of a checkpoint, where both it and this run scale the loss; else a fresh one, or none."""
        if getattr(self.accelerator, "scaler", None) is None:
            return
        try:
            super()._load_scaler(checkpoint)
        except (RuntimeError, KeyError) as exc:
            log.warning("The loss scale of %s cannot be used (%s); it starts afresh.", checkpoint, exc)


def _for_groups(schedule: dict[str, Any], count: int) -> dict[str, Any]:
    """The state of a schedule for ``count`` groups of parameters, all alike; DeepSpeed drops those that are empty."""
    lists = {name: value[:1] * count for name, value in schedule.items() if isinstance(value, list)}
    return schedule | lists
