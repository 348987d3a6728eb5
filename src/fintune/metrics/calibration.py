"""Whether probabilities mean what they say: expected calibration error, reliability table, Brier score.

Enters: the probability a system gave its answer, and whether the answer was right. Bins are 15 equal widths over
[0, 1], closed on the right as in Guo et al. (arXiv 1706.04599); 0 itself falls into the first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fintune.metrics.classification import Ints
from fintune.schema.errors import DataError

N_BINS = 15


@dataclass(frozen=True)
class ReliabilityBin:
    """Documents whose top probability lies in ``(low, high]``; confidence and accuracy are None in an empty bin."""

    low: float
    high: float
    n: int
    confidence: float | None
    accuracy: float | None


def bin_index(confidence: npt.ArrayLike, n_bins: int = N_BINS) -> Ints:
    """The bin of each confidence, 0 to ``n_bins - 1``.

    Raises:
        DataError: a confidence is not a number in [0, 1].
    """
    values = np.asarray(confidence, dtype=np.float64)
    # float32 softmax sums overshoot 1 by a few units in the last place; anything further is an error.
    if not np.all((values >= 0) & (values <= 1 + 1e-4)):
        raise DataError("A probability lies outside [0, 1] or is not a number.")
    inner_edges = np.arange(1, n_bins) / n_bins
    return np.searchsorted(inner_edges, values, side="left").astype(np.int64)


def expected_calibration_error(confidence: npt.ArrayLike, correct: npt.ArrayLike, n_bins: int = N_BINS) -> float:
    """The mean gap between confidence and accuracy, over bins weighted by their documents; NaN without documents."""
    confidence_N = np.asarray(confidence, dtype=np.float64)
    gap_N = confidence_N - np.asarray(correct, dtype=np.float64)
    if gap_N.size == 0:
        return float("nan")
    return float(np.abs(np.bincount(bin_index(confidence_N, n_bins), gap_N, minlength=n_bins)).sum() / gap_N.size)


def reliability_table(
    confidence: npt.ArrayLike, correct: npt.ArrayLike, n_bins: int = N_BINS
) -> tuple[ReliabilityBin, ...]:
    """Mean confidence and accuracy of each bin, the numbers behind a reliability diagram."""
    confidence_N = np.asarray(confidence, dtype=np.float64)
    correct_N = np.asarray(correct, dtype=np.float64)
    index_N = bin_index(confidence_N, n_bins)
    count_B = np.bincount(index_N, minlength=n_bins)
    confidence_B = np.bincount(index_N, confidence_N, minlength=n_bins)
    correct_B = np.bincount(index_N, correct_N, minlength=n_bins)
    return tuple(
        ReliabilityBin(
            low=b / n_bins,
            high=(b + 1) / n_bins,
            n=int(n),
            confidence=float(confidence_B[b] / n) if n else None,
            accuracy=float(correct_B[b] / n) if n else None,
        )
        for b, n in enumerate(count_B)
    )
