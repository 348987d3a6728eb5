"""From per-document records to one system's result and to a paired comparison of two systems.

Enters: the ``DocumentRecord`` of one system on one task. Leaves: ``TaskResult`` and ``Comparison``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fintune.metrics import classification as scores
from fintune.metrics.calibration import N_BINS, bin_index
from fintune.metrics.classification import Floats, Ints
from fintune.metrics.families import Family, Measure, count_names, family_of, group_sums
from fintune.metrics.intervals import Replicates, estimate, replicate, unanimous_interval
from fintune.metrics.paired import mcnemar_p, sign_flip_p, swap_p
from fintune.schema.errors import DataError
from fintune.schema.results import Comparison, DocumentRecord, Estimate, Scoring, TaskResult

_SAME_CONFIDENCE, _NO_ERROR = 1e-12, 1e-9


def summarise(
    records: Sequence[DocumentRecord],
    *,
    task_version: str,
    split: str,
    labels: Sequence[str] = (),
    scoring: Scoring = "classification",
    confidence: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> TaskResult:
    """One system's scores on one task, with intervals clustered by ``group``.

    The calibration error ``ece`` is present when every record carries probabilities; it has no interval where every
    document has the same confidence or the error is below 1e-9. A score whose value no resample changes has no
    interval, except an accuracy of 0 or 1, which gets the exact binomial one over groups.

    Args:
        records: all documents of one system on one task.
        task_version: version of the task's prompt and scoring.
        split: name of the scored split.
        labels: the task's labels in its fixed order; averages run over all of them. None where answers are free.
        scoring: the task's family of scores.
        confidence: level of the intervals.
        n_resamples: bootstrap resamples.
        seed: seed of the bootstrap.

    Raises:
        DataError: there are no records, they mix systems or tasks, an id occurs twice, or a label is unknown.
    """
    answers = _Answers.read(records, scoring)
    family = family_of(scoring, records, labels, count_names(records), answers.group_N)
    shared = replicate(family.features_GF, n_resamples=n_resamples, seed=seed)
    metrics = {
        name: estimate(shared, measure.score, confidence=confidence, bounds=measure.bounds)
        for name, measure in family.measures.items()
    }
    for name in ("accuracy", "next_turn_accuracy"):
        if name in metrics and metrics[name].low is None and metrics[name].value in (0.0, 1.0):
            metrics[name] = unanimous_interval(metrics[name].value, answers.n_groups, confidence=confidence)
    if answers.confidence_N is not None:
        metrics["ece"] = _calibration_estimate(answers, confidence=confidence, n_resamples=n_resamples, seed=seed)
    result = TaskResult(
        system=records[0].system,
        task=records[0].task,
        task_version=task_version,
        split=split,
        n=len(records),
        n_groups=answers.n_groups,
        missing_rate=sum(record.prediction is None for record in records) / len(records),
        confidence=confidence,
        metrics=metrics,
        protocol=records[0].protocol,
        primary=family.primary,
        scoring=scoring,
        labels=tuple(labels),
    )
    return _with_confusion(result, records) if labels else result


def _with_confusion(result: TaskResult, records: Sequence[DocumentRecord]) -> TaskResult:
    targets, predictions = [record.target for record in records], [record.prediction for record in records]
    confusion = scores.confusion_matrix(targets, predictions, result.labels)
    return result.model_copy(
        update={
            "per_class": scores.per_class(confusion, result.labels),
            "confusion": tuple(tuple(int(cell) for cell in row) for row in confusion),
        }
    )


def compare(
    system: Sequence[DocumentRecord],
    reference: Sequence[DocumentRecord],
    *,
    labels: Sequence[str] = (),
    scoring: Scoring = "classification",
    confidence: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
    other_form: bool = False,
) -> Comparison:
    """A paired comparison on the same documents, aligned by ``example_id``; differences are system minus reference.

    The same groups are resampled for both systems. Both p-values are about the family's primary score; ``mcnemar_p`` is
    given when that is accuracy and every group holds one document. With ``other_form`` the targets may be written in
    different ways, as where one system was asked for a number and the other for a program that computes it.

    Raises:
        DataError: the two systems answered different documents, or see ``summarise``.
    """
    reference = _aligned(reference, system, other_form)
    ours, theirs = _Answers.read(system, scoring), _Answers.read(reference, scoring)
    names = count_names(system, reference)
    families = [family_of(scoring, records, labels, names, ours.group_N) for records in (system, reference)]
    features_GF = np.concatenate([family.features_GF for family in families], axis=1)
    shared = replicate(features_GF, n_resamples=n_resamples, seed=seed)
    gained = ours.correct_N & ~theirs.correct_N
    lost = theirs.correct_N & ~ours.correct_N
    net_G = np.bincount(ours.group_N, gained.astype(np.float64) - lost, minlength=ours.n_groups)
    is_exact = families[0].primary == "accuracy"
    return Comparison(
        task=system[0].task,
        system=system[0].system,
        reference=reference[0].system,
        protocol=system[0].protocol,
        n=len(system),
        only_system_correct=int(gained.sum()),
        only_reference_correct=int(lost.sum()),
        mcnemar_p=mcnemar_p(int(gained.sum()), int(lost.sum())) if is_exact and ours.n_groups == len(system) else None,
        sign_flip_p=sign_flip_p(net_G) if is_exact else _swap_p(families[0], families[1], seed),
        primary=families[0].primary,
        differences={
            name: _difference(shared, measure, features_GF.shape[1] // 2, confidence)
            for name, measure in families[0].measures.items()
            if name in families[1].measures
        },
    )


@dataclass(frozen=True)
class _Answers:
    """One system's records as arrays; shape legend: ``N`` documents."""

    correct_N: npt.NDArray[np.bool_]
    group_N: Ints
    n_groups: int
    confidence_N: Floats | None

    @classmethod
    def read(cls, records: Sequence[DocumentRecord], scoring: Scoring) -> _Answers:
        if not records:
            raise DataError("There are no records to score.", "Check the split and the limit of the evaluation.")
        _check(records, scoring)
        codes: dict[str, int] = {}
        group_N = np.array([codes.setdefault(r.group or r.example_id, len(codes)) for r in records], dtype=np.int64)
        confidence = [max(r.probabilities) for r in records if r.probabilities]
        return cls(
            correct_N=np.array([record.correct for record in records]),
            group_N=group_N,
            n_groups=len(codes),
            confidence_N=np.array(confidence) if len(confidence) == len(records) else None,
        )


