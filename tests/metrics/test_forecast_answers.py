"""Hand-written answers, each with what FinGPT's rules and ours must read in it; worked out from the rules."""

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.public_data import public_data

from fintune.metrics.forecast_answers import MAX_CHARACTERS, parse_robust, parse_strict
from fintune.metrics.forecast_movement import stated_movement
from fintune.metrics.forecast_sections import sections_of
from fintune.metrics.return_bins import LABELS, middle_of, phrase_of, sign_of

PROS, CONS = "1. Sales rose.\n2. A new plant.", "1. A lawsuit."
MISSING = (None, None)


def answer(prediction, analysis="The news is mixed.", *, joint="[Prediction & Analysis]:"):
    return (
        f"[Positive Developments]:\n{PROS}\n\n[Potential Concerns]:\n{CONS}\n\n"
        f"{joint}\nPrediction: {prediction}\nAnalysis: {analysis}"
    )


MARKDOWN = (
    "## Positive Developments\n- Sales rose.\n\n## Potential Concerns\n- A lawsuit.\n\n"
    "## Prediction & Analysis\n**Prediction:** Up by 2-3%\n\n**Analysis:** Good news prevails."
)
BOLD = (
    "**Key Strengths:**\n* Sales rose.\n\n**Risks:**\n* A lawsuit.\n\n**Forecast:** down by 1-2%\n\n"
    "**Rationale:** Costs."
)
NUMBERED = (
    "1. Positive Developments:\n- Sales rose.\n2. Potential Concerns:\n- A lawsuit.\n3. Prediction: Up by 1-2%\n"
    "Analysis: Fine."
)
NO_LINE = (
    f"[Positive Developments]:\n{PROS}\n[Potential Concerns]:\n{CONS}\n[Prediction and Analysis]:\n\n"
    "Sales declined in the past, which is a risk. We expect the stock price to see an increase of around 3-4%."
)
REORDERED = (
    "[Potential Concerns]:\n1. A.\n[Positive Developments]:\n1. B.\n[Prediction & Analysis]:\n"
    "Prediction: Up by 1-2%\nAnalysis: C."
)
LOWER_CASE = answer("Up by 1-2%").replace("[Positive Developments]", "[positive developments]")
NO_COLON = answer("Up by 1-2%", joint="[Prediction & Analysis]")
PREAMBLE = "Here is my answer.\n\n" + answer("Down by 3-4%")

