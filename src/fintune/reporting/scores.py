"""Tables of scores and paired tests, for every family of scores and both ways of reading answers.

Enters: ``EvaluationResults``. Leaves: ``Table``s. What decides between systems stands in a task's first table, further
scores and those of a part of the documents in others; scores by FLARE's rules stand beside ours, never in their place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fintune.metrics.calibration import N_BINS
from fintune.reporting.chance import CHANCE_MARK, chance_evidence
from fintune.reporting.tables import MISSING, Table
from fintune.reporting.wording import (
    DETAILS,
    OUR_RULES,
    answers_phrase,
    detail_head,
    detail_name,
    interval,
    metric_name,
    p_value,
    percent,
    rules_name,
    split_notes,
    system_name,
    systems_of,
    tasks_of,
)
from fintune.schema.results import Comparison, EvaluationResults, Protocol, Scoring, TaskResult

MAIN_METRICS: dict[Scoring, tuple[str, ...]] = {
    "classification": ("accuracy", "macro_f1", "mcc"),
    "questions": ("avg_f1", "accuracy", "macro_f1"),
    "tagging": ("entity_f1", "precision", "recall"),
    "qa": ("accuracy", "exact", "execution", "program", "dialogue_accuracy"),
    "text": ("accuracy", "token_f1", "rouge_l"),
    "chat": ("win_rate", "next_turn_accuracy", "next_turn_chance", "token_f1", "invented_numbers", "perplexity"),
}
"""What stands in a task's first table, where it was measured, after the primary score."""
MAX_COMPARISONS = 30
"""More comparisons than this are set in a table for each pair of systems."""
MAX_CLOSED_TASKS = 3
"""With more tasks than this, confusion tables are given for the base and the tuned model only."""
_COMPARED = ("accuracy", "avg_f1", "entity_f1", "macro_f1")
_FEW_GROUPS = 30
_WIDE = 3


def score_tables(results: EvaluationResults) -> list[Table]:
    """Systems and comparisons of every task by our rules: what a paper would print."""
    tables = [table for task in tasks_of(results) for table in systems_tables(results, task)]
    return [*tables, *comparisons_tables(results)]


def results_of(results: EvaluationResults, task: str, protocol: Protocol = "robust") -> list[TaskResult]:
    """Every system's result on one task, in reading order."""
    found = (results.find(task, system, protocol) for system in systems_of(results, task, protocol))
    return [result for result in found if result is not None]


def main_metrics(found: Sequence[TaskResult]) -> list[str]:
    """The scores of a task's first table: the primary one, then its family's main ones as far as measured."""
    measured = {name for result in found for name in result.metrics}
    wanted = dict.fromkeys([found[0].primary, *MAIN_METRICS[found[0].scoring]])
    return [name for name in wanted if name in measured]


def overview_table(results: EvaluationResults) -> Table | None:
    """Every task's primary score for every system; None for a single task, whose own table says it all."""
    tasks, systems = tasks_of(results), systems_of(results)
    if len(tasks) < 2:
        return None
    rows = []
    for task in tasks:
        found = {result.system: result for result in results_of(results, task)}
        first = next(iter(found.values()))
        rows.append((task, metric_name(first.primary), f"{first.n:,}", *(_primary(found.get(s)) for s in systems)))
    return Table(
        name="overview",
        caption="The primary score of every task",
        columns=("Task", "Score", "n", *map(system_name, systems)),
        rows=tuple(rows),
        text_columns=2,
        note="Intervals stand in each task's own table." + _mark_note(results.under("robust")),
    )


