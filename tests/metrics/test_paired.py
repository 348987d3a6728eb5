import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, permutation_test

from fintune.metrics import mcnemar_p, sign_flip_p


@settings(deadline=None)
@given(st.integers(0, 200), st.integers(0, 200))
def test_mcnemar_is_the_exact_binomial_test(ours, theirs):
    expected = binomtest(ours, ours + theirs, 0.5).pvalue if ours + theirs else 1.0
    assert mcnemar_p(ours, theirs) == pytest.approx(expected, rel=1e-9)


@settings(deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=9))
def test_sign_flip_equals_enumeration(differences):
    observed = abs(sum(differences))
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((-1, 1), repeat=len(differences))
    ]
    assert sign_flip_p(differences) == pytest.approx(np.mean([s >= observed for s in sums]))


def test_sign_flip_equals_scipy():
    differences = np.array([3, -1, 2, 2, 0, 1, -2, 4])
    expected = permutation_test((differences,), np.sum, permutation_type="samples", n_resamples=np.inf).pvalue
    assert sign_flip_p(differences) == pytest.approx(expected)


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60))
def test_on_single_documents_sign_flip_is_mcnemar(gained, lost, ties):
    assert sign_flip_p([1] * gained + [-1] * lost + [0] * ties) == pytest.approx(mcnemar_p(gained, lost))


def test_sign_flip_survives_many_groups_and_refuses_fractions():
    assert sign_flip_p([1] * 3000 + [-1] * 2000) < 1e-40
    assert sign_flip_p([]) == 1.0
    with pytest.raises(ValueError, match="whole numbers"):
        sign_flip_p([0.5])
