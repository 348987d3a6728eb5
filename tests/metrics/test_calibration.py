import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fintune.metrics import expected_calibration_error, reliability_table
from fintune.schema.errors import DataError

answers = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=80)


def by_hand(confidence, correct, n_bins):
    """The textbook definition, one document and one bin at a time."""
    error = 0.0
    for b in range(n_bins):
        inside = [i for i, p in enumerate(confidence) if (b / n_bins < p <= (b + 1) / n_bins) or (b == 0 and p == 0)]
        if inside:
            gap = np.mean([correct[i] for i in inside]) - np.mean([confidence[i] for i in inside])
            error += len(inside) / len(confidence) * abs(gap)
    return error


@settings(deadline=None)
@given(answers)
def test_error_equals_the_definition(rows):
    confidence, correct = zip(*rows, strict=True)
    assert expected_calibration_error(confidence, correct) == pytest.approx(by_hand(confidence, correct, 15), abs=1e-9)


@settings(deadline=None)
@given(answers)
def test_the_table_keeps_every_document_and_reproduces_the_error(rows):
    confidence, correct = zip(*rows, strict=True)
    table = [b for b in reliability_table(confidence, correct) if b.n]
    assert sum(b.n for b in table) == len(rows)
    error = sum(b.n * abs(b.confidence - b.accuracy) for b in table) / len(rows)
    assert expected_calibration_error(confidence, correct) == pytest.approx(error, abs=1e-9)


def test_bins_are_closed_on_the_right():
    filled = [i for i, b in enumerate(reliability_table([0.0, 0.2, 0.200001, 1.0], [True] * 4)) if b.n]
    assert filled == [0, 2, 3, 14]


def test_extremes():
    assert expected_calibration_error([1.0, 1.0], [True, True]) == 0
    assert expected_calibration_error([1.0, 1.0], [False, False]) == 1
    assert np.isnan(expected_calibration_error([], []))
    empty = reliability_table([0.5], [True])[0]
    assert (empty.n, empty.confidence, empty.accuracy) == (0, None, None)


@pytest.mark.parametrize("bad", [float("nan"), -0.1, 1.1, float("inf")])
def test_a_number_that_is_no_probability_is_refused(bad):
    with pytest.raises(DataError, match="outside"):
        expected_calibration_error([0.5, bad], [True, True])
