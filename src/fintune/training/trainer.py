"""``TreeTrainer``: ``transformers.Trainer`` whose batch is a whole optimiser step of token trees.

The Trainer keeps its loop, optimiser, schedule, callbacks and resume. What differs: one data-set item is one step;
the loss divides by the step's total weight over all its batches and ranks; a checkpoint is written aside first.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainingArguments

from fintune.inference.forward import EdgeModel
from fintune.training.checkpoints import rotate, staged_checkpoint
from fintune.training.steps import StepDataset
from fintune.trees.plan import Step

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
        callbacks: further callbacks.
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
        callbacks: list[Any],
    ) -> None:
        self.edge_model = edge_model
        self.steps = steps
        self.save_weights = save_weights
        self.validate = validate
        self.checkpoint_facts = checkpoint_facts
        self.keep_checkpoints = keep_checkpoints
        self.last_step: Step | None = None
        super().__init__(model=edge_model.model, args=arguments, train_dataset=steps, callbacks=callbacks)
        self.loss_is_scaled_for_ga = True
        self.remove_callback(PrinterCallback)  # metrics.jsonl and the progress bar say it

    def get_train_dataloader(self) -> DataLoader[Step]:
        """Steps in order; the plan inside them has already drawn and dealt out the samples."""
        return DataLoader(self.steps, batch_size=1, shuffle=False, collate_fn=_only)

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward over all batches of one step; returns the step's mean loss on this rank."""
        step: Step = inputs
        self.last_step = step
        model.train()
        scale = self.steps.world / step.total_weight if step.total_weight else 0.0  # DDP averages over ranks
        total = torch.zeros((), device=self.args.device)
        for number, batch in enumerate(step.batches):
            with self._synchronised(model, last=number == len(step.batches) - 1):
                loss = self.edge_model.loss_sum(batch.to(self.args.device), model) * scale
                self.accelerator.backward(loss)
            total += loss.detach()
        return total

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
        rotate(folder, self.keep_checkpoints, self.state.best_global_step)

    def _export_callback_states(self) -> None:
        from transformers.trainer_callback import ExportableState

        exported: Any = self.state.stateful_callbacks

        for callback in [*self.callback_handler.callbacks, self.control]:
            if isinstance(callback, ExportableState):
                exported[type(callback).__name__] = callback.state()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Weights are loaded by the caller, who knows whether they are an adapter or a whole model."""


def _only(items: list[Step]) -> Step:
    return items[0]
