"""Execution, depth and clarity of hand-written answers, counted by hand."""

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.public_data import public_data

from fintune.metrics.forecast_quality import points_of, quality
from fintune.metrics.numbers import MAX_CHARACTERS

PROMPT = (
    "From 2024-02-04 to 2024-02-11, AAPL's stock price increased from 185.61 to 188.85.\n"
    "[Headline]: Regulators in Spain fine Apple and Amazon 194 million euros over reseller rules\n"
    "grossMargin: 0.4587\npeTTM: 29.6728\n"
)
ANSWER = (
    "[Positive Developments]:\n1. The gross margin of 45.87% is high.\n2. Shoppers queue in Berlin.\n\n"
    "[Potential Concerns]:\n1. The fine by regulators in Spain of 194 million euros hurts resellers.\n"
    "2. A price-earnings ratio of 29.67 and a debt of 77.5 billion may weigh.\n\n"
    "[Prediction & Analysis]:\nPrediction: Down by 1-2%\nAnalysis: The fine could push AAPL down by 1-2%."
)


def test_figures_and_names_by_hand():
    found = quality(ANSWER, PROMPT)
    assert (found["sections"], found["format_valid"]) == (1, 1)
    # 45.87% (0.4587), 194 million, 29.67 (29.6728) are the prompt's; 77.5 billion is not; 1-2% is the forecast itself.
    assert (found["figures_said"], found["figures_used"], found["figures_invented"]) == (4, 3, 1)
    assert (found["names_used"], found["names_unknown"]) == (2, 1)  # Spain and AAPL; Berlin


def test_points_tied_to_the_prompt():
    found = quality(ANSWER, PROMPT)
    # The queue in Berlin rests on nothing in the prompt.
    assert (found["points"], found["points_tied"]) == (4, 3 / 4)


def test_clarity_by_hand():
    text = "Prediction: Up by 1-2%\nAnalysis: It may rise. It may rise. It may rise."
    found = quality(text, "")
    assert found["words"] == 2 + 9  # "Up by", then three times three words
    assert found["words_per_sentence"] == pytest.approx(11 / 4)
    assert found["hedges_per_100_words"] == pytest.approx(100 * 3 / 11)
    # Runs: up-by-it-may, by-it-may-rise, then it-may-rise-it, may-rise-it-may, rise-it-may-rise, twice it all but once.
    runs = ["up by it may", "by it may rise", *["it may rise it", "may rise it may", "rise it may rise"] * 2]
    assert found["repetition"] == pytest.approx(1 - len(set(runs)) / len(runs))


def test_the_same_point_counts_once():
    section = "1. Sales in Asia rose strongly this year.\n2. Sales in Asia rose strongly last year.\n3. New plant."
    assert len(points_of(section)) == 2
    assert points_of("Sales rose. A new plant opened.") == ["Sales rose.", "A new plant opened."]
    assert points_of("") == []


def test_a_long_prompts_figures_are_found():
    found = quality(ANSWER, "x " * MAX_CHARACTERS + "\n" + PROMPT)
    assert found["figures_invented"] == 1


def test_inventing_figures_costs():
    better = quality(ANSWER, PROMPT)
    worse = quality(ANSWER.replace("45.87%", "47.33%").replace("29.67", "31.5"), PROMPT)
    assert worse["figures_invented"] == better["figures_invented"] + 2
    assert worse["points_tied"] < better["points_tied"]


@given(st.text(max_size=300), st.text(max_size=300))
def test_any_text_has_finite_measures(text, prompt):
    found = quality(text, prompt)
    assert all(value == value and value >= 0 for value in found.values())
    assert found["figures_used"] + found["figures_invented"] == found["figures_said"]
    assert max(found["sections"], found["points_tied"], found["repetition"]) <= 1


def test_published_answers_invent_little():
    """The published answers were written from their prompts: on average under a tenth of a figure is not in them."""
    with gzip.open(public_data("forecaster_dow30/test.jsonl.gz"), "rt", encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream][:40]
    other = rows[1:] + rows[:1]
    own = [quality(row["answer"], row["prompt"]) for row in rows]
    swapped = [quality(row["answer"], another["prompt"]) for row, another in zip(rows, other, strict=True)]
    assert sum(one["figures_invented"] for one in own) < 0.1 * len(rows)
    assert sum(one["figures_invented"] for one in swapped) > 2 * sum(one["figures_invented"] for one in own)