def _check(records: Sequence[DocumentRecord], scoring: Scoring) -> None:
    first, seen = records[0], set[str]()
    is_closed = scoring in ("classification", "questions")
    for record in records:
        if (record.system, record.task, record.protocol) != (first.system, first.task, first.protocol):
            raise DataError(
                f"Records of {record.system} on {record.task} are mixed with {first.system} on {first.task}.",
                "Score one system on one task at a time.",
            )
        if record.example_id in seen:
            raise DataError(f"The document {record.example_id!r} of {record.task} is answered twice.")
        if is_closed and record.correct != (record.prediction == record.target):
            raise DataError(
                f"The record of {record.example_id!r} in {record.task} says correct={record.correct}, "
                f"but its prediction is {record.prediction!r} and its target {record.target!r}."
            )
        seen.add(record.example_id)


def _aligned(
    reference: Sequence[DocumentRecord], system: Sequence[DocumentRecord], other_form: bool
) -> list[DocumentRecord]:
    """The reference's records in the system's order, checked to be about the same documents."""
    by_id = {record.example_id: record for record in reference}
    ids = {record.example_id for record in system}
    if ids != by_id.keys() or len(reference) != len(system):
        odd = sorted(ids ^ by_id.keys())
        raise DataError(
            f"The two systems answered different documents ({len(system)} and {len(reference)}"
            f"{f', differing for instance in {odd[0]!r}' if odd else ''}).",
            "Score both on the same split with the same limit.",
        )
    for record in system:
        other = by_id[record.example_id]
        is_same = other_form or record.target == other.target
        if not is_same or (record.task, record.group) != (other.task, other.group):
            raise DataError(f"The document {record.example_id!r} has another task, target or group in the reference.")
    return [by_id[record.example_id] for record in system]


def _swap_p(system: Family, reference: Family, seed: int) -> float:
    return swap_p(system.features_GF, reference.features_GF, system.measures[system.primary].score, seed=seed)


def _difference(shared: Replicates, measure: Measure, half: int, confidence: float) -> Estimate:
    """System minus reference; the first ``half`` of the features is the system's."""
    span = measure.bounds[1] - measure.bounds[0]

    def difference(totals: Floats) -> Floats:
        return measure.score(totals[..., :half]) - measure.score(totals[..., half:])

    return estimate(shared, difference, confidence=confidence, bounds=(-span, span))


def _calibration_estimate(answers: _Answers, *, confidence: float, n_resamples: int, seed: int) -> Estimate:
    """The calibration error; without an interval where confidence never varies or the error is rounding noise."""
    assert answers.confidence_N is not None, "the caller checks that every record has probabilities"
    gap_NF = np.zeros((len(answers.correct_N), N_BINS + 1))
    index_N = bin_index(answers.confidence_N)
    gap_NF[np.arange(len(index_N)), index_N] = answers.confidence_N - answers.correct_N
    gap_NF[:, -1] = 1.0

    def error(totals: Floats) -> Floats:
        return np.asarray(np.abs(totals[..., :-1]).sum(-1) / totals[..., -1])

    value = float(error(gap_NF.sum(0)))
    if np.ptp(answers.confidence_N) < _SAME_CONFIDENCE or value < _NO_ERROR:
        return Estimate(value=value)
    shared = replicate(group_sums(gap_NF, answers.group_N), n_resamples=n_resamples, seed=seed)
    return estimate(shared, error, confidence=confidence, bounds=(0.0, 1.0), basic=True)
