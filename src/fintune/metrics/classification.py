"""Classification scores from counts, vectorised over any number of resamples.

Every score is a function of three numbers a class (``Tally``), so thousands of resamples cost one matrix product.
A missing answer raises a class's target count but nobody's predicted count: it is wrong and never dropped.

Shape legend: ``K`` labels; ``...`` any leading axes, such as resamples or groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fintune.schema.errors import DataError
from fintune.schema.results import ClassScores

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Tally(NamedTuple):
    """Counts of each class, shaped ``(..., K)``: right answers, documents with that target, answers so labelled."""

    hits: Floats
    targets: Floats
    predicted: Floats


def encode(values: Sequence[str | None], labels: Sequence[str]) -> Ints:
    """Positions in ``labels``; ``None`` becomes ``len(labels)``, the missing column.

    Raises:
        DataError: a value is not among the labels.
    """
    position: dict[str | None, int] = {label: index for index, label in enumerate(labels)}
    if len(position) != len(labels):
        raise DataError(f"The labels {list(labels)} name one class twice.", "List every label once.")
    position[None] = len(labels)
    try:
        return np.fromiter((position[value] for value in values), dtype=np.int64, count=len(values))
    except KeyError as error:
        raise DataError(
            f"The label {error.args[0]!r} is not among the task's labels {list(labels)}.",
            "Map it to a label, or leave the prediction empty so that it counts as missing.",
        ) from None


def confusion_matrix(targets: Sequence[str], predictions: Sequence[str | None], labels: Sequence[str]) -> Ints:
    """Counts shaped ``(K, K + 1)``: a row for each target, a column for each prediction, the last one for missing."""
    target_N, prediction_N = encode(targets, labels), encode(predictions, labels)
    if target_N.shape != prediction_N.shape:
        raise DataError(f"{len(target_N)} targets face {len(prediction_N)} predictions.")
    if np.any(target_N == len(labels)):
        raise DataError("A document has no target.", "Every scored document needs a target among the labels.")
    columns = len(labels) + 1
    cells = np.bincount(target_N * columns + prediction_N, minlength=len(labels) * columns)
    return cells.reshape(len(labels), columns).astype(np.int64)


def tally(confusion: npt.ArrayLike) -> Tally:
    """The three counts a class that every score needs, from ``(..., K, K + 1)`` confusion counts."""
    counts = np.asarray(confusion, dtype=np.float64)
    answered = counts[..., :-1]
    return Tally(np.diagonal(answered, axis1=-2, axis2=-1).copy(), counts.sum(-1), answered.sum(-2))


def accuracy(counts: Tally) -> Floats:
    """The share of right answers."""
    return _ratio(counts.hits.sum(-1), counts.targets.sum(-1))


def f1(counts: Tally) -> Floats:
    """F1 of each class, ``(..., K)``; 0 for a class that is neither a target nor predicted."""
    return _ratio(2 * counts.hits, counts.targets + counts.predicted)


def macro_f1(counts: Tally) -> Floats:
    """The plain mean of F1 over all labels of the task, those without a document included."""
    return np.asarray(f1(counts).mean(-1))


def weighted_f1(counts: Tally) -> Floats:
    """The mean of F1 weighted by how many documents have that target."""
    return _ratio((f1(counts) * counts.targets).sum(-1), counts.targets.sum(-1))


def mcc(counts: Tally) -> Floats:
    """Matthews correlation for several classes, missing answers being a class of their own; 0 where undefined."""
    total = counts.targets.sum(-1)
    missing = total - counts.predicted.sum(-1)
    covariance = counts.hits.sum(-1) * total - (counts.targets * counts.predicted).sum(-1)
    prediction_variance = total**2 - (counts.predicted**2).sum(-1) - missing**2
    target_variance = total**2 - (counts.targets**2).sum(-1)
    return _ratio(covariance, np.sqrt(np.maximum(prediction_variance * target_variance, 0.0)))


def per_class(confusion: npt.ArrayLike, labels: Sequence[str]) -> tuple[ClassScores, ...]:
    """Precision, recall, F1 and support of each label; 0 where the denominator is."""
    counts = tally(confusion)
    columns = (_ratio(counts.hits, counts.predicted), _ratio(counts.hits, counts.targets), f1(counts), counts.targets)
    return tuple(
        ClassScores(label=label, precision=float(p), recall=float(r), f1=float(score), support=int(support))
        for label, p, r, score, support in zip(labels, *columns, strict=True)
    )


def _ratio(numerator: Any, denominator: Any) -> Floats:
    """Division that gives 0 where the denominator is 0."""
    top, bottom = np.broadcast_arrays(np.asarray(numerator, np.float64), np.asarray(denominator, np.float64))
    return np.asarray(np.divide(top, bottom, out=np.zeros(top.shape), where=bottom != 0))
