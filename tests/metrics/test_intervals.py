import time

import numpy as np
import pytest
from scipy.stats import beta, t

from fintune.metrics.intervals import estimate, replicate, resampled_sums, unanimous_interval


def mean(totals):
    return totals[..., 0] / totals[..., 1]


def grouped(rng, n_groups, size, spread):
    """Right answers in each group, whose own accuracy varies around 0.6."""
    own = np.clip(rng.normal(0.6, spread, n_groups), 0, 1)
    return np.stack([rng.binomial(size, own), np.full(n_groups, size)], axis=1).astype(float)


def interval(features, **options):
    shared = replicate(features, n_resamples=options.pop("n_resamples", 400), seed=options.pop("seed", 0))
    return estimate(shared, mean, confidence=0.95, bounds=(0.0, 1.0), **options)


@pytest.mark.parametrize(("n_groups", "size"), [(8, 10), (60, 10)])
def test_intervals_cover_the_truth_as_often_as_they_say(n_groups, size):
    rng = np.random.default_rng(5)
    truth, hits, tries = 0.6, 0, 400
    for seed in range(tries):
        e = interval(grouped(rng, n_groups, size, 0.2), seed=seed)
        hits += e.low <= truth <= e.high
    assert 0.915 <= hits / tries <= 0.985


def test_ignoring_groups_would_be_too_sure_of_itself():
    """The trap the clustering is for: the same data taken as independent documents covers far less than 95%."""
    rng = np.random.default_rng(6)
    hits, tries = 0, 150
    for seed in range(tries):
        features = grouped(rng, 60, 10, 0.2)
        right = int(features[:, 0].sum())
        documents = np.stack([np.arange(600) < right, np.ones(600)], axis=1).astype(float)
        e = interval(documents, seed=seed)
        hits += e.low <= 0.6 <= e.high
    assert hits / tries < 0.88


def test_below_thirty_groups_a_mean_gets_students_t():
    features = grouped(np.random.default_rng(1), 12, 10, 0.2)
    shares = features[:, 0] / features[:, 1]
    low, high = t.interval(0.95, 11, loc=shares.mean(), scale=shares.std(ddof=1) / np.sqrt(12))
    e = interval(features)
    assert (e.low, e.high) == pytest.approx((low, high))


def test_thirty_groups_are_resampled_and_one_group_has_no_interval():
    features = grouped(np.random.default_rng(1), 30, 10, 0.2)
    assert replicate(features, n_resamples=50, seed=0).method == "bootstrap"
    assert replicate(features[:29], n_resamples=50, seed=0).method == "jackknife"
    assert (interval(features[:1]).low, interval(features[:1]).high) == (None, None)


def test_resamples_are_whole_groups_and_repeat_with_the_seed():
    features = np.eye(40)
    sums = resampled_sums(features, n_resamples=3000, seed=9)
    assert np.all(sums.sum(1) == 40) and np.all(sums == np.rint(sums))
    np.testing.assert_allclose(sums.mean(0), 1, atol=0.12)
    np.testing.assert_allclose(sums.var(), 39 / 40, atol=0.02)
    np.testing.assert_array_equal(sums, resampled_sums(features, n_resamples=3000, seed=9))
    assert not np.array_equal(sums, resampled_sums(features, n_resamples=3000, seed=10))


def test_bootstrap_matches_a_plain_loop():
    """The vectorised quantiles agree with resampling one group at a time."""
    features = grouped(np.random.default_rng(2), 50, 4, 0.3)
    rng = np.random.default_rng(77)
    slow = [mean(features[rng.integers(0, 50, 50)].sum(0)) for _ in range(4000)]
    e = interval(features, n_resamples=4000)
    np.testing.assert_allclose((e.low, e.high), np.quantile(slow, [0.025, 0.975]), atol=0.008)


def test_two_thousand_resamples_of_five_thousand_documents_are_quick():
    features = np.random.default_rng(0).random((5000, 12))
    started = time.perf_counter()
    resampled_sums(features, n_resamples=2000, seed=0)
    assert time.perf_counter() - started < 5  # 0.3 s on an idle core


def test_a_statistic_without_spread_has_no_interval():
    features = np.tile([3.0, 4.0], (40, 1))
    e = interval(features)
    assert (e.value, e.low, e.high) == (0.75, None, None)


@pytest.mark.parametrize("n", [1, 5, 200])
def test_unanimous_answers_get_the_exact_binomial_interval(n):
    right, wrong = (unanimous_interval(v, n, confidence=0.9) for v in (1.0, 0.0))
    assert (right.low, right.high) == pytest.approx((beta.ppf(0.05, n, 1), 1.0))
    assert (wrong.low, wrong.high) == pytest.approx((0.0, beta.ppf(0.95, 1, n)))
