"""What the numbers allow one to say, in plain sentences, also where tuning did not help.

Enters: ``EvaluationResults``. Leaves: sentences. "Better" is said only when two intervals lie apart or the paired
difference excludes zero; otherwise the systems cannot be told apart on these documents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fintune.reporting.wording import (
    CLASSICAL,
    interval,
    metric_name,
    p_phrase,
    split_notes,
    system_name,
    systems_of,
    tasks_of,
)
from fintune.schema.results import Comparison, Estimate, EvaluationResults, TaskResult

Side = Literal["above", "below", "unclear"]
VERDICT_METRIC = "macro_f1"


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
    a, b = ours.metrics[VERDICT_METRIC], theirs.metrics[VERDICT_METRIC]
    if _apart(a, b):
        return Judgement("above" if a.value > b.value else "below", "the intervals do not overlap")
    difference = _difference(results, task, system, reference)
    if difference is None or difference.low is None or difference.high is None:
        return Judgement("unclear", "the intervals overlap")
    shown = f"paired difference {interval(difference, signed=True)}"
    if difference.low > 0 or difference.high < 0:
        side: Side = "above" if difference.low > 0 else "below"
        return Judgement(side, f"the {shown} excludes zero")
    return Judgement("unclear", f"the {shown} includes zero")


def find_comparison(results: EvaluationResults, task: str, system: str, reference: str) -> Comparison | None:
    """The comparison of the two systems in either direction."""
    wanted = {system, reference}
    return next((c for c in results.comparisons if c.task == task and {c.system, c.reference} == wanted), None)


def best_classical(results: EvaluationResults, task: str) -> TaskResult | None:
    """The classical baseline with the highest macro F1."""
    measured = [r for r in results.results if r.task == task and r.system in CLASSICAL]
    return max(measured, key=lambda r: r.metrics[VERDICT_METRIC].value, default=None)


def _task_verdict(results: EvaluationResults, task: str) -> str:
    systems = systems_of(results, task)
    main = next((s for s in ("tuned", "base") if s in systems), systems[-1])
    result = results.find(task, main)
    assert result is not None, "systems_of lists measured systems only"
    parts = [_against_base(results, result) if main == "tuned" else _alone(result)]
    best = best_classical(results, task)
    if best is not None and main not in CLASSICAL:
        parts.append(_against_classical(results, task, main, best))
    if result.missing_rate > 0:
        parts.append(
            f"The {system_name(main).lower()} gave no readable label for {result.missing_rate:.1%} of the documents; "
            "they count as wrong."
        )
    return " ".join(parts)


def _against_base(results: EvaluationResults, tuned: TaskResult) -> str:
    base, judgement = results.find(tuned.task, "base"), judge(results, tuned.task, "tuned", "base")
    if base is None or judgement is None:
        return _alone(tuned)
    old, new = (interval(r.metrics[VERDICT_METRIC]) for r in (base, tuned))
    name = metric_name(VERDICT_METRIC).lower().replace("f1", "F1")
    test = _test_phrase(find_comparison(results, tuned.task, "tuned", "base"))
    where = f"On {tuned.task} ({tuned.n} {tuned.split} documents)"
    if judgement.side == "unclear":
        return (
            f"{where}, the tuned model cannot be told apart from the base model: {name} {new} against {old}; "
            f"{judgement.evidence}{test}."
        )
    verb = "beats" if judgement.side == "above" else "is worse than"
    return f"{where}, the tuned model {verb} the base model: {name} {new} against {old}; {judgement.evidence}{test}."


def _against_classical(results: EvaluationResults, task: str, main: str, best: TaskResult) -> str:
    judgement = judge(results, task, main, best.system)
    assert judgement is not None, "both systems were measured"
    against_base = judge(results, task, main, "base") if main != "base" else None
    also = "also " if against_base is not None and against_base.side == "above" else ""
    name, score = _in_sentence(best.system), interval(best.metrics[VERDICT_METRIC])
    if judgement.side == "above":
        return f"It {also}beats the best classical baseline, {name} at {score}; {judgement.evidence}."
    if judgement.side == "below":
        return f"But a classical baseline wins: {name} reaches {score}; {judgement.evidence}."
    return (
        f"It cannot be told apart from the best classical baseline, {name} at {score}; {judgement.evidence}. "
        "The classical baseline is far cheaper to run."
    )


def _alone(result: TaskResult) -> str:
    score = interval(result.metrics[VERDICT_METRIC])
    return (
        f"On {result.task} ({result.n} {result.split} documents), the {_in_sentence(result.system)} reaches macro F1 "
        f"{score}; there is no {'untuned base' if result.system == 'tuned' else 'tuned model'} beside it."
    )


def _in_sentence(system: str) -> str:
    name = system_name(system)
    return name if name[:2].isupper() or name == system else name[:1].lower() + name[1:]


def _test_phrase(comparison: Comparison | None) -> str:
    if comparison is None:
        return ""
    if comparison.mcnemar_p is not None:
        return f" (exact McNemar {p_phrase(comparison.mcnemar_p)})"
    if comparison.sign_flip_p is not None:
        return f" (sign-flip test over groups {p_phrase(comparison.sign_flip_p)})"
    return ""


def _apart(a: Estimate, b: Estimate) -> bool:
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return False
    return a.low > b.high or b.low > a.high


def _difference(results: EvaluationResults, task: str, system: str, reference: str) -> Estimate | None:
    comparison = find_comparison(results, task, system, reference)
    if comparison is None or VERDICT_METRIC not in comparison.differences:
        return None
    found = comparison.differences[VERDICT_METRIC]
    if comparison.system == system or found.low is None or found.high is None:
        return found if comparison.system == system else Estimate(value=-found.value)
    return Estimate(value=-found.value, low=-found.high, high=-found.low)
