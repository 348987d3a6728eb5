"""From counts to sentences: what a person must know about the rows, how grave it is, and what to do.

Errors forbid training: nothing usable, a single class, a class of fewer than two rows, or labels that are mostly
unknown. Everything else is a warning, or for information where nothing need be done.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from fintune.schema.quality import Finding, QualityProblem, QualityReport, RowQuality, Severity
from fintune.schema.results import OverlapReport
from fintune.sources.table import ALL

IMBALANCE = 10
"""The largest class has so many times the rows of the smallest: accuracy then says little."""

RARE = 0.01
"""Below this share, wrongly decoded letters are the texts' own affair; above it, the file was read wrongly."""

_MIN_CLASS_ROWS = 2
_SHOWN_LABELS = 5
_NAMES = {ALL: "row"}
_ORDER: tuple[Severity, ...] = ("error", "warning", "info")


def find_problems(report: QualityReport, choices: Sequence[str] | None = ()) -> tuple[QualityProblem, ...]:
    """All problems of a report, errors first; ``choices`` are the labels of which rows are expected."""
    found = [*_unusable(report), *_classes(report, choices), *_faults(report), *overlap_problems(report.overlap)]
    return by_severity(found)


def by_severity(problems: Sequence[QualityProblem]) -> tuple[QualityProblem, ...]:
    """Errors first, then warnings; otherwise in the order given."""
    return tuple(sorted(problems, key=lambda problem: _ORDER.index(problem.severity)))


def _unusable(report: QualityReport) -> Iterator[QualityProblem]:
    for name, split in report.splits.items():
        if not split.usable:
            yield _error(
                "nothing_usable",
                f"None of the {_rows(split.rows)} of {report.task} ({name}) has a text and a known label.",
                "Check which columns are named as text and label, and the labels' spelling.",
            )
    if not report.splits:
        yield _error("nothing_usable", f"{report.task} has no rows.", "Check that the right source is named.")
    total = report.total
    labelled = total.rows - total.missing_label.count
    if 2 * total.unknown_label.count > labelled:
        yield _error(
            "unknown_label",
            f"{total.unknown_label.count:,} of the {labelled:,} labels of {report.task} are unknown: {_values(total)}.",
            "Map them to the task's labels, or check that the right column is named as label.",
        )
    elif total.unknown_label.count:
        yield _warning(
            "unknown_label",
            f"{_rows(total.unknown_label.count)} of {report.task} {_have(total.unknown_label)} an unknown label: "
            f"{_values(total)} ({_examples(total.unknown_label)}).",
            "They are left out; map their labels to the task's if they should count.",
        )


def _classes(report: QualityReport, choices: Sequence[str] | None) -> Iterator[QualityProblem]:
    labels = report.total.labels
    if not labels or choices is None:
        return
    expected = {choice: labels.get(choice, 0) for choice in (*choices, *labels)}
    if len(labels) == 1:
        yield _error(
            "one_class",
            f"All {_rows(report.total.usable)} of {report.task} that can be used have the label {next(iter(labels))}.",
            "Add rows of another class: with one class there is nothing to learn.",
        )
    for label, count in expected.items():
        if count < _MIN_CLASS_ROWS and len(labels) > 1:
            yield _error(
                "small_class",
                f"The class {label} of {report.task} has {_rows(count)}; at least {_MIN_CLASS_ROWS} are needed.",
                "Add rows of that class, merge it with another or leave it out of the labels.",
            )
        for name, split in report.splits.items():
            if count >= _MIN_CLASS_ROWS and split.usable and label not in split.labels:
                yield _warning(
                    "absent_class",
                    f"The class {label} of {report.task} has no row in {name}.",
                    "Split the rows by label, or do not read scores of that class.",
                )
    most, least = max(labels.values()), min(labels.values())
    if least >= _MIN_CLASS_ROWS and most >= IMBALANCE * least:
        yield problem(
            "imbalance",
            "info",
            f"The largest class of {report.task} has {_rows(most)}, the smallest {least:,}.",
            "Read macro-F1 rather than accuracy; data.balance or data.class_weights may help.",
        )


