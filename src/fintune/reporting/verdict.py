"""What the numbers allow one to say, in plain sentences, also where tuning did not help.

Enters: ``EvaluationResults``. Leaves: sentences. All of them are about each task's primary score under our rules.
"Better" is said only when two intervals lie apart or the paired difference excludes zero; otherwise the systems cannot
be told apart on these documents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fintune.reporting.chance import chance_evidence
from fintune.reporting.wording import (
    CLASSICAL,
    VARIANTS,
    interval,
    main_system,
    metric_in_sentence,
    p_phrase,
    split_notes,
    system_name,
    systems_of,
    tasks_of,
)
from fintune.schema.results import LOWER_IS_BETTER, Comparison, Estimate, EvaluationResults, TaskResult

Side = Literal["above", "below", "unclear"]


@dataclass(frozen=True)
class Judgement:
    """Where one system stands against another on one metric, and what says so."""

    side: Side
    evidence: str


def verdict(results: EvaluationResults) -> list[str]:
    """One paragraph for each task: tuned against base, then the best classical baseline, then the split's note."""
    paragraphs = [" ".join([_task_verdict(results, t), *split_notes(results, t)]) for t in tasks_of(results)]
    return paragraphs or ["Nothing was measured, so nothing can be said."]


def judge(results: EvaluationResults, task: str, system: str, reference: str) -> Judgement | None:
    """Whether ``system`` is above ``reference``; None when either was not measured."""
    ours, theirs = results.find(task, system), results.find(task, reference)
    if ours is None or theirs is None:
        return None
    a, b = primary(ours), primary(theirs)
    if _apart(a, b):
        return Judgement(_side(ours.primary, a.value - b.value), "the intervals do not overlap")
    difference = _difference(results, ours, reference)
    if difference is None or difference.low is None or difference.high is None:
        return Judgement("unclear", "the intervals overlap")
    shown = f"paired difference {interval(difference, signed=True)}"
    if difference.low > 0 or difference.high < 0:
        return Judgement(_side(ours.primary, difference.low), f"the {shown} excludes zero")
    return Judgement("unclear", f"the {shown} includes zero")


def _side(metric: str, difference: float) -> Side:
    """Above is better, also where less is better."""
    return "above" if (difference > 0) != (metric in LOWER_IS_BETTER) else "below"


def find_comparison(results: EvaluationResults, task: str, system: str, reference: str) -> Comparison | None:
    """The comparison of the two systems in either direction, under our rules."""
    wanted = {system, reference}
    ours = (c for c in results.comparisons if c.protocol == "robust" and c.task == task)
    return next((c for c in ours if {c.system, c.reference} == wanted), None)


def primary(result: TaskResult) -> Estimate:
    """The result's headline score."""
    return result.metrics[result.primary]


def best_classical(results: EvaluationResults, task: str) -> TaskResult | None:
    """The classical baseline with the highest primary score."""
    measured = [r for r in results.under("robust") if r.task == task and r.system in CLASSICAL]
    return max(measured, key=lambda r: primary(r).value, default=None)


def _task_verdict(results: EvaluationResults, task: str) -> str:
    main = main_system(results, task)
    assert main is not None, "tasks_of lists measured tasks only"
    result = results.find(task, main)
    assert result is not None, "a task's main system was measured on it"
    parts = [_against_base(results, result) if main == "tuned" else _alone(result)]
    if main == "tuned":
        parts += [_against_variant(results, task, system) for system in systems_of(results, task) if system in VARIANTS]
    best = best_classical(results, task)
    if best is not None and main not in CLASSICAL:
        parts.append(_against_classical(results, task, main, best))
    if (evidence := chance_evidence(result)) is not None:
        parts.append(f"The {_in_sentence(main)} cannot be told apart from chance: {evidence}.")
    if result.missing_rate > 0:
        sought = "label" if result.labels else "answer"
        parts.append(
            f"The {_in_sentence(main)} gave no readable {sought} for {result.missing_rate:.1%} of the documents; "
            "they count as wrong."
        )
    return " ".join(parts)