# answer, FinGPT's direction and magnitude, ours; the reason where ours is missing
ANSWERS = {
    "the format": (answer("Up by 1-2%"), (1, 1.5), (1, 1.5), ""),
    "a fall": (answer("Down by 3-4%"), (-1, -3.5), (-1, -3.5), ""),
    "the open bin": (answer("Up by more than 5%"), (1, 5.5), (1, 5.5), ""),
    "the open bin below": (answer("Down by more than 5%"), (-1, -5.5), (-1, -5.5), ""),
    "first bin": (answer("down by 0-1%"), (-1, -0.5), (-1, -0.5), ""),
    "'and' for '&'": (answer("Up by 1-2%", joint="[Prediction and Analysis]:"), (1, 1.5), (1, 1.5), ""),
    "'up' in a word": (answer("Down by 1-2%, for want of support"), (1, 1.5), (-1, -1.5), ""),
    "'up to' a fall": (answer("A decline of up to 3%"), (1, 3.5), (-1, -1.5), ""),
    "'increase' of something else": (answer("Down by 1-2% due to an increase in costs"), (1, 1.5), (-1, -1.5), ""),
    "a single figure": (answer("A decline of around 2%"), (-1, -2.5), (-1, -2.0), ""),
    "two digits": (answer("Down by 12%"), (-1, -2.5), (-1, -12.0), ""),
    "ten per cent": (answer("Up by 10%"), (1, 0.5), (1, 10.0), ""),
    "two-digit range": (answer("Up by 10-12%"), (1, 2.5), (1, 11.0), ""),
    "a decimal": (answer("Up by 2.5%"), (1, 5.5), (1, 2.5), ""),
    "a range of decimals": (answer("Up by 0.5-1.5%"), (1, 5.5), (1, 1.0), ""),
    "a wide range": (answer("Up by 2-4%"), (1, 2.5), (1, 3.0), ""),
    "an en dash": (answer("Up by 2–3%"), (1, 3.5), (1, 2.5), ""),
    "'to'": (answer("Up by 2% to 3%"), (1, 2.5), (1, 2.5), ""),
    "'between'": (answer("A rise of between 1% and 2%"), (0, 0.0), (1, 1.5), ""),
    "spaces": (answer("Up by 2 - 3 %"), (1, 0.0), (1, 2.5), ""),
    "percent in words": (answer("Down by 2-3 percent"), (-1, 0.0), (-1, -2.5), ""),
    "figures in words": (answer("Down by two to three percent"), (-1, 0.0), (-1, -2.5), ""),
    "other words": (answer("The stock should fall by 1-2%"), (0, 0.0), (-1, -1.5), ""),
    "drop": (answer("A drop of 2-3%"), (0, 0.0), (-1, -2.5), ""),
    "signs": (answer("-2%"), (0, 0.0), (-1, -2.0), ""),
    "no figure": (answer("Slightly up"), (1, 0.0), (1, None), ""),
    "bullish": (answer("Bullish"), (0, 0.0), (1, None), ""),
    "no change": (answer("Flat"), (0, 0.0), (0, 0.0), ""),
    "a bin's name": (answer("D2"), (0, 0.0), (-1, -1.5), ""),
    "denied": (answer("The stock will not go up"), (1, 0.0), MISSING, "only a denied movement"),
    "denied and stated": (answer("Unlikely to go up; rather down by 1-2%"), (1, 1.5), (-1, -1.5), ""),
    "both ways": (answer("Up or down by 1-2%"), (1, 1.5), MISSING, "contradictory directions"),
    "both ways, each with a figure": (
        answer("Up by 1-2% or down by 2-3%"),
        (1, 1.5),
        MISSING,
        "contradictory directions",
    ),
    "round zero": (answer("Between -1% and +1%"), (0, 0.0), MISSING, "contradictory directions"),
    "neither": (answer("Hard to say"), (0, 0.0), MISSING, "no direction"),
    "the past": (answer("A rebound of 1-2% after last week's decline of 4-5%"), (-1, -1.5), (1, 1.5), ""),
    "a concession": (answer("Despite the decline in sales, up by 1-2%"), (1, 1.5), (1, 1.5), ""),
    "a probability": (answer("Up by 1-2% (70% confidence)"), (1, 1.5), (1, 1.5), ""),
    "a probability first": (answer("With 80% confidence, an increase of 3-4%"), (1, 3.5), (1, 3.5), ""),
    "a probability alone": (answer("A 65% chance of going up"), (1, 5.5), (1, None), ""),
    "an analysis against it": (
        answer("Up by 1-2%", "We expect the stock price to decline by 2-3% next week."),
        (1, 1.5),
        MISSING,
        "the analysis forecasts the opposite of the prediction",
    ),
    "an analysis of another size": (answer("Up by 1-2%", "The stock could rise by 2-3%."), (1, 1.5), (1, 1.5), ""),
    "markdown": (MARKDOWN, MISSING, (1, 2.5), ""),
    "bold synonyms": (BOLD, MISSING, (-1, -1.5), ""),
    "numbered headings": (NUMBERED, MISSING, (1, 1.5), ""),
    "no prediction line": (NO_LINE, MISSING, (1, 3.5), ""),
    "another order": (REORDERED, MISSING, (1, 1.5), ""),
    "lower-case heading": (LOWER_CASE, MISSING, (1, 1.5), ""),
    "a heading without colon": (NO_COLON, MISSING, (1, 1.5), ""),
    "a preamble": (PREAMBLE, MISSING, (-1, -3.5), ""),
    "free prose": ("I expect AAPL shares to drop 2% next week.", MISSING, (-1, -2.0), ""),
    "bare": ("Up by 1-2%", MISSING, (1, 1.5), ""),
    "prose that describes": ("Apple's sales increased by 3% in the quarter.", MISSING, MISSING, "no direction"),
    "empty": ("", MISSING, MISSING, "empty"),
    "runaway": ("up " * MAX_CHARACTERS, MISSING, MISSING, "longer than 20,000 characters"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_fingpts_rules(name):
    text, expected, _, _ = ANSWERS[name]
    read = parse_strict(text)
    assert (read.direction, read.magnitude) == expected
    assert bool(read.missing) == (expected == MISSING)


@pytest.mark.parametrize("name", ANSWERS)
def test_our_rules(name):
    text, _, expected, reason = ANSWERS[name]
    read = parse_robust(text)
    assert (read.direction, read.magnitude, read.missing) == (*expected, reason)


def test_where_strict_divides():
    # The last of two headings divides, and white space before a heading stays with the section above it.
    twice = answer("Up by 1-2%").replace("1. A lawsuit.", "1. A lawsuit.\n[Potential Concerns]:\n2. Costs.")
    read = parse_strict(twice)
    assert read.concerns == "2. Costs.\n\n"
    assert read.positives == f"{PROS}\n\n[Potential Concerns]:\n{CONS}\n"
    assert parse_strict(answer("Up by 1-2%")).analysis == "The news is mixed."
    assert parse_strict("no sections").missing == "sections"
    without = answer("x").replace("Prediction: x\n", "")
    assert parse_strict(without).missing == "prediction and analysis"


@pytest.mark.parametrize("text", [answer("Up by 1-2%"), NUMBERED, REORDERED, NO_COLON, PREAMBLE, MARKDOWN, BOLD])
def test_sections_in_every_markup(text):
    read = parse_robust(text)
    assert read.positives and read.concerns and read.analysis
    assert "lawsuit" not in read.positives.lower() and "Prediction" not in read.concerns


def test_points_are_no_headings():
    text = "Positive Developments:\n1. Opportunities: India.\n2. Challenges: few.\nConcerns:\n1. Risks: many."
    assert sections_of(text) == {
        "positives": "1. Opportunities: India.\n2. Challenges: few.",
        "concerns": "1. Risks: many.",
    }


@pytest.mark.parametrize("label", LABELS)
def test_every_bins_phrase_is_read_as_that_bin(label):
    text = answer(phrase_of(label).capitalize())
    for read in (parse_strict(text), parse_robust(text)):
        assert read.bin == label and read.direction == sign_of(label)
        assert read.magnitude == pytest.approx(100 * middle_of(label))


@given(st.text(max_size=300))
def test_no_text_breaks_the_parsers(text):
    for read in (parse_strict(text), parse_robust(text), parse_robust(answer(text))):
        assert (read.direction is None) == bool(read.missing)
        assert read.magnitude is None or read.direction is not None


@given(
    st.sampled_from(["increase", "rise", "gain", "uptick"]),
    st.sampled_from(["decline", "drop", "fall", "decrease"]),
    st.integers(0, 9),
    st.sampled_from(["a {} of about {}%", "I see a {} of {} percent", "{} of {}%, as news is scarce"]),
)
def test_opposite_words_mirror(up, down, size, form):
    rise, fall = (stated_movement(form.format(word, size)) for word in (up, down))
    assert (rise.direction, fall.direction) == (1, -1)
    assert rise.magnitude == -fall.magnitude == size


def test_the_published_answers():
    """All labels of FinGPT's test rows are read; the three answers without a prediction line are missing strictly."""
    with gzip.open(public_data("forecaster_dow30/test.jsonl.gz"), "rt", encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    phrases = {phrase_of(label): label for label in LABELS}
    for row in rows:
        strict, robust = parse_strict(row["answer"]), parse_robust(row["answer"])
        if row["label"] is None:
            assert strict.missing == "prediction and analysis" and robust.bin is not None
        else:
            assert strict.bin == robust.bin == phrases[row["label"]]
        assert robust.positives and robust.concerns and robust.analysis
