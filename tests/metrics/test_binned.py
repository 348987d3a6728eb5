"""Scores of distributions over bins, against integrals and what calibration means."""

import numpy as np
import pytest
from scipy.stats import norm

from fintune.metrics.binned import FLOOR, coverage, crps, from_cdf, log_scores, pit_histogram

EDGES = np.array([-2.0, -0.7, 0.1, 1.3])


def test_crps_is_the_integral():
    generator = np.random.default_rng(0)
    chances = generator.dirichlet(np.ones(5), size=40)
    outcomes = np.concatenate([generator.normal(0, 2, 36), [-2.0, 0.1, -9.0, 9.0]])
    grid = np.linspace(EDGES[0], EDGES[-1], 200_001)
    middle = (grid[1:] + grid[:-1]) / 2
    expected = []
    for chance, outcome in zip(chances, outcomes, strict=True):
        cdf = np.interp(middle, EDGES, np.cumsum(chance)[:-1])
        expected.append(np.sum((cdf - (middle >= outcome)) ** 2 * np.diff(grid)))
    found = crps(chances, np.tile(EDGES, (40, 1)), outcomes)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_crps_of_fine_bins_is_that_of_the_normal_distribution():
    edges, outcomes = np.linspace(-8, 8, 3001), np.array([-1.5, 0.0, 2.5])
    chances = from_cdf(np.tile(norm.cdf(edges), (3, 1)))
    exact = outcomes * (2 * norm.cdf(outcomes) - 1) + 2 * norm.pdf(outcomes) - 1 / np.sqrt(np.pi)
    np.testing.assert_allclose(crps(chances, np.tile(edges, (3, 1)), outcomes), exact, atol=1e-4)


def test_the_true_distribution_has_the_best_likelihood_and_is_calibrated():
    outcomes = np.random.default_rng(1).normal(size=20_000)
    code = np.searchsorted(EDGES, outcomes, side="right")
    true, narrow = (from_cdf(np.tile(norm.cdf(EDGES, scale=scale), (len(code), 1))) for scale in (1.0, 0.5))
    assert log_scores(true, code).mean() > log_scores(narrow, code).mean() + 0.1
    np.testing.assert_allclose(pit_histogram(true, code), 0.1, atol=0.01)
    assert coverage(true, code, 0.9).mean() == pytest.approx(0.9, abs=0.01)
    assert coverage(narrow, code, 0.9).mean() < 0.75


def test_no_bin_is_impossible():
    chances = from_cdf(np.array([[0.0, 0.0, 1.0, 1.0]]))
    assert chances.sum() == pytest.approx(1) and chances.min() == pytest.approx(FLOOR, rel=1e-6)
