"""From one adapter to the next: which rule can take the earlier one over, and what comes out, as far as recipes tell.

Enters: the adapter sections before and after. Leaves: a sentence with its remedy where they do not fit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fintune.schema.support import Problem

if TYPE_CHECKING:
    from fintune.schema.recipe import AdapterSection

RULES = (
    "Set adapter.hand_over to pad (the same adapter with a larger rank or more layers), stack (a new one beside the "
    "frozen old one) or merge (the old one becomes part of the base)."
)


def hand_over_problem(before: AdapterSection, after: AdapterSection) -> Problem | None:
    """Why ``after`` cannot start from ``before``, with the remedy; None when it can."""
    if "none" in (before.kind, after.kind):
        return _without_adapter(before, after)
    if after.hand_over == "merge":
        return None
    if after.hand_over is None:
        changed = [key for key in ("rank", "targets", "rslora", "dora") if _value(before, key) != _value(after, key)]
        if changed:
            verb = "differs from that" if len(changed) == 1 else "differ from those"
            return Problem(f"{_listed(changed)} {verb} of the adapter it starts from.", RULES)
        return None
    if after.hand_over == "stack":
        if before.dora or after.dora:
            return Problem(
                "hand_over=stack cannot hold DoRA, which scales whole weights, so that two adapters do not add up.",
                "Set adapter.hand_over=merge, or adapter.dora=false in both.",
            )
        return None
    return _padding_problem(before, after)


def _without_adapter(before: AdapterSection, after: AdapterSection) -> Problem | None:
    if before.kind != after.kind:
        return Problem(
            f"kind={after.kind} cannot start from an adapter of kind={before.kind}.",
            "Set adapter.kind alike, or train the second as a run whose model.base is the first.",
        )
    return None


def _padding_problem(before: AdapterSection, after: AdapterSection) -> Problem | None:
    if before.dora != after.dora:
        return Problem(
            "hand_over=pad cannot switch DoRA on or off.", "Set adapter.dora alike, or adapter.hand_over=merge."
        )
    if after.rank < before.rank:
        return Problem(
            f"hand_over=pad cannot shrink rank {before.rank} to {after.rank}, which would lose what was learnt.",
            f"Set adapter.rank to at least {before.rank}, or adapter.hand_over to stack or merge.",
        )
    dropped = dropped_targets(before, after)
    if dropped:
        return Problem(
            f"hand_over=pad cannot drop the targets {', '.join(dropped)}, which would lose what was learnt.",
            "Name them in adapter.targets too, or set adapter.hand_over to stack or merge.",
        )
    return None


def dropped_targets(before: AdapterSection, after: AdapterSection) -> list[str]:
    """Layers that only the earlier adapter changes; which layers ``all-linear`` means, only the model knows."""
    if after.targets == "all-linear" or before.targets == "all-linear":
        return []
    return sorted(set(before.targets) - set(after.targets))


def continued(before: AdapterSection, after: AdapterSection) -> AdapterSection:
    """The adapter that comes out, as far as sections can say: after ``stack`` it has both ranks and all targets."""
    if after.hand_over != "stack":
        return after
    targets = after.targets
    if "all-linear" in (before.targets, after.targets):
        targets = "all-linear"
    elif before.targets != after.targets:
        targets = tuple(sorted({*before.targets, *after.targets}))
    return after.model_copy(update={"rank": before.rank + after.rank, "targets": targets})


def _value(section: AdapterSection, key: str) -> object:
    value = getattr(section, key)
    return sorted(value) if isinstance(value, tuple) else value


def _listed(keys: list[str]) -> str:
    return keys[0] if len(keys) == 1 else f"{', '.join(keys[:-1])} and {keys[-1]}"
