import gc
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fintune.metrics.multiple import holm

p_values = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def test_a_case_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.4: 4 x 0.01, 3 x 0.02, then 2 x 0.03 = 0.06, then 0.4.
    assert holm([0.03, 0.4, 0.01, 0.02]) == pytest.approx([0.06, 0.4, 0.04, 0.06])
    # 2 x 0.03 would be below 3 x 0.025: an adjusted value never falls.
    assert holm([0.025, 0.03, 0.9]) == pytest.approx([0.075, 0.075, 0.9])


def test_none_and_one():
    assert holm([]) == []
    assert holm([0.3]) == [0.3]


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan")])
def test_what_is_no_p_value_is_refused(bad):
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([0.5, bad])


@given(p_values, st.floats(0.001, 0.999))
def test_it_rejects_what_the_step_down_procedure_rejects(values, level):
    """The procedure as Holm states it: go up from the smallest until one exceeds level / (tests left)."""
    rejected = set()
    for done, index in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        if values[index] * (len(values) - done) > level:
            break
        rejected.add(index)
    assert {index for index, adjusted in enumerate(holm(values)) if adjusted <= level} == rejected


@given(p_values)
def test_adjusting_only_raises_and_stays_below_bonferroni(values):
    for plain, adjusted in zip(values, holm(values), strict=True):
        assert plain <= adjusted <= min(1, plain * len(values))


@given(p_values)
def test_it_agrees_with_statsmodels(values):
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    with patch.object(gc, "collect"):  # which it calls at every call, to go through millions of objects
        theirs = multitest.multipletests(values, method="holm")[1]
    assert holm(values) == pytest.approx(list(theirs))
