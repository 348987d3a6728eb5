"""Scores of forecasts against scikit-learn, SciPy and enumeration."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import (
    balanced_accuracy_score,
    brier_score_loss,
    matthews_corrcoef,
    mean_absolute_error,
    mean_squared_error,
)

from fintune.metrics.forecast import Forecast, compare_forecasts, mean_over_weeks, score_forecasts
from fintune.metrics.forecast_answers import parse_robust
from fintune.metrics.forecast_baselines import Week, baseline_forecasts, linear, majority_sign
from fintune.metrics.forecast_calibration import up_calibration
from fintune.metrics.forecast_text import fingpt_scores, section_rouge
from fintune.metrics.return_bins import bin_of, middle_of
from fintune.schema.errors import DataError


def drawn(n_weeks=10, n_stocks=6, seed=3, missing=0.0):
    generator = np.random.default_rng(seed)
    found = []
    for week, stock in itertools.product(range(n_weeks), range(n_stocks)):
        change, said = generator.normal(0, 0.03, 2)
        is_missing = generator.random() < missing
        direction, size = (None, None) if is_missing else (int(np.sign(said)), float(100 * said))
        found.append(Forecast(f"S{stock}", f"2024-01-{week + 1:02}", float(change), direction, size))
    return found


def value(scores, name):
    return scores.metrics[name].value


def test_scores_are_scikit_learns():
    forecasts = drawn()
    scores = score_forecasts(forecasts)
    real = [1 if one.change >= 0 else -1 for one in forecasts]
    said = [one.direction for one in forecasts]
    changes, sizes = [100 * one.change for one in forecasts], [one.magnitude for one in forecasts]
    middles = [100 * middle_of(bin_of(one.change)) for one in forecasts]
    assert (scores.n, scores.n_weeks, scores.missing) == (60, 10, 0)
    assert value(scores, "coverage") == 1
    assert value(scores, "direction_accuracy") == pytest.approx(np.mean(np.equal(real, said)))
    assert value(scores, "balanced_accuracy") == pytest.approx(balanced_accuracy_score(real, said))
    assert value(scores, "mcc") == pytest.approx(matthews_corrcoef(real, said))
    assert value(scores, "mse") == pytest.approx(mean_squared_error(changes, sizes))
    assert value(scores, "mae") == pytest.approx(mean_absolute_error(changes, sizes))
    assert value(scores, "mse_bin") == pytest.approx(mean_squared_error(middles, sizes))
    assert value(scores, "mae_bin") == pytest.approx(mean_absolute_error(middles, sizes))
    assert value(scores, "mse_all") == value(scores, "mse")


def test_missing_forecasts_are_wrong_and_never_dropped():
    forecasts = drawn(missing=0.4)
    scores = score_forecasts(forecasts)
    real = ["up" if one.change >= 0 else "down" for one in forecasts]
    said = [{1: "up", -1: "down", None: "none"}[one.direction] for one in forecasts]
    answered = [one for one in forecasts if one.direction is not None]
    right = sum(a == b for a, b in zip(real, said, strict=True))
    assert 0 < scores.missing == said.count("none")
    assert value(scores, "coverage") == pytest.approx(len(answered) / 60)
    assert value(scores, "direction_accuracy") == pytest.approx(right / 60)
    assert value(scores, "direction_accuracy_answered") == pytest.approx(right / len(answered))
    assert value(scores, "mcc") == pytest.approx(matthews_corrcoef(real, said))
    recalls = [np.mean([said[i] == side for i in range(60) if real[i] == side]) for side in ("up", "down")]
    assert value(scores, "balanced_accuracy") == pytest.approx(np.mean(recalls))
    changes = [100 * one.change for one in forecasts]
    assert value(scores, "mse_all") == pytest.approx(
        mean_squared_error(changes, [one.magnitude or 0 for one in forecasts])
    )
    assert value(scores, "mse") == pytest.approx(
        mean_squared_error([100 * one.change for one in answered], [one.magnitude for one in answered])
    )


def test_ten_weeks_get_students_t_over_weeks():
    forecasts = drawn()
    estimate = score_forecasts(forecasts).metrics["direction_accuracy"]
    by_week = [
        np.mean([one.direction == (1 if one.change >= 0 else -1) for one in forecasts if one.week == week])
        for week in sorted({one.week for one in forecasts})
    ]
    low, high = stats.t.interval(0.95, 9, loc=np.mean(by_week), scale=stats.sem(by_week))
    assert (estimate.low, estimate.high) == (pytest.approx(low), pytest.approx(high))


def test_weeks_that_move_together_widen_the_interval():
    """Twenty copies of one forecast a week tell no more than one."""
    once = drawn(40, 1)
    copies = [
        Forecast(f"C{copy}", one.week, one.change, one.direction, one.magnitude) for one in once for copy in range(20)
    ]
    narrow, wide = (score_forecasts(rows, seed=1).metrics["direction_accuracy"] for rows in (once, copies))
    assert (narrow.low, narrow.high) == (pytest.approx(wide.low), pytest.approx(wide.high))


def test_paired_tests_flip_whole_weeks():
    ours, theirs = drawn(seed=4), [Forecast(one.symbol, one.week, one.change, 1, 1.0) for one in drawn(seed=4)]
    found = {one.metric: one for one in compare_forecasts({"model": ours}, {"up": theirs})}
    weeks = sorted({one.week for one in ours})
    for metric, worth in (
        ("direction_accuracy", lambda one: float(one.direction == (1 if one.change >= 0 else -1))),
        ("mse_all", lambda one: (one.magnitude - 100 * one.change) ** 2),
    ):
        net = np.array(
            [sum(worth(a) - worth(b) for a, b in zip(ours, theirs, strict=True) if a.week == week) for week in weeks]
        )
        flipped = [abs(np.dot(signs, net)) for signs in itertools.product((1, -1), repeat=10)]
        p = np.mean(np.array(flipped) >= abs(net.sum()) - 1e-9)
        assert found[metric].p == pytest.approx(p)
        assert found[metric].difference.value == pytest.approx(net.sum() / 60)
    smaller, larger = sorted(one.p for one in found.values())
    assert sorted(one.holm_p for one in found.values()) == pytest.approx(
        [min(1, 2 * smaller), max(min(1, 2 * smaller), larger)]
    )


def test_zero_return_is_compared_in_size_only():
    ours = drawn()
    zero = [Forecast(one.symbol, one.week, one.change, 0, 0.0) for one in ours]
    assert [one.metric for one in compare_forecasts({"model": ours}, {"zero_return": zero})] == ["mse_all"]


def test_comparisons_need_the_same_weeks():
    with pytest.raises(DataError, match="different stocks and weeks"):
        compare_forecasts({"a": drawn()}, {"b": drawn(9)})
    with pytest.raises(DataError, match="two forecasts"):
        score_forecasts([*drawn(), *drawn()])
    with pytest.raises(DataError, match="return of S0"):
        score_forecasts([Forecast("S0", "w", math.nan)])
    with pytest.raises(DataError, match="no forecasts"):
        score_forecasts([])


def test_calibration():
    generator = np.random.default_rng(0)
    p_up = generator.random(400)
    rose = generator.random(400) < p_up**2
    weeks = [str(number // 10) for number in range(400)]
    found = up_calibration(p_up.tolist(), rose.tolist(), weeks)
    assert found.brier.value == pytest.approx(brier_score_loss(rose, p_up))
    assert found.brier_constant == pytest.approx(brier_score_loss(rose, np.full(400, rose.mean())))
    edges = np.ceil(p_up * 10).astype(int)
    by_hand = sum(abs(p_up[edges == e].sum() - rose[edges == e].sum()) for e in range(1, 11)) / 400
    assert found.ece.value == pytest.approx(by_hand)
    assert (found.n, found.n_weeks, sum(one.n for one in found.bins)) == (400, 40, 400)
    assert found.brier.low < found.brier.value < found.brier.high


def weeks_of(changes, start=1):
    return [
        Week("A", f"2024-{number:02}-01", tuple(changes[: number - start]), change)
        for number, change in enumerate(changes, start=start)
    ]


def test_baselines_by_hand():
    rows = weeks_of([0.01, -0.02, -0.03, 0.04, 0.05])
    found = baseline_forecasts(rows[:3], rows[3:])
    assert set(found) == {"last_sign", "zero_return", "majority_sign"}  # no training week has three past ones
    assert [(one.direction, one.magnitude) for one in found["majority_sign"]] == [(-1, pytest.approx(-2.0))] * 2
    assert [(one.direction, one.magnitude) for one in found["last_sign"]] == [(-1, -3.0), (1, 4.0)]
    assert [(one.direction, one.magnitude) for one in found["zero_return"]] == [(0, 0.0)] * 2
    assert score_forecasts(found["majority_sign"]).metrics["direction_accuracy"].value == 0
    assert baseline_forecasts([], rows[:1])["last_sign"][0].direction is None


def test_the_linear_model_is_least_squares_on_training_weeks_only():
    generator = np.random.default_rng(2)
    rows = weeks_of(generator.normal(0, 0.02, 60).tolist(), start=10)
    train, test = rows[:40], rows[40:]
    known = [one for one in train if len(one.past) >= 3]
    design = np.array([[1, *one.past[-3:]] for one in known])
    weights, *_ = np.linalg.lstsq(design, np.array([one.change for one in known]), rcond=None)
    expected = [100 * float(np.dot([1, *one.past[-3:]], weights)) for one in test]
    assert [one.magnitude for one in linear(train, test)] == pytest.approx(expected)
    altered = [Week(one.symbol, one.week, one.past, 9.0) for one in test]
    assert [one.magnitude for one in linear(train, altered)] == pytest.approx(expected)


def test_training_weeks_come_before_tested_ones():
    rows = weeks_of([0.01, 0.02, 0.03])
    with pytest.raises(DataError, match="know the future"):
        baseline_forecasts(rows[1:], rows[:2])
    assert majority_sign(rows[:1], rows[1:])[0].direction == 1


ANSWER = (
    "[Positive Developments]:\n1. sales are rising\n\n[Potential Concerns]:\n1. high debt\n\n"
    "[Prediction & Analysis]:\nPrediction: {}\nAnalysis: the price moves"
)


def test_rouge_of_sections():
    """Stemmed "rising" and "rises" agree: three of four tokens on each side; the pairs "1 sales" alone."""
    reference = parse_robust(ANSWER.format("Up by 1-2%"))
    other = parse_robust(ANSWER.format("Up by 1-2%").replace("sales are rising", "sales now rises"))
    found = section_rouge(other, reference)
    assert found["positives_rouge1"] == found["positives_rougeL"] == pytest.approx(3 / 4)
    assert found["positives_rouge2"] == pytest.approx(1 / 3)
    assert found["concerns_rouge2"] == found["analysis_rougeL"] == 1
    assert section_rouge(parse_robust("Up by 1-2%"), reference)["concerns_rouge1"] == 0


def test_fingpts_figures_drop_what_cannot_be_read():
    said = [ANSWER.format("Up by 1-2%"), ANSWER.format("Down by 2-3%"), "Up by 1-2%", ANSWER.format("Hard to say")]
    true = [ANSWER.format("Up by 2-3%"), ANSWER.format("Up by 0-1%"), ANSWER.format("Up by 1-2%"), said[0]]
    found = fingpt_scores(said, true)
    assert found["valid_count"] == 3
    assert found["bin_acc"] == pytest.approx(1 / 3)
    assert found["mse"] == pytest.approx((1**2 + 3**2 + 1.5**2) / 3)
    assert found["analysis_rouge1"] == 1
    assert fingpt_scores(["nothing"], ["nothing"]) == {}


def test_means_over_weeks():
    values, weeks = [0.0, 1.0, 0.5, 0.5], ["a", "a", "b", "b"]
    assert mean_over_weeks(values, weeks).value == 0.5
    assert math.isnan(mean_over_weeks([], []).value)
