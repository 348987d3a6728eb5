"""From per-document records to one system's result and to a paired comparison of two systems.

Enters: the ``DocumentRecord`` of one system on one task. Leaves: ``TaskResult`` and ``Comparison``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fintune.metrics import classification as scores
from fintune.metrics.calibration import N_BINS, bin_index
from fintune.metrics.classification import Floats, Ints, Tally
from fintune.metrics.intervals import Replicates, estimate, replicate, unanimous_interval
from fintune.metrics.paired import mcnemar_p, sign_flip_p
from fintune.schema.errors import DataError
from fintune.schema.results import Comparison, DocumentRecord, Estimate, TaskResult

SCORES: Mapping[str, Callable[[Tally], Floats]] = {
    "accuracy": scores.accuracy,
    "macro_f1": scores.macro_f1,
    "weighted_f1": scores.weighted_f1,
    "mcc": scores.mcc,
}
_BOUNDS = {"accuracy": (0.0, 1.0), "macro_f1": (0.0, 1.0), "weighted_f1": (0.0, 1.0), "mcc": (-1.0, 1.0)}
_SAME_CONFIDENCE, _NO_ERROR = 1e-12, 1e-9


def summarise(
    records: Sequence[DocumentRecord],
    *,
    task_version: str,
    split: str,
    labels: Sequence[str],
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
        labels: the task's labels in its fixed order; averages run over all of them.
        confidence: level of the intervals.
        n_resamples: bootstrap resamples.
        seed: seed of the bootstrap.

    Raises:
        DataError: there are no records, they mix systems or tasks, an id occurs twice, or a label is unknown.
    """
    answers = _Answers.read(records, labels)
    features_GF = _group_sums(answers, _tally_features(answers))
    shared = replicate(features_GF, n_resamples=n_resamples, seed=seed)
    metrics = {
        name: estimate(shared, _on_tally(score, len(labels)), confidence=confidence, bounds=_BOUNDS[name])
        for name, score in SCORES.items()
    }
    if metrics["accuracy"].low is None and metrics["accuracy"].value in (0.0, 1.0):
        metrics["accuracy"] = unanimous_interval(metrics["accuracy"].value, answers.n_groups, confidence=confidence)
    if answers.confidence_N is not None:
        metrics["ece"] = _calibration_estimate(answers, confidence=confidence, n_resamples=n_resamples, seed=seed)
    confusion = scores.confusion_matrix([r.target for r in records], [r.prediction for r in records], labels)
    return TaskResult(
        system=records[0].system,
        task=records[0].task,
        task_version=task_version,
        split=split,
        n=len(records),
        n_groups=answers.n_groups,
        missing_rate=float(np.mean(answers.prediction_N == len(labels))),
        confidence=confidence,
        metrics=metrics,
        per_class=scores.per_class(confusion, labels),
        labels=tuple(labels),
        confusion=tuple(tuple(int(cell) for cell in row) for row in confusion),
    )


