"""The learning rate lowered when validations stop getting better: PyTorch's ``ReduceLROnPlateau`` from a recipe.

The Trainer steps it after each validation, before the checkpoint is taken, and saves and loads its state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.optim.lr_scheduler import ReduceLROnPlateau

from fintune.schema.recipe import TrainingSection

if TYPE_CHECKING:
    from torch.optim import Optimizer


def plateau_schedule(optimizer: Optimizer, training: TrainingSection) -> ReduceLROnPlateau:
    """The schedule of a recipe with ``training.schedule: plateau``."""
    return ReduceLROnPlateau(
        optimizer,
        mode="min" if training.best_metric == "loss" else "max",
        factor=training.plateau_factor,
        patience=training.plateau_patience,
        threshold=training.plateau_threshold,
        threshold_mode="abs",
        min_lr=training.plateau_minimum,
    )
