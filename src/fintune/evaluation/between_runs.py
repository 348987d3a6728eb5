"""Systems of several runs side by side: paired tests on the same documents, and the spread of repeated runs.

Enters: named systems, each from one or more finished runs. Leaves: ``EvaluationResults`` as of one evaluation, and its
records. Scores are those of the runs; only what needs two systems is computed here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean, stdev
from typing import TypeVar

from fintune.evaluation.comparing import with_holm
from fintune.metrics.summary import compare
from fintune.schema.errors import DataError, RunError
from fintune.schema.results import (
    Comparison,
    DocumentRecord,
    EvaluationResults,
    Protocol,
    RepeatedScore,
    TaskResult,
)

_Entry = TypeVar("_Entry")


@dataclass(frozen=True)
class RunOfSystem:
    """One finished run as one system of a comparison.

    Attributes:
        name: what the comparison calls the system.
        place: where the run is, for messages.
        system: which of the run's systems is meant.
        results: the run's results.
        records: the run's records.
    """

    name: str
    place: str
    system: str
    results: EvaluationResults
    records: Sequence[DocumentRecord]


def compare_runs(
    runs: Sequence[RunOfSystem], *, n_resamples: int = 2000, seed: int = 17
) -> tuple[EvaluationResults, list[DocumentRecord]]:
    """Every pair of systems on every task that both have, the later named minus the earlier.

    Where one name has a task from several runs (seeds), the first is the one compared, and all of them are behind the
    mean and spread in ``repeats``.

    Args:
        runs: at least two systems, in the order in which they are shown.
        n_resamples: bootstrap resamples behind each difference.
        seed: seed of the bootstrap.

    Raises:
        RunError: a run does not have the system asked for, or there is only one system.
        DataError: two systems answered different documents of one task, or it was scored in different versions.
    """
    names = list(dict.fromkeys(run.name for run in runs))
    if len(names) < 2:
        raise RunError("There is only one system to compare.", "Name two or more, such as base=RUN:base tuned=RUN.")
    first: dict[tuple[str, str, Protocol], tuple[TaskResult, RunOfSystem]] = {}
    repeated: dict[tuple[str, str, Protocol], list[TaskResult]] = {}
    for run in runs:
        for result in _results_of(run):
            key = (result.task, run.name, result.protocol)
            first.setdefault(key, (result, run))
            repeated.setdefault(key, []).append(result)
            _require_alike(first[key], (result, run))
    tasks = list(dict.fromkeys(task for task, _, _ in first))
    records = {key: _records_of(run, result) for key, (result, run) in first.items()}
    comparisons = [
        _compared(first[earlier], first[later], records[earlier], records[later], n_resamples, seed)
        for task in tasks
        for protocol in dict.fromkeys(protocol for of, _, protocol in first if of == task)
        for earlier, later in combinations([(task, name, protocol) for name in names], 2)
        if earlier in first and later in first
    ]
    ordered = sorted(first, key=lambda key: (tasks.index(key[0]), names.index(key[1])))
    results = EvaluationResults(
        model=_joined(run.results.model for run in runs),
        adapter=None,
        results=tuple(first[key][0] for key in ordered),
        comparisons=tuple(with_holm(comparisons)),
        overlap=_once(entry for run in runs for entry in run.results.overlap),
        data=_once(entry for run in runs for entry in run.results.data),
        counts={
            f"{name} stands for": _joined(f"{r.place}:{r.system}" for r in runs if r.name == name) for name in names
        },
        repeats=tuple(score for key in ordered for score in _spread(repeated[key])),
        elapsed_s=sum(run.results.elapsed_s for run in runs),
        time_costs=tuple(
            cost.model_copy(update={"system": run.name})
            for run in runs
            for cost in run.results.time_costs
            if cost.system == run.system
        ),
    )
    return results, [record for key in ordered for record in records[key]]


def _results_of(run: RunOfSystem) -> list[TaskResult]:
    found = [result for result in run.results.results if result.system == run.system]
    if not found:
        there = ", ".join(dict.fromkeys(result.system for result in run.results.results)) or "none"
        raise RunError(f"{run.place} has no scores of {run.system!r}; it has {there}.", "Name one as RUN:SYSTEM.")
    return [result.model_copy(update={"system": run.name}) for result in found]


def _records_of(run: RunOfSystem, result: TaskResult) -> list[DocumentRecord]:
    wanted = (run.system, result.task, result.protocol)
    found = [
        record.model_copy(update={"system": run.name})
        for record in run.records
        if (record.system, record.task, record.protocol) == wanted
    ]
    if len(found) != result.n:
        raise DataError(
            f"{run.place} scores {result.n} documents of {result.task}, but its predictions.jsonl has {len(found)}.",
            "Evaluate that run again.",
        )
    return found


def _require_alike(earlier: tuple[TaskResult, RunOfSystem], later: tuple[TaskResult, RunOfSystem]) -> None:
    """Raises ``DataError`` where one task was not scored alike in two runs."""
    (reference, reference_run), (system, system_run) = earlier, later
    for what in ("task_version", "split", "confidence", "n"):
        ours, theirs = getattr(system, what), getattr(reference, what)
        if ours != theirs:
            raise DataError(
                f"{system.task} has {what} {ours!r} in {system_run.place} and {theirs!r} in {reference_run.place}.",
                "Evaluate one of them again as the other was, with the same version, split and limit.",
            )


def _compared(
    earlier: tuple[TaskResult, RunOfSystem],
    later: tuple[TaskResult, RunOfSystem],
    earlier_records: Sequence[DocumentRecord],
    later_records: Sequence[DocumentRecord],
    n_resamples: int,
    seed: int,
) -> Comparison:
    _require_alike(earlier, later)
    (_, reference_run), (system, system_run) = earlier, later
    try:
        return compare(
            later_records,
            earlier_records,
            labels=later_records[0].choices,
            scoring=system.scoring,
            confidence=system.confidence,
            n_resamples=n_resamples,
            seed=seed,
            other_form=system.scoring in ("qa", "text"),  # asked for a program in one run, for a number in the other
        )
    except DataError as exc:
        places = f"{system_run.place} and {reference_run.place}"
        raise DataError(f"{system.task} cannot be compared between {places}: {exc.message}", exc.remedy) from exc


def _spread(results: Sequence[TaskResult]) -> list[RepeatedScore]:
    """Mean and sample standard deviation over runs of each score that all of them have; none for a single run."""
    if len(results) < 2:
        return []
    shared = [name for name in results[0].metrics if all(name in result.metrics for result in results)]
    values: Mapping[str, tuple[float, ...]] = {
        name: tuple(result.metrics[name].value for result in results) for name in shared
    }
    one = results[0]
    return [
        RepeatedScore(
            task=one.task,
            system=one.system,
            protocol=one.protocol,
            metric=name,
            values=found,
            mean=fmean(found),
            deviation=stdev(found),
        )
        for name, found in values.items()
    ]


def _joined(parts: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(parts))


def _once(entries: Iterable[_Entry]) -> tuple[_Entry, ...]:
    """The entries without repeats, in order."""
    found: list[_Entry] = []
    for entry in entries:
        if entry not in found:
            found.append(entry)
    return tuple(found)