def compare(
    system: Sequence[DocumentRecord],
    reference: Sequence[DocumentRecord],
    *,
    labels: Sequence[str],
    confidence: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """A paired comparison on the same documents, aligned by ``example_id``; differences are system minus reference.

    The same groups are resampled for both systems. ``mcnemar_p`` is given when every group holds one document,
    ``sign_flip_p`` (on accuracy) always.

    Raises:
        DataError: the two systems answered different documents, or see ``summarise``.
    """
    ours = _Answers.read(system, labels)
    theirs = _Answers.read(_aligned(reference, system), labels)
    features_GF = np.concatenate(
        [_group_sums(ours, _tally_features(ours)), _group_sums(theirs, _tally_features(theirs))], axis=1
    )
    shared = replicate(features_GF, n_resamples=n_resamples, seed=seed)
    gained = ours.correct_N & ~theirs.correct_N
    lost = theirs.correct_N & ~ours.correct_N
    net_G = np.bincount(ours.group_N, gained.astype(np.float64) - lost, minlength=ours.n_groups)
    return Comparison(
        task=system[0].task,
        system=system[0].system,
        reference=reference[0].system,
        n=len(system),
        only_system_correct=int(gained.sum()),
        only_reference_correct=int(lost.sum()),
        mcnemar_p=mcnemar_p(int(gained.sum()), int(lost.sum())) if ours.n_groups == len(system) else None,
        sign_flip_p=sign_flip_p(net_G),
        differences={
            name: _difference(shared, score, len(labels), _BOUNDS[name], confidence) for name, score in SCORES.items()
        },
    )


@dataclass(frozen=True)
class _Answers:
    """One system's records as arrays; shape legend: ``N`` documents, ``G`` groups."""

    n_labels: int
    target_N: Ints
    prediction_N: Ints
    group_N: Ints
    n_groups: int
    confidence_N: Floats | None

    @property
    def correct_N(self) -> npt.NDArray[np.bool_]:
        return np.asarray(self.target_N == self.prediction_N)

    @classmethod
    def read(cls, records: Sequence[DocumentRecord], labels: Sequence[str]) -> _Answers:
        if not records:
            raise DataError("There are no records to score.", "Check the split and the limit of the evaluation.")
        _check(records)
        codes: dict[str, int] = {}
        group_N = np.array([codes.setdefault(r.group or r.example_id, len(codes)) for r in records], dtype=np.int64)
        confidence = [max(r.probabilities) for r in records if r.probabilities]
        return cls(
            n_labels=len(labels),
            target_N=scores.encode([r.target for r in records], labels),
            prediction_N=scores.encode([r.prediction for r in records], labels),
            group_N=group_N,
            n_groups=len(codes),
            confidence_N=np.array(confidence) if len(confidence) == len(records) else None,
        )


def _check(records: Sequence[DocumentRecord]) -> None:
    first, seen = records[0], set[str]()
    for record in records:
        if (record.system, record.task) != (first.system, first.task):
            raise DataError(
                f"Records of {record.system} on {record.task} are mixed with {first.system} on {first.task}.",
                "Score one system on one task at a time.",
            )
        if record.example_id in seen:
            raise DataError(f"The document {record.example_id!r} of {record.task} is answered twice.")
        if record.correct != (record.prediction == record.target):
            raise DataError(
                f"The record of {record.example_id!r} in {record.task} says correct={record.correct}, "
                f"but its prediction is {record.prediction!r} and its target {record.target!r}."
            )
        seen.add(record.example_id)


def _aligned(reference: Sequence[DocumentRecord], system: Sequence[DocumentRecord]) -> list[DocumentRecord]:
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
        if (record.task, record.target, record.group) != (other.task, other.target, other.group):
            raise DataError(f"The document {record.example_id!r} has another task, target or group in the reference.")
    return [by_id[record.example_id] for record in system]


def _tally_features(answers: _Answers) -> Floats:
    """One-hot hits, targets and predictions of each document, ``(N, 3K)``."""
    eye = np.eye(answers.n_labels + 1, answers.n_labels)
    target_NK, predicted_NK = eye[answers.target_N], eye[answers.prediction_N]
    return np.concatenate([target_NK * predicted_NK, target_NK, predicted_NK], axis=1)


def _group_sums(answers: _Answers, features_NF: Floats) -> Floats:
    """Features added up within each group, ``(G, F)``."""
    sums_GF = np.zeros((answers.n_groups, features_NF.shape[1]))
    np.add.at(sums_GF, answers.group_N, features_NF)
    return sums_GF


def _on_tally(score: Callable[[Tally], Floats], n_labels: int) -> Callable[[Floats], Floats]:
    def statistic(totals: Floats) -> Floats:
        return score(Tally(*(totals[..., i * n_labels : (i + 1) * n_labels] for i in range(3))))

    return statistic


def _difference(
    shared: Replicates,
    score: Callable[[Tally], Floats],
    n_labels: int,
    bounds: tuple[float, float],
    confidence: float,
) -> Estimate:
    """System minus reference; the first half of the features is the system's."""
    on_tally = _on_tally(score, n_labels)
    half, span = 3 * n_labels, bounds[1] - bounds[0]

    def difference(totals: Floats) -> Floats:
        return on_tally(totals[..., :half]) - on_tally(totals[..., half:])

    return estimate(shared, difference, confidence=confidence, bounds=(-span, span))


def _calibration_estimate(answers: _Answers, *, confidence: float, n_resamples: int, seed: int) -> Estimate:
    """The calibration error; without an interval where confidence never varies or the error is rounding noise."""
    assert answers.confidence_N is not None, "the caller checks that every record has probabilities"
    gap_NF = np.zeros((len(answers.target_N), N_BINS + 1))
    index_N = bin_index(answers.confidence_N)
    gap_NF[np.arange(len(index_N)), index_N] = answers.confidence_N - answers.correct_N
    gap_NF[:, -1] = 1.0

    def error(totals: Floats) -> Floats:
        return np.asarray(np.abs(totals[..., :-1]).sum(-1) / totals[..., -1])

    value = float(error(gap_NF.sum(0)))
    if np.ptp(answers.confidence_N) < _SAME_CONFIDENCE or value < _NO_ERROR:
        return Estimate(value=value)
    shared = replicate(_group_sums(answers, gap_NF), n_resamples=n_resamples, seed=seed)
    return estimate(shared, error, confidence=confidence, bounds=(0.0, 1.0), basic=True)
