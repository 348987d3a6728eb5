import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from fintune.metrics import accuracy, confusion_matrix, macro_f1, mcc, per_class, tally, weighted_f1
from fintune.schema.errors import DataError

LABELS = ["negative", "neutral", "positive"]
MISSING = "(missing)"
pairs = st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from([*LABELS, None])), min_size=1, max_size=60)


def split(rows):
    return [target for target, _ in rows], [prediction for _, prediction in rows]


@settings(deadline=None, max_examples=80)
@given(pairs)
def test_scores_equal_scikit_learn(rows):
    targets, predictions = split(rows)
    named = [MISSING if p is None else p for p in predictions]
    counts = tally(confusion_matrix(targets, predictions, LABELS))
    options = {"labels": LABELS, "zero_division": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = {
            accuracy: sk.accuracy_score(targets, named),
            macro_f1: sk.f1_score(targets, named, average="macro", **options),
            weighted_f1: sk.f1_score(targets, named, average="weighted", **options),
            mcc: sk.matthews_corrcoef(targets, named),
        }
    for score, value in expected.items():
        assert float(score(counts)) == pytest.approx(value, abs=1e-12), score.__name__


@settings(deadline=None, max_examples=40)
@given(pairs)
def test_per_class_equals_scikit_learn(rows):
    targets, predictions = split(rows)
    named = [MISSING if p is None else p for p in predictions]
    ours = per_class(confusion_matrix(targets, predictions, LABELS), LABELS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = sk.precision_recall_fscore_support(targets, named, labels=LABELS, zero_division=0)
    assert [c.label for c in ours] == LABELS
    np.testing.assert_allclose([(c.precision, c.recall, c.f1, c.support) for c in ours], np.transpose(theirs))


def test_confusion_has_rows_of_targets_and_a_last_missing_column():
    matrix = confusion_matrix(
        ["negative", "negative", "positive", "positive"], ["positive", None, "positive", "neutral"], LABELS
    )
    assert matrix.tolist() == [[0, 0, 1, 1], [0, 0, 0, 0], [0, 1, 1, 0]]


def test_a_missing_answer_costs_recall_but_no_precision():
    (negative, *_) = per_class(confusion_matrix(["negative"] * 4, ["negative"] * 3 + [None], LABELS), LABELS)
    assert (negative.precision, negative.recall) == (1.0, 0.75)


@settings(deadline=None)
@given(pairs)
def test_answering_nothing_never_helps(rows):
    targets, predictions = split(rows)
    silent = tally(confusion_matrix(targets, [None, *predictions[1:]], LABELS))
    right = tally(confusion_matrix(targets, [targets[0], *predictions[1:]], LABELS))
    for score in (accuracy, macro_f1, weighted_f1):
        assert score(silent) < score(right)


def test_leading_axes_are_scored_independently():
    rng = np.random.default_rng(3)
    stack = rng.integers(0, 9, size=(4, 5, 3, 4))
    for score in (accuracy, macro_f1, weighted_f1, mcc):
        together = score(tally(stack))
        assert together.shape == (4, 5)
        assert together[2, 3] == score(tally(stack[2, 3]))


@pytest.mark.parametrize(
    ("targets", "predictions", "labels", "named"),
    [
        (["up"], ["down"], ["up"], "'down'"),
        (["flat"], ["up"], ["up"], "'flat'"),
        ([None], ["up"], ["up"], "no target"),
        (["up"], ["up"], ["up", "up"], "twice"),
        (["up"], [], ["up"], "1 targets face 0"),
    ],
)
def test_bad_input_is_named(targets, predictions, labels, named):
    with pytest.raises(DataError, match=named):
        confusion_matrix(targets, predictions, labels)
