"""What figures are drawn from: a run directory, read once.

Enters: run directories, each with the name that figures give it. Leaves: ``RunData``; several of them as one set of
results, in which every run is a system.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fintune.reporting.wording import systems_of
from fintune.schema.results import DocumentRecord, EvaluationResults, TaskResult
from fintune.schema.run_directory import RunDirectory
from fintune.sources.text import without_lone_surrogates

History = Sequence[Mapping[str, Any]]
_WORDS = ("system", "task", "example_id", "group", "target", "prediction", "output", "dialogue", "text", "reference")


@dataclass(frozen=True)
class RunData:
    """One run as figures need it; what it does not have is empty or None.

    Attributes:
        name: what figures of several runs call it.
        results: aggregates of its evaluation.
        records: a record for each document and system.
        history: lines of ``metrics.jsonl``.
        other_ranks: the same of further processes, by rank.
        facts: what it measured about itself.
        adapter_bytes: size of the adapter's weights on disk.
        stages: results of each stage in order, None where a stage was not measured; empty without stages.
    """

    name: str = ""
    results: EvaluationResults | None = None
    records: Sequence[DocumentRecord] = ()
    history: History = ()
    other_ranks: Mapping[int, History] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    adapter_bytes: int | None = None
    stages: Mapping[str, EvaluationResults | None] = field(default_factory=dict)


def read_run(run: RunDirectory, name: str = "") -> RunData:
    """Everything that figures show of a run.

    Raises:
        RunError: one of its files is damaged.
    """
    return RunData(
        name=name,
        results=run.read_results() if run.results.is_file() else None,
        records=presentable(run.read_records()),
        history=run.read_history(),
        other_ranks=run.read_other_ranks(),
        facts=run.read_facts(),
        adapter_bytes=adapter_bytes(run),
        stages=stage_results(run),
    )


def presentable(records: Iterable[DocumentRecord]) -> list[DocumentRecord]:
    """The records as pages and figures can show them.

    A lone half of a character pair, which UTF-8 has no bytes for, becomes U+FFFD. Probabilities one of which is no
    finite number are not known.
    """
    return [_presentable(record) for record in records]


def _presentable(record: DocumentRecord) -> DocumentRecord:
    changed: dict[str, Any] = {}
    for name in _WORDS:
        value = getattr(record, name)
        if (clean := without_lone_surrogates(value)) != value:
            changed[name] = clean
    choices = tuple(map(without_lone_surrogates, record.choices))
    if choices != record.choices:
        changed["choices"] = choices
    if record.probabilities is not None and not all(map(math.isfinite, record.probabilities)):
        changed["probabilities"] = None
    return record.model_copy(update=changed) if changed else record


def adapter_bytes(run: RunDirectory) -> int | None:
    """Size of the weights in the run's adapter folder; None where it has none."""
    sizes = [file.stat().st_size for file in run.adapter.glob("*.safetensors")]
    return sum(sizes) if sizes else None


def stage_results(run: RunDirectory) -> dict[str, EvaluationResults | None]:
    """Results by stage, in the order in which they were trained; the last stage's are the run's own."""
    places = [RunDirectory(path) for path in sorted(run.path.glob("stages/*"), key=_number) if path.is_dir()]
    found = {place.path.name: place.read_results() if place.results.is_file() else None for place in places}
    if places and run.results.is_file():
        found[places[-1].path.name] = run.read_results()
    return found


def _number(folder: Path) -> tuple[int, str]:
    head = folder.name.partition("-")[0]
    return (int(head) if head.isdecimal() else 0, folder.name)


def together(runs: Sequence[RunData]) -> tuple[EvaluationResults, list[DocumentRecord], dict[str, str]]:
    """The base and the main system of each run as one set of results, and why tasks were left out.

    A run's tuned model gets the run's name; a run without one shows its base by that name. A base that scored the same
    in all runs is there once. A task that was not scored alike in all runs that have it is left out.
    """
    results: list[TaskResult] = []
    records: list[DocumentRecord] = []
    names = _names(runs)
    left_out = _unlike(runs)
    for (place, system), name in names.items():
        run = runs[place]
        assert run.results is not None  # a run without results has no systems
        known = {(result.task, result.system, result.protocol) for result in results}
        for result in run.results.results:
            key = (result.task, name, result.protocol)
            if result.system == system and result.task not in left_out and key not in known:
                results.append(result.model_copy(update={"system": name}))
        own = {(result.task, result.protocol) for result in results if result.system == name} - {
            (task, protocol) for task, of, protocol in known if of == name
        }
        records += [
            record.model_copy(update={"system": name})
            for record in run.records
            if record.system == system and (record.task, record.protocol) in own
        ]
    model = ", ".join(dict.fromkeys(run.results.model for run in runs if run.results))
    return EvaluationResults(model=model, adapter=None, results=tuple(results)), records, left_out


def _names(runs: Sequence[RunData]) -> dict[tuple[int, str], str]:
    """The name of each run's base and tuned model; a base that agrees with those before it is called ``base`` too."""
    named: dict[tuple[int, str], str] = {}
    bases: dict[str, TaskResult] = {}
    for place, run in enumerate(runs):
        systems = systems_of(run.results) if run.results else []
        if "tuned" not in systems:
            named |= {(place, "base"): run.name} if "base" in systems else {}
            continue
        if run.results is not None and "base" in systems:
            own = {result.task: result for result in run.results.under("robust") if result.system == "base"}
            agrees = all(bases.setdefault(task, one).metrics == one.metrics for task, one in own.items())
            named[place, "base"] = "base" if agrees else f"base ({run.name})"
        named[place, "tuned"] = run.name
    return dict(sorted(named.items(), key=lambda entry: not entry[1].startswith("base")))


def _unlike(runs: Sequence[RunData]) -> dict[str, str]:
    """Tasks that runs scored on other documents or by other rules, and in what they differ."""
    first: dict[str, tuple[str, TaskResult]] = {}
    reasons: dict[str, str] = {}
    for run, result in _every(runs):
        name, reference = first.setdefault(result.task, (run.name, result))
        for what in ("task_version", "split", "n"):
            ours, theirs = getattr(result, what), getattr(reference, what)
            if ours != theirs:
                reasons.setdefault(result.task, f"{what} is {theirs} in {name} and {ours} in {run.name}")
    return reasons


def _every(runs: Sequence[RunData]) -> Iterable[tuple[RunData, TaskResult]]:
    for run in runs:
        for result in run.results.under("robust") if run.results else ():
            yield run, result
