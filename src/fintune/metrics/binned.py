"""How good distributions over bins of a number are: log score, CRPS, and calibration.

Enters: probabilities of the bins, their edges and what happened. Leaves: a value for each forecast, or a histogram.
Every model's distribution goes through the same bins, so continuous and discrete ones are scored alike.

Shape legend: ``N`` forecasts, ``K`` bins, ``E`` = K - 1 inner edges.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fintune.metrics.classification import Floats, Ints

PIT_BINS = 10
FLOOR = 1e-9
"""No bin is thought less likely than this: one surprise must not decide a comparison for ever."""


def with_floor(probabilities_NK: Floats) -> Floats:
    """The probabilities with none below ``FLOOR``, adding up to 1."""
    raised = np.maximum(probabilities_NK, FLOOR)
    floored: Floats = raised / raised.sum(1, keepdims=True)
    return floored


def from_cdf(cdf_NE: Floats) -> Floats:
    """Probabilities ``(N, K)`` of bins from a distribution function at their inner edges."""
    ends = np.zeros((len(cdf_NE), 1)), np.ones((len(cdf_NE), 1))
    return with_floor(np.diff(np.concatenate([ends[0], cdf_NE, ends[1]], axis=1)))


def log_scores(probabilities_NK: Floats, code_N: Ints) -> Floats:
    """Log-likelihood ``(N,)`` of the bin that came true, in nats; more is better."""
    scores: Floats = np.log(probabilities_NK[np.arange(len(code_N)), code_N])
    return scores


def crps(probabilities_NK: Floats, edges_NE: Floats, outcome_N: Floats) -> Floats:
    """Continuous ranked probability score ``(N,)`` between the outer edges, in units of the outcome; less is better.

    The squared distance between the distribution function and the step at the outcome, integrated from the first to
    the last inner edge (threshold-weighted, Gneiting and Ranjan 2011); probability is spread evenly within a bin. What
    lies beyond the outer edges has no width and is left to the log score.
    """
    cdf = np.cumsum(probabilities_NK, axis=1)[:, :-1]
    low, high = cdf[:, :-1], cdf[:, 1:]
    width = np.diff(edges_NE, axis=1)
    share = np.clip((outcome_N[:, None] - edges_NE[:, :-1]) / width, 0, 1)  # of the bin that lies below the outcome
    at = low + (high - low) * share
    below = share * (low**2 + low * at + at**2)
    above = (1 - share) * ((1 - at) ** 2 + (1 - at) * (1 - high) + (1 - high) ** 2)
    scores: Floats = (width * (below + above)).sum(1) / 3
    return scores


def pit_shares(probabilities_NK: Floats, code_N: Ints, borders: npt.ArrayLike) -> Floats:
    """How much of each outcome's place in its distribution lies between neighbouring borders, ``(N, borders - 1)``.

    An outcome is known by its bin alone, so its place is spread over the bin's range of the distribution function
    (Czado, Gneiting and Held 2009): calibrated forecasts give every border its width.
    """
    cdf = np.concatenate([np.zeros((len(code_N), 1)), np.cumsum(probabilities_NK, axis=1)], axis=1)
    rows = np.arange(len(code_N))
    low, high = cdf[rows, code_N][:, None], cdf[rows, code_N + 1][:, None]
    shares: Floats = np.diff(np.clip((np.asarray(borders)[None] - low) / (high - low), 0, 1), axis=1)
    return shares


def coverage(probabilities_NK: Floats, code_N: Ints, level: float) -> Floats:
    """How much of each outcome lies in the central interval of this level, ``(N,)``."""
    return pit_shares(probabilities_NK, code_N, [(1 - level) / 2, (1 + level) / 2])[:, 0]


def pit_histogram(probabilities_NK: Floats, code_N: Ints) -> Floats:
    """Shares of the outcomes in ten equal parts of their distributions, ``(10,)``; 0.1 each where calibrated."""
    histogram: Floats = pit_shares(probabilities_NK, code_N, np.linspace(0, 1, PIT_BINS + 1)).mean(0)
    return histogram
