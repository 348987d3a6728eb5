"""Where curves go besides metrics.jsonl: TensorBoard, and trackers that have to be installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fintune.schema.errors import DependencyError
from fintune.schema.recipe import Recipe


def require_trackers(recipe: Recipe) -> None:
    """Fails before anything is loaded when a tracker of the recipe is not installed."""
    for name in recipe.training.tracking:
        if importlib.util.find_spec(name) is None:
            raise DependencyError(
                f"training.tracking names {name}, which is not installed.",
                f"Run `pip install {name}`, or take it out of training.tracking.",
            )


def trackers(names: Sequence[str], tensorboard: Path, resume_step: int) -> list[Any]:
    """Callbacks that pass on what a run logs; they have to come after ``MetricsCallback``, which adds its figures.

    Args:
        names: as ``training.tracking`` has them.
        tensorboard: folder of TensorBoard's event files.
        resume_step: what TensorBoard has of later steps is dropped.
    """
    from transformers.integrations import integration_utils

    library: Any = integration_utils
    found = [make() for make in library.get_reporting_integration_callbacks([n for n in names if n != "tensorboard"])]
    if "tensorboard" not in names:
        return found
    from torch.utils.tensorboard import SummaryWriter

    writer: Any = SummaryWriter
    own = writer(log_dir=str(tensorboard), purge_step=resume_step + 1)
    return [*found, library.TensorBoardCallback(tb_writer=own)]
