"""From the lines of finished variants to one row for each variant: medians over rounds, and the effect of the switch.

Enters: records of ``runs.jsonl``. Leaves: ``VariantRow``s. Loss at equal time is read off each curve, by straight lines
between its points, at the time in which the quickest variant of the family and round takes all its tokens.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fintune.bench.optimisations import Family, Origin, Variant, companions, optimisations, variants

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Spread:
    """A quantity over rounds.

    Attributes:
        middle: the median.
        low: the least.
        high: the most.
        n: rounds.
    """

    middle: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """The spread of some values; None of none."""
        return cls(statistics.median(values), min(values), max(values), len(values)) if values else None


@dataclass(frozen=True)
class VariantRow:
    """One variant over all rounds.

    Attributes:
        name: of the variant.
        family: the kind of run.
        origin: the combination that it differs from.
        key: the optimisation that was switched; empty for the origin.
        is_on: whether the optimisation is on in it.
        tokens_per_s: once warm.
        effect: speed with the optimisation divided by speed without, round by round; None for the origin. Without it is
            the variant that differs in nothing else, where there is one; else the origin.
        memory_effect: the same of peak memory.
        loss_effect: held-out loss with the optimisation minus without, after the same tokens.
        peak_bytes: of training.
        loss: after all tokens.
        loss_at_time: after the time that the quickest variant took.
        latency_ms: of a written token.
        cold_s: the first passes.
        parameters: of the model.
        said: what to know: what else was switched, why something is missing.
    """

    name: str
    family: Family
    origin: Origin
    key: str
    is_on: bool
    tokens_per_s: Spread | None = None
    effect: Spread | None = None
    memory_effect: Spread | None = None
    loss_effect: Spread | None = None
    peak_bytes: Spread | None = None
    loss: Spread | None = None
    loss_at_time: Spread | None = None
    latency_ms: Spread | None = None
    cold_s: Spread | None = None
    parameters: int | None = None
    said: tuple[str, ...] = ()


def variant_rows(records: Sequence[Record], family: Family, device: str) -> list[VariantRow]:
    """A row for each variant of a family that was run, and for each optimisation that the device cannot have.

    Args:
        records: of all families.
        family: the one that is wanted.
        device: kind of device they were run on.
    """
    own = [record for record in records if record["family"] == family]
    names = {record["variant"] for record in own}
    rows = [_row(variant, own, device) for variant in variants(family, device) if variant.name in names]
    return rows + _impossible(family, device) if rows else []


def equal_time_s(records: Sequence[Record], family: Family) -> dict[int, float]:
    """By round, the seconds in which the quickest variant of a family took all its tokens."""
    found: dict[int, list[float]] = {}
    for record in _measured(records, family, "whole"):
        found.setdefault(record["round"], []).append(record["measured"]["curve"][-1]["seconds"])
    return {number: min(seconds) for number, seconds in found.items()}


def loss_at(curve: Sequence[Mapping[str, float]], seconds: float) -> float:
    """The held-out loss after some seconds of training, by straight lines between the points of a curve."""
    times, losses = [point["seconds"] for point in curve], [point["loss"] for point in curve]
    return float(np.interp(seconds, times, losses))


def _measured(records: Iterable[Record], family: Family, part: str) -> list[Record]:
    return [r for r in records if r["family"] == family and r["part"] == part and r["measured"] is not None]


def _row(variant: Variant, records: Sequence[Record], device: str) -> VariantRow:
    is_on = variant.key in variant.switches
    parts = {part: _by_round(records, variant.name, part) for part in ("whole", "speed")}
    name = _without_its_switch(variant, device, {record["variant"] for record in records})
    origin = {part: _by_round(records, name, part) for part in ("whole", "speed")}
    whole, quick = parts["whole"], parts["speed"] or parts["whole"]
    quick_origin = origin["speed"] or origin["whole"]
    times = equal_time_s(records, variant.family)
    sign = 1 if is_on else -1
    shared = [number for number in quick if number in quick_origin] if variant.key else []
    both = [number for number in whole if number in origin["whole"]] if variant.key else []
    return VariantRow(
        name=variant.name,
        family=variant.family,
        origin=variant.origin,
        key=variant.key,
        is_on=is_on,
        tokens_per_s=_spread(quick, "tokens_per_s"),
        effect=Spread.of([_ratio(quick, quick_origin, n, "tokens_per_s") ** sign for n in shared]),
        memory_effect=Spread.of([_ratio(quick, quick_origin, n, "peak_bytes") ** sign for n in shared]),
        loss_effect=Spread.of([sign * (_last(whole[n]) - _last(origin["whole"][n])) for n in both]),
        peak_bytes=_spread(quick, "peak_bytes"),
        loss=Spread.of([_last(found) for found in whole.values()]),
        loss_at_time=Spread.of([loss_at(found["curve"], times[n]) for n, found in whole.items()]),
        latency_ms=_spread(quick, "latency_ms"),
        cold_s=_spread(quick, "cold_s"),
        parameters=next((found["parameters"] for found in quick.values()), None),
        said=_said(variant, records, device, quick),
    )


def _without_its_switch(variant: Variant, device: str, names: set[str]) -> str:
    """The variant that differs in this optimisation alone, where one was run; else the origin."""
    wanted = set(variant.switches) ^ {variant.key}
    known = [other for other in variants(variant.family, device) if other.name in names]
    same = [other.name for other in known if set(other.switches) == wanted]
    return next((name for name in same if name == variant.origin), next(iter(same), variant.origin))


def _by_round(records: Sequence[Record], name: str, part: str) -> dict[int, Mapping[str, Any]]:
    """The measurements of a variant by round; of several in one round the one whose speed is in the middle."""
    turns: dict[int, list[Mapping[str, Any]]] = {}
    for record in records:
        if record["variant"] == name and record["part"] == part and record["measured"] is not None:
            turns.setdefault(record["round"], []).append(record["measured"])
    return {n: sorted(found, key=lambda one: one["tokens_per_s"])[len(found) // 2] for n, found in turns.items()}


def _spread(found: Mapping[int, Mapping[str, Any]], key: str) -> Spread | None:
    return Spread.of([float(one[key]) for one in found.values() if one[key] is not None])


def _ratio(found: Mapping[int, Any], origin: Mapping[int, Any], number: int, key: str) -> float:
    return max(float(found[number][key]), 1e-9) / max(float(origin[number][key]), 1e-9)


def _last(measured: Mapping[str, Any]) -> float:
    return float(measured["curve"][-1]["loss"])


def _said(
    variant: Variant, records: Sequence[Record], device: str, found: Mapping[int, Mapping[str, Any]]
) -> tuple[str, ...]:
    known = {one.key: one for one in optimisations(variant.family)}
    said = []
    if variant.key and variant.origin == "full" and (reason := known[variant.key].why_outside(device)):
        said.append(reason)
    if along := companions(variant, device):
        verb = "with" if variant.key in variant.switches else "also without"
        said.append(f"{verb} {', '.join(known[key].name for key in along)}")
    notes = dict.fromkeys(note for one in found.values() for note in one["notes"])
    problems = dict.fromkeys(r["problem"] for r in records if r["variant"] == variant.name and r["problem"])
    return (*said, *notes, *(f"failed: {problem}" for problem in problems))


def _impossible(family: Family, device: str) -> list[VariantRow]:
    origins: tuple[Origin, ...] = ("base", "full")
    return [
        VariantRow(f"{origin}+{one.key}", family, origin, one.key, True, said=(f"not measured: {reason}",))
        for one in optimisations(family)
        if (reason := one.why_impossible(device))
        for origin in origins
    ]