def _faults(report: QualityReport) -> Iterator[QualityProblem]:
    """One warning for each fault that any row has."""
    total = report.total
    texts = f"{total.conflicting_texts:,} text{'s' if total.conflicting_texts > 1 else ''}"
    labelled_apart = "occurs" if total.conflicting_texts == 1 else "occur"
    faults: tuple[tuple[str, Finding, str, str], ...] = (
        ("empty_text", total.empty_text, "no text", "They are left out; check the source."),
        ("missing_label", total.missing_label, "no label", "They are left out; label them or remove them."),
        (
            "too_long",
            total.too_long,
            f"a text of more than {report.max_characters:,} characters",
            "Their ends are cut off to fit training.max_length; shorten or split them, or raise the limit.",
        ),
        ("mojibake", total.mojibake, "wrongly decoded letters", "Set the file's encoding, or repair with ftfy."),
        (
            "duplicate",
            total.normalised_duplicate,
            f"the text of an earlier row ({total.exact_duplicate.count:,} exactly, the others after normalising)",
            "Training takes the first of them; a published test split is kept as it is.",
        ),
        (
            "conflict",
            total.conflict,
            f"a label that the same text does not have everywhere: {texts} {labelled_apart} with different labels",
            "Decide on one label for each: until then none of them is trained on.",
        ),
    )
    for kind, finding, what, remedy in faults:
        if finding.count:
            counted = f"{_rows(finding.count)} of {report.task} {_have(finding)} {what} ({_examples(finding)})."
            is_rare = kind == "mojibake" and finding.count < RARE * total.rows
            yield problem(kind, "info" if is_rare else "warning", counted, remedy)


def overlap_problems(overlaps: Sequence[OverlapReport]) -> Iterator[QualityProblem]:
    """Held-out rows that are among the training rows too."""
    for overlap in overlaps:
        count = max(overlap.normalised, overlap.near, overlap.same_exchanges or 0)
        if count:
            alike = ", or share half of their answers with one" if overlap.same_exchanges else ""
            near = "" if overlap.near_threshold is None else f" or a near-duplicate (from {overlap.near_threshold:g})"
            removed = overlap.removed_from_train
            of_task = f" of {overlap.trained_on}" if overlap.trained_on not in ("", overlap.task) else ""
            yield problem(
                "overlap",
                "info" if removed else "warning",
                f"{count:,} of the {overlap.n_test:,} held-out rows of {overlap.task} have an equal text{near} among "
                f"the {overlap.n_train:,} training rows{of_task}{alike}.",
                f"{_rows(removed)} {'is' if removed == 1 else 'are'} removed from training."
                if removed
                else "Set data.remove_overlap=true.",
            )


def _examples(finding: Finding) -> str:
    """``train 3, 17; test 5; and 4 more``."""
    places = groupby(finding.examples, key=lambda place: place.split)
    shown = [f"{_NAMES.get(split, split)} {', '.join(str(place.row) for place in group)}" for split, group in places]
    more = finding.count - len(finding.examples)
    return "; ".join([*shown, f"and {more:,} more"] if more else shown)


def _values(total: RowQuality) -> str:
    """The most frequent unknown labels, shortened, with their counts."""
    shown = [f"{value[:40]!r} ({count:,})" for value, count in list(total.unknown_labels.items())[:_SHOWN_LABELS]]
    return ", ".join([*shown, "and others"] if len(total.unknown_labels) > _SHOWN_LABELS else shown)


def _rows(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"


def _have(finding: Finding) -> str:
    return "has" if finding.count == 1 else "have"


def _error(kind: str, message: str, remedy: str) -> QualityProblem:
    return problem(kind, "error", message, remedy)


def _warning(kind: str, message: str, remedy: str) -> QualityProblem:
    return problem(kind, "warning", message, remedy)


def problem(kind: str, severity: Severity, message: str, remedy: str) -> QualityProblem:
    """A problem, from its words."""
    return QualityProblem(kind=kind, severity=severity, message=message, remedy=remedy)
