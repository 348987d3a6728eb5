"""Bins of returns: FinGPT's steps, phrases that round-trip, borders that belong to the lower bin."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fintune.metrics.return_bins import LABELS, bin_of, middle_of, phrase_of, sign_of


@pytest.mark.parametrize(
    ("change", "label", "phrase"),
    [
        (0.0312, "U4", "up by 3-4%"),
        (0.03, "U3", "up by 2-3%"),
        (-0.07, "D5+", "down by more than 5%"),
        (0.0, "U1", "up by 0-1%"),
        (-0.0001, "D1", "down by 0-1%"),
        (0.05, "U5", "up by 4-5%"),
        (0.0500001, "U5+", "up by more than 5%"),
    ],
)
def test_returns_have_fingpts_labels_and_phrases(change, label, phrase):
    assert bin_of(change) == label
    assert phrase_of(label) == phrase


@given(st.sampled_from(LABELS))
def test_the_middle_of_a_bin_lies_in_it(label):
    assert bin_of(middle_of(label)) == label
    assert math.copysign(1, middle_of(label)) == sign_of(label)


@pytest.mark.parametrize("label", ["U0", "U6", "d1", "", "5+"])
def test_other_labels_are_refused(label):
    with pytest.raises(ValueError, match="no bin"):
        middle_of(label)


@pytest.mark.parametrize("change", [math.nan, math.inf])
def test_returns_that_are_no_numbers_are_refused(change):
    with pytest.raises(ValueError, match="no bin"):
        bin_of(change)
