"""Where a run goes on: the newest intact checkpoint, what it remembers, and what has changed since it was taken.

Enters: the run directory, the fingerprint of recipe, data and base, and words about the numerics. Leaves:
``ResumePoint``, which is also what a fresh run starts from.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fintune.schema.errors import RunError
from fintune.schema.run_directory import RunDirectory
from fintune.training.callbacks import Totals
from fintune.training.checkpoints import Checkpoint, discard_after, newest_intact
from fintune.training.guard import GuardState
from fintune.training.numerics import changed_numerics
from fintune.training.token_budget import TokenBudget

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResumePoint:
    """A checkpoint and what it remembers, or the start of a fresh run.

    Attributes:
        checkpoint: None for a fresh run.
        totals: what had been computed.
        guard: what the guard remembered.
        budget: the token budget in use, how activations were kept and how often either had to give way; empty in
            checkpoints older than it.
        tasks: losses and counts by task, as ``TaskMeter`` gave them; empty where tasks were not told apart.
        change: what differs from the session that took the checkpoint, in words; empty when the rest is bit-equal.
        resumed_on: all such changes of the run so far, each with its step.
    """

    checkpoint: Checkpoint | None = None
    totals: Totals = field(default_factory=Totals)
    guard: GuardState = field(default_factory=GuardState)
    budget: Mapping[str, Any] = field(default_factory=dict)
    tasks: Mapping[str, Any] = field(default_factory=dict)
    change: str = ""
    resumed_on: tuple[str, ...] = ()

    @property
    def step(self) -> int:
        """Optimiser steps already done."""
        return self.checkpoint.step if self.checkpoint else 0

    def token_budget(self, tokens_per_batch: int) -> TokenBudget:
        """The budget to go on with: what was found to fit, unless the machine or the recipe's numerics have changed."""
        retries = self.budget.get("retries", 0)
        if self.change:
            return TokenBudget(tokens_per_batch, retries)
        tokens = self.budget.get("tokens", tokens_per_batch)
        kept = {name: value for name, value in self.budget.items() if name not in ("tokens", "retries")}
        return TokenBudget(min(tokens, tokens_per_batch), retries, **kept)


def find_resume_point(run: RunDirectory, fingerprint: dict[str, Any], numerics: dict[str, str]) -> ResumePoint:
    """The newest intact checkpoint of ``run``; later ones, which are damaged, are removed.

    Raises:
        RunError: it belongs to another recipe, data set or base.
    """
    checkpoint = newest_intact(run.checkpoints)
    if checkpoint is None:
        discard_after(run.checkpoints, 0)
        return ResumePoint()
    facts = checkpoint.manifest()
    _require_same_run(checkpoint, facts.get("fingerprint", {}), fingerprint)
    discard_after(run.checkpoints, checkpoint.step)
    change = changed_numerics(facts.get("numerics", {}), numerics)
    resumed_on = tuple(facts.get("resumed_on", ()))
    if change:
        log.warning("Going on from step %d, not bit-equal to an unbroken run: %s.", checkpoint.step, change)
        resumed_on += (f"step {checkpoint.step}: {change}",)
    guard = GuardState(**facts.get("guard", {}))
    totals, budget = Totals(**facts["totals"]), facts.get("budget", {})
    return ResumePoint(checkpoint, totals, guard, budget, facts.get("tasks", {}), change, resumed_on)


def checkpoint_facts(
    fingerprint: dict[str, Any],
    numerics: dict[str, str],
    totals: Totals,
    guard: GuardState,
    budget: TokenBudget,
    resumed_on: tuple[str, ...],
    tasks: Mapping[str, Any],
) -> dict[str, Any]:
    """What is written into a checkpoint's manifest for ``find_resume_point`` to read."""
    return {
        "fingerprint": fingerprint,
        "numerics": numerics,
        "totals": asdict(totals),
        "guard": asdict(guard),
        "budget": asdict(budget),
        "resumed_on": resumed_on,
        "tasks": tasks,
    }


def _require_same_run(checkpoint: Checkpoint, saved: dict[str, Any], fingerprint: dict[str, Any]) -> None:
    changed = sorted(key for key in fingerprint if saved.get(key) != fingerprint[key])
    if changed:
        raise RunError(
            f"{checkpoint.path} was made with another {' and '.join(changed)} than this run.",
            "Use the same recipe to go on, or --no-resume (or another --output-dir) to start afresh.",
        )