def systems_tables(results: EvaluationResults, task: str) -> list[Table]:
    """Every system's scores on one task with intervals: the main table, further scores, those of parts."""
    found = results_of(results, task)
    main_names = main_metrics(found)
    further = [m for m in dict.fromkeys(name for r in found for name in r.metrics) if m not in main_names]
    others = [m for m in further if detail_head(m) is None]
    few = any(r.n_groups < _FEW_GROUPS for r in found)
    head, tuned = f"{task}, {found[0].split} split", _tuned(found)
    method = "Student's t over groups (fewer than 30)" if few else "a bootstrap of whole groups"
    notes = [f"Intervals come from {method}. A missing answer counts as wrong.", *_baseline_notes(found)]
    main = Table(
        name=f"systems-{task}",
        caption=f"{head}: scores with {found[0].confidence:.0%} intervals",
        columns=("System", *map(metric_name, main_names), "n", "Groups", "Missing"),
        rows=tuple((*_scores(r, main_names), f"{r.n:,}", f"{r.n_groups:,}", percent(r.missing_rate)) for r in found),
        note=" ".join([*notes, *split_notes(results, task)]) + _mark_note(found),
        emphasised=tuned,
    )
    secondary = Table(
        name=f"systems-more-{task}",
        caption=f"{head}: further scores",
        columns=("System", *map(metric_name, others)),
        rows=tuple(_scores(r, others) for r in found),
        note=_calibration_note(few) if "ece" in others else "",
        emphasised=tuned,
    )
    return [
        main,
        *([secondary] if others else []),
        *_detail_tables(found, head, [m for m in further if m not in others]),
    ]


def _detail_tables(found: Sequence[TaskResult], head: str, metrics: Sequence[str]) -> list[Table]:
    """Scores by question, type or turn: a row for each, a column for each system."""
    tables = []
    wide = len(found) > _WIDE
    for start, part in DETAILS.items():
        names = [name for name in metrics if name.startswith(start)]
        if not names:
            continue
        rows = tuple((detail_name(name), *(_detail(result, name, wide) for result in found)) for name in names)
        tables.append(
            Table(
                name=f"systems-by-{part}-{found[0].task}",
                caption=f"{head}: {metric_name(start.removesuffix('_').removesuffix('_turn'))} by {part}",
                columns=(part.capitalize(), *(system_name(result.system) for result in found)),
                rows=rows,
                note="Intervals are left out for want of room; results.json has them." if wide else "",
            )
        )
    return tables


def rules_table(results: EvaluationResults, task: str) -> Table | None:
    """The primary score and the missing rate by our rules and by FLARE's; None where FLARE's were not applied."""
    strict = results_of(results, task, "flare_strict")
    if not strict:
        return None
    primary = metric_name(strict[0].primary)
    ours, theirs = OUR_RULES, rules_name("flare_strict", [task])
    rows = []
    for result in strict:
        beside = results.find(task, result.system)
        rows.append(
            (
                _marked(result),
                "–" if beside is None else interval(beside.metrics[beside.primary]),
                interval(result.metrics[result.primary]),
                "–" if beside is None else percent(beside.missing_rate),
                percent(result.missing_rate),
            )
        )
    return Table(
        name=f"rules-{task}",
        caption=", ".join(filter(None, [f"{task}: {theirs} beside {ours}", answers_phrase(strict)])),
        columns=("System", f"{primary}, {ours}", f"{primary}, {theirs}", f"Missing, {ours}", f"Missing, {theirs}"),
        rows=tuple(rows),
        note=f"{_read_from(results, strict)} {theirs} serve to compare with published figures; ours are quoted."
        + _mark_note(strict),
        emphasised=_tuned(strict),
    )


def _read_from(results: EvaluationResults, strict: Sequence[TaskResult]) -> str:
    """Whether both protocols read the same answers."""
    beside = [(result, results.find(result.task, result.system)) for result in strict]
    if any(ours is not None and ours.decoding != result.decoding for result, ours in beside):
        return "The others read answers that the model wrote, ours the likeliest of the labels."
    return "The same answers, read twice."


def repeats_tables(results: EvaluationResults) -> list[Table]:
    """Mean and spread of systems that were run several times, under each protocol; empty where none was."""
    tables = []
    protocols: tuple[Protocol, ...] = ("robust", "flare_strict")
    for protocol in protocols:
        rows = [
            (
                score.task,
                system_name(score.system),
                metric_name(score.metric),
                f"{len(score.values)}",
                f"{score.mean:.3f}",
                f"{score.deviation:.3f}",
                f"{min(score.values):.3f} to {max(score.values):.3f}",
            )
            for score in results.repeats
            if score.protocol == protocol and detail_head(score.metric) is None
        ]
        if rows:
            whose = rules_name(protocol, [row[0] for row in rows])
            tables.append(
                Table(
                    name="-".join(filter(None, ["repeats", "flare" if protocol == "flare_strict" else ""])),
                    caption=f"Repeated runs by {whose}: mean, standard deviation and range",
                    columns=("Task", "System", "Score", "Runs", "Mean", "SD", "Range"),
                    rows=tuple(rows),
                    text_columns=3,
                    note="The other tables show the first run of each; the deviation is that between runs, not "
                    "between documents.",
                )
            )
    return tables


