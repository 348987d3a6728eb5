"""What a comparison of runs allows one to say: a sentence for each pair of systems, about all tasks both have.

Enters: ``EvaluationResults`` of several runs. Leaves: sentences, and published figures beside each system.
"""

from __future__ import annotations

from fintune.reporting.beside import published_table
from fintune.reporting.tables import Table
from fintune.reporting.wording import system_name, systems_of
from fintune.schema.results import SIGNIFICANT, Comparison, EvaluationResults


def pair_sentences(results: EvaluationResults) -> list[str]:
    """For each pair, on which tasks the later system is better, worse, or not told apart, under our rules."""
    pairs: dict[tuple[str, str], list[Comparison]] = {}
    for comparison in results.comparisons:
        if comparison.protocol == "robust":
            pairs.setdefault((comparison.system, comparison.reference), []).append(comparison)
    if not pairs:
        return ["No two systems have a task in common, so nothing was tested."]
    said = [_pair(system, reference, found) for (system, reference), found in pairs.items()]
    return [
        *said,
        f"Better and worse: the interval of the difference excludes zero, and the test's p is below {SIGNIFICANT}.",
    ]


def _pair(system: str, reference: str, found: list[Comparison]) -> str:
    sides = {
        words: [comparison.task for comparison in found if comparison.side == side]
        for side, words in (("above", "better on"), ("below", "worse on"), ("unclear", "not told apart on"))
    }
    parts = [f"{words} {', '.join(tasks)}" for words, tasks in sides.items() if tasks]
    return f"{system_name(system)} against {system_name(reference)}: {'; '.join(parts)}."


def published_beside_each(results: EvaluationResults, task: str) -> list[Table]:
    """What others published for a task beside every tuned system, or beside the base where there is no other."""
    systems = [system for system in systems_of(results, task) if not system.startswith("base")]
    tables = (published_table(results, task, system) for system in systems or ["base"])
    return [table for table in tables if table is not None]