def _against_base(results: EvaluationResults, tuned: TaskResult) -> str:
    base, judgement = results.find(tuned.task, "base"), judge(results, tuned.task, "tuned", "base")
    if base is None or judgement is None:
        return _alone(tuned)
    old, new = interval(primary(base)), interval(primary(tuned))
    name = metric_in_sentence(tuned.primary)
    comparison = find_comparison(results, tuned.task, "tuned", "base")
    test = _test_phrase(comparison)
    where = _where(tuned)
    if judgement.side == "unclear":
        return (
            f"{where}, the tuned model cannot be told apart from the base model: {name} {new} against {old}; "
            f"{judgement.evidence}{test}."
        )
    verb = "beats" if judgement.side == "above" else "is worse than"
    said = f"{where}, the tuned model {verb} the base model: {name} {new} against {old}; {judgement.evidence}{test}."
    if comparison is None or comparison.holm_p is None or comparison.holm_p < 1 - tuned.confidence:
        return said
    return f"{said} Among as many tasks as were measured, the test of accuracy alone would not show it."


def _against_variant(results: EvaluationResults, task: str, variant: str) -> str:
    """The tuned model against the base asked in a better way, so that tuning is not flattered."""
    judgement, found = judge(results, task, "tuned", variant), results.find(task, variant)
    assert judgement is not None and found is not None, "both systems were measured"
    name, score = _in_sentence(variant), interval(primary(found))
    if judgement.side == "unclear":
        return f"It cannot be told apart from the {name}, at {score}; {judgement.evidence}."
    return f"It is {judgement.side} the {name}, at {score}; {judgement.evidence}."


def _against_classical(results: EvaluationResults, task: str, main: str, best: TaskResult) -> str:
    judgement = judge(results, task, main, best.system)
    assert judgement is not None, "both systems were measured"
    against_base = judge(results, task, main, "base") if main != "base" else None
    also = "also " if against_base is not None and against_base.side == "above" else ""
    name, score = _in_sentence(best.system), interval(primary(best))
    if judgement.side == "above":
        return f"It {also}beats the best classical baseline, {name} at {score}; {judgement.evidence}."
    if judgement.side == "below":
        return f"But a classical baseline wins: {name} reaches {score}; {judgement.evidence}."
    return (
        f"It cannot be told apart from the best classical baseline, {name} at {score}; {judgement.evidence}. "
        "The classical baseline is far cheaper to run."
    )


def _alone(result: TaskResult) -> str:
    name, score = metric_in_sentence(result.primary), interval(primary(result))
    return (
        f"{_where(result)}, the {_in_sentence(result.system)} reaches {name} {score}; there is no "
        f"{'untuned base' if result.system == 'tuned' else 'tuned model'} beside it."
    )


def _where(result: TaskResult) -> str:
    return f"On {result.task} ({result.n} {result.split} document{'' if result.n == 1 else 's'})"


def _in_sentence(system: str) -> str:
    name = system_name(system)
    return name if name[:2].isupper() or name == system else name[:1].lower() + name[1:]


def _test_phrase(comparison: Comparison | None) -> str:
    """The paired test in brackets, with its p-value after Holm's correction where there is one."""
    if comparison is None:
        return ""
    parts = []
    if comparison.mcnemar_p is not None:
        parts.append(f"exact McNemar {p_phrase(comparison.mcnemar_p)}")
    elif comparison.sign_flip_p is not None:
        parts.append(f"sign-flip test over groups {p_phrase(comparison.sign_flip_p)}")
    if comparison.holm_p is not None:
        parts.append(f"over all tasks Holm's {p_phrase(comparison.holm_p)}")
    return f" ({', '.join(parts)})" if parts else ""


def _apart(a: Estimate, b: Estimate) -> bool:
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return False
    return a.low > b.high or b.low > a.high


def _difference(results: EvaluationResults, ours: TaskResult, reference: str) -> Estimate | None:
    comparison = find_comparison(results, ours.task, ours.system, reference)
    if comparison is None or ours.primary not in comparison.differences:
        return None
    found = comparison.differences[ours.primary]
    if comparison.system == ours.system or found.low is None or found.high is None:
        return found if comparison.system == ours.system else Estimate(value=-found.value)
    return Estimate(value=-found.value, low=-found.high, high=-found.low)
