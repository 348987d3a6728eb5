"""Which variants run in which order, and which of them are done.

Enters: sizes, variants, and the lines of ``runs.jsonl``. Leaves: ``Job``s. Each round runs all of them once with a seed
of its own, and begins at another place in the order, so that a machine that slows down favours none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from fintune.bench.optimisations import FAMILIES, Family, Variant, variants
from fintune.bench.sizes import Size

Part = Literal["whole", "speed"]
_TURNS = 3  # of base and full set in a round: one slow run of theirs would make everything else look fast
_GOLDEN = 0.618  # of the order: rounds then begin at places far from one another, however many there are


@dataclass(frozen=True)
class Job:
    """One process of the bench.

    Attributes:
        family: the kind of run.
        variant: its name.
        switches: what is on.
        part: ``whole``, or ``speed`` on the base that only speed is measured on.
        round: number of the repeat, which is the seed too.
        turn: number among the runs of one variant in a round; origins have several.
        device: ``cpu`` or ``cuda``.
    """

    family: Family
    variant: str
    switches: tuple[str, ...]
    part: Part
    round: int
    device: str
    turn: int = 0

    @property
    def key(self) -> str:
        """What it is found by among those that are done."""
        return f"{self.family}/{self.variant}/{self.part}/{self.round}/{self.turn}"


def jobs_of_round(chosen: Sequence[Variant], size: Size, device: str, number: int) -> list[Job]:
    """All jobs of a round, in its order."""
    jobs: list[Job] = []
    for family in FAMILIES:
        jobs += _of_family([one for one in chosen if one.family == family], size, device, number)
    start = round(number * len(jobs) * _GOLDEN) % max(1, len(jobs))
    return jobs[start:] + jobs[:start]


def _of_family(chosen: Sequence[Variant], size: Size, device: str, number: int) -> list[Job]:
    """Jobs with those of base and full set, which all others are compared with, first, in the middle and last."""
    jobs: list[list[Job]] = [[], []]
    for variant in chosen:
        parts = _parts(variant.family, size)
        own = [Job(variant.family, variant.name, variant.switches, part, number, device) for part in parts]
        jobs[bool(variant.key)].extend(own)
    origins, others = jobs
    if not others:
        return origins
    turns = [[replace(job, turn=turn) for job in origins] for turn in range(_TURNS)]
    middle = len(others) // 2
    return [*turns[0], *others[:middle], *turns[1], *others[middle:], *turns[2]]


def _parts(family: Family, size: Size) -> tuple[Part, ...]:
    return ("whole", "speed") if family == "llm" and size.llm.speed_base is not None else ("whole",)


def chosen_variants(families: Sequence[Family], device: str, only: Sequence[str] = ()) -> list[Variant]:
    """The variants of some families; with ``only``, those that switch these optimisations, and both origins."""
    found = [variant for family in families for variant in variants(family, device)]
    return [variant for variant in found if not only or not variant.key or variant.key in only]


def estimated_seconds(records: Sequence[dict[str, Any]]) -> float:
    """How long a round takes, by the first one."""
    return sum(float(record["seconds"]) for record in records if record["round"] == 0)
