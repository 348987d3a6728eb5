import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from fintune.metrics import compare, expected_calibration_error, mcnemar_p, sign_flip_p, summarise
from fintune.schema.errors import DataError
from fintune.schema.results import DocumentRecord

LABELS = ("negative", "neutral", "positive")
OPTIONS = {"task_version": "1", "split": "test", "labels": LABELS}


def record(i, target, prediction, *, system="tuned", group=None, probabilities=None):
    return DocumentRecord(
        system=system,
        task="toy",
        example_id=f"d{i}",
        group=f"d{i}" if group is None else group,
        target=target,
        prediction=prediction,
        correct=target == prediction,
        choices=LABELS,
        probabilities=probabilities,
    )


def simulated(n, right, seed, *, system="tuned", per_group=1):
    """``n`` records of which about the share ``right`` is right."""
    draw = np.random.default_rng(seed)
    records = []
    for i in range(n):
        target = LABELS[i % 3]
        prediction = target if draw.random() < right else str(draw.choice([x for x in LABELS if x != target]))
        records.append(record(i, target, prediction, system=system, group=f"g{i // per_group}"))
    return records


def test_a_result_holds_every_number_the_report_needs():
    records = simulated(300, 0.7, 0)
    result = summarise(records, **OPTIONS)
    targets, predictions = [r.target for r in records], [r.prediction for r in records]
    assert list(result.metrics) == ["accuracy", "macro_f1", "weighted_f1", "mcc"]
    assert result.metrics["macro_f1"].value == pytest.approx(f1_score(targets, predictions, average="macro"))
    assert (result.n, result.n_groups, result.missing_rate) == (300, 300, 0.0)
    assert np.sum(result.confusion) == 300 and np.shape(result.confusion) == (3, 4)
    for e in result.metrics.values():
        assert e.low < e.value < e.high
    wide = summarise(records, **OPTIONS, confidence=0.99).metrics["accuracy"]
    assert wide.low < result.metrics["accuracy"].low


def test_missing_answers_are_counted_and_wrong():
    records = [record(i, "neutral", None if i < 25 else "neutral") for i in range(100)]
    result = summarise(records, **OPTIONS)
    assert (result.missing_rate, result.metrics["accuracy"].value) == (0.25, 0.75)
    assert [row[-1] for row in result.confusion] == [0, 25, 0]


def test_larger_groups_widen_the_interval():
    base = simulated(300, 0.7, 1)
    together = sorted(base, key=lambda r: r.correct)
    clustered = [r.model_copy(update={"group": f"g{i // 5}"}) for i, r in enumerate(together)]

    def width(records):
        e = summarise(records, **OPTIONS).metrics["accuracy"]
        return e.high - e.low

    assert width(clustered) > 1.8 * width(base)


def test_an_empty_group_means_the_document_stands_alone():
    result = summarise([record(i, "neutral", "neutral", group="") for i in range(40)], **OPTIONS)
    assert result.n_groups == 40


def test_all_right_still_has_an_honest_accuracy_interval():
    result = summarise([record(i, LABELS[i % 3], LABELS[i % 3]) for i in range(12)], **OPTIONS)
    e = result.metrics["accuracy"]
    assert (e.value, e.low, e.high) == (1.0, pytest.approx(0.025 ** (1 / 12)), 1.0)
    assert result.metrics["mcc"].low is None


def confident(n, seed, sharpness):
    """Records whose probabilities are true (sharpness 1) or overconfident (above)."""
    draw = np.random.default_rng(seed)
    records = []
    for i in range(n):
        true = draw.dirichlet(np.ones(3))
        target = LABELS[draw.choice(3, p=true)]
        shown = true**sharpness / (true**sharpness).sum()
        records.append(record(i, target, LABELS[int(shown.argmax())], probabilities=tuple(shown)))
    return records


def test_calibration_error_is_there_when_every_record_has_probabilities():
    records = confident(400, 0, 3.0)
    e = summarise(records, **OPTIONS).metrics["ece"]
    expected = expected_calibration_error([max(r.probabilities) for r in records], [r.correct for r in records])
    assert e.value == pytest.approx(expected) and e.low <= e.value <= e.high and e.low > 0.05
    without = [records[0].model_copy(update={"probabilities": None}), *records[1:]]
    assert "ece" not in summarise(without, **OPTIONS).metrics


@pytest.mark.parametrize("sure", [(0.6, 0.2, 0.2), (1.0, 0.0, 0.0)])
def test_calibration_has_no_interval_where_it_says_nothing(sure):
    records = confident(100, 0, 0.8)
    same = [r.model_copy(update={"probabilities": sure}) for r in records]
    ece = summarise(same, **OPTIONS).metrics["ece"]
    assert (ece.low, ece.high) == (None, None) and ece.value > 0
    certain = [
        r.model_copy(update={"prediction": r.target, "correct": True, "probabilities": (1.0 - 1e-11 * i, 0.0, 0.0)})
        for i, r in enumerate(records)
    ]
    ece = summarise(certain, **OPTIONS).metrics["ece"]
    assert ece.value < 1e-9 and (ece.low, ece.high) == (None, None)
    varied = summarise(records, **OPTIONS).metrics["ece"]
    assert varied.low is not None and varied.high is not None


