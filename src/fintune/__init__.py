"""fintune adapts open language models to finance, measures what that bought, and says so honestly.

Everything public is here; the rest of the package may change between versions.
"""

from fintune.api import (
    doctor,
    evaluate,
    load,
    preview,
    recipes,
    report,
    tasks,
    train,
)
from fintune.schema.errors import FintuneError
from fintune.schema.outcomes import PreviewSample, TaskInfo, TrainingOutcome
from fintune.schema.recipe import Recipe

__all__ = [
    "FintuneError",
    "PreviewSample",
    "Recipe",
    "TaskInfo",
    "TrainingOutcome",
    "doctor",
    "evaluate",
    "load",
    "preview",
    "recipes",
    "report",
    "tasks",
    "train",
]
