"""Written answers are measured as texts, read strictly too, and set beside references."""

from datetime import date, timedelta

import pytest

from fintune.forecasting.assessment import assess
from fintune.forecasting.signals import Signal
from fintune.metrics.forecast_answers import parse_robust
from fintune.metrics.forecast_quality import SHARES
from fintune.reporting.backtest import assessment_tables
from tests.forecasting.prices import random_prices

FORM = (
    "[Positive Developments]:\n1. Sales rose by 12%.\n\n[Potential Concerns]:\n1. Debt of 5 billion.\n\n"
    "[Prediction & Analysis]:\nPrediction: {}\nAnalysis: Sales matter more."
)
PROMPT = "[Headline]: Sales rise 12% at the company\n"


def written(output, reference="", weeks=4):
    answer = parse_robust(output)
    made = [date(2024, 1, 7) + timedelta(weeks=week) for week in range(weeks)]
    return [
        Signal("A", day, day + timedelta(days=7), answer.direction, answer.magnitude, None, output, PROMPT, reference)
        for day in made
    ]


def test_measures_strict_reading_and_references():
    said = FORM.format("A decline of up to 3%")  # FinGPT reads "up" and 3.5, we a fall of 1.5
    found = assess({"x": written(said, FORM.format("Down by 1-2%"))}, random_prices(60)).written["x"]
    assert found.n == 4
    assert found.measures["figures_invented"].value == 1  # 5 billion
    assert found.measures["figures_used"].value == 1  # 12%
    assert found.measures["analysis_rougeL"].value == 1
    assert all(found.measures[name].high in (None, 1) or found.measures[name].high < 1 for name in SHARES)
    assert found.fingpt["valid_count"] == 4 and found.fingpt["bin_acc"] == 0
    assert found.fingpt["mse"] == pytest.approx((3.5 + 1.5) ** 2)


def test_strict_and_robust_disagree_where_they_must():
    prices = random_prices(60)
    found = assess({"x": written(FORM.format("A decline of up to 3%"))}, prices)
    ours, theirs = found.scores["x"].metrics, found.written["x"].strict.metrics
    assert ours["direction_accuracy"].value == pytest.approx(1 - theirs["direction_accuracy"].value)
    other = assess({"x": written("**Forecast:** down by 1-2%\n\n**Rationale:** Costs.")}, prices)
    assert other.scores["x"].missing == 0 and other.written["x"].strict.missing == 4
    assert other.written["x"].fingpt == {}


def test_tables():
    found = assess({"tuned": written(FORM.format("Up by 1-2%"), FORM.format("Up by 1-2%"))}, random_prices(60))
    tables = {table.name: table for table in assessment_tables(found)}
    assert {"forecast-texts", "forecasts-strict", "forecasts-fingpt"} <= set(tables)
    assert ("ROUGE-L of analysis", "1.000") in tables["forecast-texts"].rows
    assert all(len(row) == len(table.columns) for table in tables.values() for row in table.rows)
    ranked = assess({"x": [Signal("A", date(2024, 1, 7), date(2024, 1, 14), 1, 1.0)]}, random_prices(60))
    assert ranked.written == {}
    assert not [table for table in assessment_tables(ranked) if "forecast-texts" in table.name]
