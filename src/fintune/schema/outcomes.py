"""What the public functions return, besides scores: a finished run, a previewed sample, a listed task."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fintune.schema.results import EvaluationResults


@dataclass(frozen=True)
class TrainingOutcome:
    """What a run left behind.

    Attributes:
        run_dir: the run directory.
        adapter_dir: the trained adapter (or whole model) with its tokenizer.
        results: scores of base, tuned and classical systems.
        report: the HTML page, None when the recipe switches reports off.
        facts: what the run measured about itself.
    """

    run_dir: Path
    adapter_dir: Path
    results: EvaluationResults
    report: Path | None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PreviewSample:
    """One training sample as the model sees it: (text, id, supervised?) for every token."""

    example_id: str
    tokens: tuple[tuple[str, int, bool], ...]
    truncated: bool


@dataclass(frozen=True)
class TaskInfo:
    """A registered task, for listings."""

    name: str
    version: str
    description: str
    licence: str
    citation: str
    prompts: tuple[str, ...]
    choices: tuple[str, ...]
    configs: tuple[str, ...]
    hub_ids: tuple[str, ...]
    has_sample: bool