def comparisons_tables(results: EvaluationResults, protocol: Protocol = "robust") -> list[Table]:
    """Paired tests with the main differences, then the further ones; empty when nothing was compared.

    Many are split by pair of systems, which is also what Holm's correction runs over.
    """
    found = [c for c in results.comparisons if c.protocol == protocol]
    pairs: dict[tuple[str, str], list[Comparison]] = {}
    for comparison in found:
        pairs.setdefault((comparison.system, comparison.reference), []).append(comparison)
    if len(found) <= MAX_COMPARISONS:
        return _comparisons([c for same in pairs.values() for c in same], protocol, "")
    return [
        table
        for (system, reference), same in pairs.items()
        for table in _comparisons(same, protocol, f"{system}-{reference}")
    ]


def _comparisons(found: Sequence[Comparison], protocol: Protocol, pair: str) -> list[Table]:
    if not found:
        return []
    metrics = dict.fromkeys(name for c in found for name in c.differences if detail_head(name) is None)
    main, others = [m for m in _COMPARED if m in metrics], [m for m in metrics if m not in _COMPARED]
    grouped, corrected = [c.mcnemar_p is None for c in found], [c.holm_p is not None for c in found]
    first = "tuned" if all(c.system == "tuned" for c in found) else "first"
    tests = [
        *([] if all(grouped) else ["McNemar p"]),
        *(["Sign-flip p"] if any(grouped) else []),
        *(["Holm p"] if any(corrected) else []),
    ]
    rows = tuple(
        (
            *_compared(c),
            f"{c.only_system_correct} : {c.only_reference_correct}",
            *([] if all(grouped) else [p_value(c.mcnemar_p)]),
            *([p_value(c.sign_flip_p if c.mcnemar_p is None else None)] if any(grouped) else []),
            *([p_value(c.holm_p)] if any(corrected) else []),
            *_differences(c, main),
        )
        for c in found
    )
    name = "-".join(filter(None, ["comparisons", pair, "flare" if protocol == "flare_strict" else ""]))
    of_whom = f" ({' − '.join(_compared(found[0])[1:])})" if pair else ""
    by_rules = f", by {rules_name(protocol, (c.task for c in found))}" if protocol == "flare_strict" else ""
    decisive = Table(
        name=name,
        caption=f"Paired differences on the same documents{of_whom}{by_rules}",
        columns=(
            "Task",
            "Difference",
            f"Only {first} right : only {'other' if first == 'tuned' else 'second'} right",
            *tests,
            *map(metric_name, main),
        ),
        rows=rows,
        text_columns=2,
        note=_test_note(found),
    )
    further = Table(
        name=f"{name}-more",
        caption=f"Further paired differences{of_whom}{by_rules}",
        columns=("Task", "Difference", *map(metric_name, others)),
        rows=tuple((*_compared(c), *_differences(c, others)) for c in found if c.differences.keys() & set(others)),
        text_columns=2,
    )
    return [decisive, further] if others else [decisive]


def _test_note(found: Sequence[Comparison]) -> str:
    """Which tests the p-values come from, and which of them are corrected."""
    grouped, corrected = [c.mcnemar_p is None for c in found], [c.holm_p is not None for c in found]
    parts = ["The tests are two-sided and about each task's primary score, exact where that is accuracy."]
    if any(c.primary != "accuracy" for c in found):
        parts.append("Other scores are tested by swapping the two systems a whole group at a time.")
    if any(grouped) and any(c.primary == "accuracy" for c in found):
        parts.append("Where groups hold several documents the sign-flip test over groups stands in for McNemar's.")
    if any(corrected):
        parts.append(
            "Holm's p corrects the sign-flip test's (McNemar's, where every group is one document) for the number of "
            "tasks on which the same two systems are compared."
        )
    if not any(corrected):
        parts.append("The p-values are not corrected for the number of comparisons.")
    elif not all(corrected):
        parts.append("Where it is missing, the p-values are not corrected.")
    return " ".join(parts)


