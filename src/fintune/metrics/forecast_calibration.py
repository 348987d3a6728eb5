"""Whether the probability of a rise means what it says: Brier score, calibration error, reliability table.

Enters: P(up) for each forecast, as a model's likelihoods of the bins give it, and whether the price rose. Leaves:
``UpCalibration``, with intervals over weeks and the constant forecast beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fintune.metrics.calibration import ReliabilityBin, bin_index, reliability_table
from fintune.metrics.families import group_sums
from fintune.metrics.forecast import mean_over_weeks, number_weeks
from fintune.metrics.intervals import estimate, replicate
from fintune.schema.errors import DataError
from fintune.schema.results import Estimate

N_UP_BINS = 10


@dataclass(frozen=True)
class UpCalibration:
    """How P(up) fits.

    Attributes:
        n: forecasts.
        n_weeks: weeks they lie in.
        brier: mean squared distance of P(up) from 1 (rose) or 0 (fell); 0.25 for always saying one half.
        brier_constant: the same for always saying the share of rises in these very weeks, which nobody knew.
        ece: mean distance of P(up) from the share of rises in its bin, weighted by forecasts.
        bins: ten bins of equal width; ``confidence`` is the mean P(up), ``accuracy`` the share of rises.
    """

    n: int
    n_weeks: int
    brier: Estimate
    brier_constant: float
    ece: Estimate
    bins: tuple[ReliabilityBin, ...]


def up_calibration(
    p_up: Sequence[float],
    rose: Sequence[bool],
    weeks: Sequence[str],
    *,
    confidence: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> UpCalibration:
    """Calibration of P(up), clustered by week.

    Raises:
        DataError: a probability lies outside [0, 1], or there are none.
    """
    if not p_up:
        raise DataError("There are no probabilities of a rise.", "Score the bins by likelihood.")
    p_N, rose_N = np.asarray(p_up, np.float64), np.asarray(rose, np.float64)
    index_N = bin_index(p_N, N_UP_BINS)
    squared = ((p_N - rose_N) ** 2).tolist()
    share = float(rose_N.mean())
    gap_NF = np.zeros((len(p_N), N_UP_BINS + 1))
    gap_NF[np.arange(len(p_N)), index_N] = p_N - rose_N
    gap_NF[:, -1] = 1.0
    week_N = number_weeks(weeks)
    shared = replicate(group_sums(gap_NF, week_N), n_resamples=n_resamples, seed=seed)

    def error(totals: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.asarray(np.abs(totals[..., :-1]).sum(-1) / totals[..., -1])

    return UpCalibration(
        n=len(p_N),
        n_weeks=int(week_N.max()) + 1,
        brier=mean_over_weeks(squared, weeks, confidence=confidence, n_resamples=n_resamples, seed=seed),
        brier_constant=share * (1 - share),
        ece=estimate(shared, error, confidence=confidence, bounds=(0.0, 1.0), basic=True),
        bins=reliability_table(p_N, rose_N, N_UP_BINS),
    )