def test_calibration_interval_of_a_calibrated_system_reaches_almost_to_zero():
    """The percentile bootstrap would sit above the truth, because binning noise inflates the error twice."""
    reaches = [summarise(confident(300, s, 1.0), **OPTIONS, n_resamples=300).metrics["ece"].low for s in range(20)]
    assert np.mean(np.array(reaches) < 0.02) >= 0.85


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([], "no records"),
        ([record(0, "neutral", "neutral"), record(0, "neutral", "neutral")], "twice"),
        ([record(0, "neutral", "neutral"), record(1, "neutral", "neutral", system="base")], "mixed"),
        ([record(0, "neutral", "sideways")], "sideways"),
        ([record(0, "neutral", "neutral").model_copy(update={"correct": False})], "correct=False"),
    ],
)
def test_bad_records_are_named(records, words):
    with pytest.raises(DataError, match=words):
        summarise(records, **OPTIONS)


def test_comparison_finds_a_real_difference_and_aligns_by_id():
    ours, theirs = simulated(300, 0.8, 2), simulated(300, 0.5, 3, system="base")
    c = compare(ours, theirs[::-1], labels=LABELS)
    straight = compare(ours, theirs, labels=LABELS)
    assert c == straight
    gained = sum(a.correct and not b.correct for a, b in zip(ours, theirs, strict=True))
    lost = sum(b.correct and not a.correct for a, b in zip(ours, theirs, strict=True))
    assert (c.only_system_correct, c.only_reference_correct) == (gained, lost)
    assert c.mcnemar_p == pytest.approx(mcnemar_p(gained, lost)) == pytest.approx(c.sign_flip_p)
    assert c.differences["accuracy"].value == pytest.approx((gained - lost) / 300)
    assert all(d.low > 0 for d in c.differences.values())
    back = compare(theirs, ours, labels=LABELS)
    assert back.differences["mcc"].value == pytest.approx(-c.differences["mcc"].value)
    assert back.differences["mcc"].high == pytest.approx(-c.differences["mcc"].low)


def test_pairing_is_sharper_than_two_separate_intervals():
    theirs = simulated(300, 0.6, 4, system="base")
    ours = [record(i, r.target, r.target if i % 12 == 0 else r.prediction, group=r.group) for i, r in enumerate(theirs)]
    d = compare(ours, theirs, labels=LABELS).differences["accuracy"]
    a, b = (summarise(x, **OPTIONS).metrics["accuracy"] for x in (ours, theirs))
    assert d.low > 0 and a.low < b.high


def test_several_documents_a_group_have_no_mcnemar_but_a_sign_flip():
    ours, theirs = simulated(60, 0.9, 5, per_group=6), simulated(60, 0.5, 6, system="base", per_group=6)
    c = compare(ours, theirs, labels=LABELS)
    net = [
        sum(int(a.correct) - int(b.correct) for a, b in zip(ours, theirs, strict=True) if a.group == g)
        for g in dict.fromkeys(r.group for r in ours)
    ]
    assert c.mcnemar_p is None and c.sign_flip_p == pytest.approx(sign_flip_p(net))


def test_equal_answers_differ_by_nothing():
    ours, theirs = simulated(50, 0.7, 8), simulated(50, 0.7, 8, system="base")
    c = compare(ours, theirs, labels=LABELS)
    assert c.mcnemar_p == c.sign_flip_p == 1.0
    assert {d.value for d in c.differences.values()} == {0.0}


def test_different_documents_cannot_be_compared():
    ours, theirs = simulated(30, 0.7, 0), simulated(30, 0.7, 0, system="base")
    with pytest.raises(DataError, match="different documents"):
        compare(ours, theirs[:-1], labels=LABELS)
    with pytest.raises(DataError, match="different documents"):
        compare(ours, [*theirs[:-1], theirs[0]], labels=LABELS)
    changed = theirs[0].model_copy(update={"group": "elsewhere"})
    with pytest.raises(DataError, match="another task, target or group"):
        compare(ours, [changed, *theirs[1:]], labels=LABELS)


@settings(deadline=None, max_examples=25)
@given(
    st.lists(
        st.tuples(st.sampled_from(LABELS), st.sampled_from([*LABELS, None]), st.integers(0, 40)),
        min_size=1,
        max_size=80,
    )
)
def test_any_records_give_ordered_finite_intervals(rows):
    records = [record(i, t, p, group=f"g{g}") for i, (t, p, g) in enumerate(rows)]
    result = summarise(records, **OPTIONS, n_resamples=100)
    for e in result.metrics.values():
        assert np.isfinite(e.value)
        assert (e.low is None) == (e.high is None)
        assert e.low is None or -1 <= e.low <= e.value <= e.high <= 1