def _compared(comparison: Comparison) -> tuple[str, str]:
    return comparison.task, f"{system_name(comparison.system)} − {system_name(comparison.reference)}"


def _differences(comparison: Comparison, metrics: Iterable[str]) -> tuple[str, ...]:
    found = comparison.differences
    return tuple(interval(found[m], signed=True) if m in found else "–" for m in metrics)


def _scores(result: TaskResult, metrics: Iterable[str]) -> tuple[str, ...]:
    """The system's name and its scores, a dash for one it lacks."""
    cells = (interval(result.metrics[m]) if m in result.metrics else "–" for m in metrics)
    return (_marked(result), *cells)


def _primary(result: TaskResult | None) -> str:
    if result is None:
        return "–"
    return f"{result.metrics[result.primary].value:.3f}" + (f" {CHANCE_MARK}" if chance_evidence(result) else "")


def _detail(result: TaskResult, metric: str, wide: bool) -> str:
    estimate = result.metrics.get(metric)
    if estimate is None:
        return "–"
    return f"{estimate.value:.3f}" if wide else interval(estimate)


def _marked(result: TaskResult) -> str:
    return system_name(result.system) + (f" {CHANCE_MARK}" if chance_evidence(result) else "")


def _mark_note(found: Iterable[TaskResult]) -> str:
    if not any(chance_evidence(result) for result in found):
        return ""
    return (
        f" {CHANCE_MARK} Cannot be told apart from chance: the interval of the MCC includes 0, or that of the accuracy "
        "includes the majority share."
    )


def _tuned(found: Sequence[TaskResult]) -> frozenset[int]:
    return frozenset(i for i, result in enumerate(found) if result.system == "tuned")


def _baseline_notes(found: Iterable[TaskResult]) -> list[str]:
    """What the classical baselines are, on one line for each that was measured."""
    known = {
        "lexicon": "VADER is a general-purpose lexicon, not a financial one; its thresholds are ±0.05.",
        "tfidf": "TF-IDF's C was chosen by cross-validation on the training rows.",
    }
    systems = {r.system for r in found}
    return [note for system, note in known.items() if system in systems]


def _calibration_note(few_groups: bool) -> str:
    method = "Student's t over groups" if few_groups else "a reverse-percentile bootstrap"
    return (
        f"Calibration error: {N_BINS} equal-width bins, lower is better, intervals from {method}; "
        "none where every document has the same confidence or the error is zero."
    )


def per_class_table(results: EvaluationResults, task: str) -> Table | None:
    """Precision, recall and F1 of each class, for every system; None without classes."""
    rows = tuple(
        (system_name(r.system), c.label, f"{c.precision:.3f}", f"{c.recall:.3f}", f"{c.f1:.3f}", f"{c.support:,}")
        for r in results_of(results, task)
        for c in r.per_class
    )
    if not rows:
        return None
    columns = ("System", "Class", "Precision", "Recall", "F1", "Documents")
    return Table(f"classes-{task}", f"{task}: scores by class", columns, rows, text_columns=2)


def confusion_tables(results: EvaluationResults) -> list[Table]:
    """Targets by predictions of every system under our rules; with many tasks, of base and tuned model alone."""
    closed = [result for task in tasks_of(results) for result in results_of(results, task) if result.confusion]
    many = len({result.task for result in closed}) > MAX_CLOSED_TASKS
    return [_confusion_table(result) for result in closed if not many or result.system in ("base", "tuned")]


def _confusion_table(result: TaskResult) -> Table:
    rows = tuple(
        (label, *(f"{count:,}" for count in row)) for label, row in zip(result.labels, result.confusion, strict=True)
    )
    return Table(
        name=f"confusion-{result.task}-{result.system}",
        caption=f"{result.task}, {system_name(result.system)}: targets (rows) by predictions (columns)",
        columns=("Target", *result.labels, MISSING),
        rows=rows,
    )
