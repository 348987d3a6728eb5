import gzip
import json
import time

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.public_data import public_data

from fintune.metrics.numbers import Quantity, exact_match, numbers_agree, parse_answer, same_number, scales_in


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.468", Quantity(0.468)),
        ("$ 1,234.5 million", Quantity(1234.5, scale=1e6)),
        ("US$5bn", Quantity(5, scale=1e9)),
        ("(123)", Quantity(-123)),
        ("($ 5.2 million)", Quantity(-5.2, scale=1e6)),
        ("-$5", Quantity(-5)),
        ("$-5", Quantity(-5)),
        ("\u22125.2", Quantity(-5.2)),
        ("-12.3%", Quantity(-12.3, percent=True)),
        ("46.8 %", Quantity(46.8, percent=True)),
        ("46.8 percent", Quantity(46.8, percent=True)),
        ("\\boxed{46.8\\%}", Quantity(46.8, percent=True)),
        ("12.5x", Quantity(12.5)),
        ("1.5e-3", Quantity(0.0015)),
        ("The net change was 94.", Quantity(94)),
        ("94, that is 94.0", Quantity(94)),
        ("0.468 (46.8%)", Quantity(0.468)),
        ("-32 ( 32 )", Quantity(-32)),
        ("The answer is 0.468", Quantity(0.468)),
        ("First 31, then 46. The answer to the question for 2019 is 94.", Quantity(94)),
        ("Final Answer:\n\n**46.8%** (was 31)", Quantity(46.8, percent=True)),
        ("answer: 94. (94 = 5829 - 5735)", Quantity(94)),
        ("The answer is 5829 - 5735 = 94", Quantity(94)),
        ("5829 - 5735 = 94", Quantity(94)),
        ("Yes, because 5 > 3", "yes"),
        ("The answer is no.", "no"),
        ("NO", "no"),
        ("No. of shares: 5", Quantity(5)),
        ("No. 2019 was lower.", "no"),
        ("Sales did not fall, growth is 5", Quantity(5)),
        ("The answer to question 3, whose answer was no, is: 5", Quantity(5)),
        ("answer: 5, not 6", Quantity(5)),
    ],
)
def test_the_answer_is_found(text, expected):
    assert parse_answer(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        " \n",
        "N/A",
        "not available",
        "I cannot tell.",
        "5 or 6. The answer is N/A",
        "from 31 to 46",
        "2014-2015",
        "5829 - 5735",
        "The answer is 5829 - 5735",
        "1.234,5",
        "12,34",
        "1,234 or 1.234,5",
        "the 10-K of Q3 2013a",
        "1e400",
        "9" * 5000,
        "yes or no",
        "The answer is not 5 but 6",
        "The answer is not 5.",
        "I do not think the answer is 5",
        "It isn't 5.",
        "The answer cannot be determined: 5 or 6",
        "The answer cannot be given. 5",
        "The answer is unknown. 5",
        "The answer is 5 or 6",
        "The answer is between 5 and 6",
        "x = 5 + ",
        "x = 5 to 6",
        "5" + " " * 20_000 + ".",
    ],
)
def test_an_answer_that_commits_itself_to_nothing_is_missing(text):
    assert parse_answer(text) is None


def test_a_number_marked_as_the_answer_goes_before_yes():
    assert parse_answer("yes, and the answer is 5") == Quantity(5)


@pytest.mark.parametrize("text", ["46.8%", "0.468", "46.8", "46.81 %", "0.47"])
def test_a_ratio_can_be_said_in_per_cent(text):
    assert numbers_agree(text, 0.468)


@pytest.mark.parametrize(
    "text", ["0.468%", "4.68", "4.68%", "468", "4680%", "-46.8%", "0.00468", "0.46", "yes", "", None]
)
def test_no_other_factor_and_no_other_sign_agrees(text):
    assert not numbers_agree(text, 0.468)


def test_a_bare_number_is_read_in_per_cent_only_where_gold_has_that_unit():
    assert not numbers_agree("142.4", 1.424)
    assert numbers_agree("142.4", 1.424, gold_unit="ratio")
    assert numbers_agree("142.4%", 1.424)
    assert not numbers_agree("0.123", 12.3)
    assert numbers_agree("0.123", 12.3, gold_unit="percent")
    assert numbers_agree("0.123", "12.3%")
    assert not numbers_agree("0.123", 12.3, gold_unit="ratio")
    # Gold of 0.2 dollars is no share: 20 dollars are wrong.
    assert not numbers_agree("20", 0.2, gold_unit="number")


def test_a_sign_of_per_cent_means_hundredths_where_gold_is_a_share():
    assert numbers_agree("46.8%", 0.468) and not numbers_agree("0.468%", 0.468)
    assert numbers_agree("-14%", -0.14) and not numbers_agree("-0.14%", -0.14)
    assert not numbers_agree("0.468%", 0.468, gold_unit="number") and not numbers_agree("1.4%", 1.4, gold_unit="ratio")
    # Gold of 94.0 may be a share that was multiplied by 100.
    assert numbers_agree("94%", 94.0) and numbers_agree("9400%", 94.0)
    assert numbers_agree("94%", "94%") and not numbers_agree("9400%", "94%")


def test_a_scale_word_may_be_dropped_only_where_the_page_has_it():
    assert numbers_agree("$94 million", 94e6)
    assert not numbers_agree("$94 million", 94.0)
    assert numbers_agree("$94 million", 94.0, stated_scales=scales_in("( in millions )"))
    assert not numbers_agree("$94 million", 94.0, stated_scales=scales_in("in thousands, Billions"))
    for scales in ((), (1e6,)):
        assert not numbers_agree("$94 million", 94e3, stated_scales=scales)
        assert not numbers_agree("$94 million", 0.94, stated_scales=scales)
    assert not numbers_agree("12.3 million", "12.3%", stated_scales=(1e3,))


def test_scales_are_found_as_words():
    assert scales_in("$ 5 million, in thousands, a Billion") == {1e3, 1e6, 1e9}
    assert scales_in("a millionaire of 1000") == frozenset()


def test_the_same_number_takes_units_at_their_word():
    assert same_number("46.8%", Quantity(0.468)) and same_number("94 million", Quantity(94e6))
    assert not same_number("46.8", Quantity(0.468)) and not same_number("94 million", Quantity(94))
    assert not same_number("94%", Quantity(94)) and same_number("0.123", Quantity(12.3, percent=True))


def test_yes_and_no_agree_with_themselves():
    assert numbers_agree("Yes.", "yes")
    assert not numbers_agree("no", "yes")
    assert not numbers_agree("5", "yes")
    assert not numbers_agree("yes", 1.0)


def test_the_tolerance_is_relative_to_gold():
    assert numbers_agree("1010", 1000.0)
    assert not numbers_agree("1011", 1000.0)
    assert not numbers_agree("2018", 2019.0, relative_tolerance=0)
    assert numbers_agree("2019", 2019.0, relative_tolerance=0)
    assert numbers_agree("0", 0.0)
    assert not numbers_agree("0.01", 0.0)


def test_gold_that_is_no_number_agrees_with_nothing():
    assert not numbers_agree("nan", float("nan"))
    assert not numbers_agree("5", float("inf"))
    assert not numbers_agree("", "")
    assert not numbers_agree("N/A", "N/A")


def test_exact_match_is_to_the_letter():
    assert exact_match(" 494.0\n", "494.0")
    assert not exact_match("494", "494.0")
    assert not exact_match("494.0", " 494.0")


finite = st.floats(-1e12, 1e12).map(lambda value: round(value, 5))


@given(finite)
def test_gold_as_python_writes_it_agrees(value):
    assert numbers_agree(str(value), value)
    assert numbers_agree(f"The answer is {value:.5f}.", value)
    assert numbers_agree(f"{value * 100:.5f}%", value)


@given(finite)
def test_grouped_digits_mean_the_same(value):
    assert parse_answer(f"$ {value:,.2f}") == parse_answer(f"{value:.2f}")


@given(st.floats(1, 1e6), st.floats(0.001, 1000) | st.floats(0.98, 1.02) | st.floats(98, 102))
def test_only_a_factor_of_one_or_a_hundred_agrees(gold, factor):
    distance = min(abs(factor - 1), abs(factor / 100 - 1))
    assume(abs(distance - 0.01) > 1e-9)
    assert numbers_agree(f"{gold * factor:.15f}", gold, gold_unit="ratio") == (distance < 0.01)


@given(finite, st.sampled_from(["not {}", "isn't {}", "never {}", "neither {}", "not really {} but 7"]))
def test_a_denied_number_is_never_the_answer(value, frame):
    for said in (frame, f"The answer is {frame}", f"It is {frame}."):
        assert parse_answer(said.format(f"{value:.2f}")) is None


@given(finite, st.sampled_from(["%", " million", ""]), st.sampled_from([(), (1e6,)]))
def test_at_most_two_readings(value, unit, scales):
    said = f"{value:.5f}{unit}"
    factors = (1, 0.01) if unit == "%" else (1, 1e6) if unit else (1, 0.01, 100)
    for factor in (0.001, 0.1, 10, 1e3, 1e4, 1e5, 1e8, -1):
        gold = value * factor
        if abs(gold) > 1e-3 and all(abs(value * f - gold) > 0.02 * abs(gold) for f in factors):
            assert not numbers_agree(said, gold, stated_scales=scales)


@pytest.mark.parametrize("unit", ["answer ", "=", "5 ", "not 5 ", "* ", "( ", "answer is 5 ", "- ", "1,", "is ", ":"])
def test_long_answers_take_no_time(unit):
    start = time.process_time()  # other work on the machine does not count
    for length in (19_000, 100_000):
        parse_answer("a" + unit * (length // len(unit)))
        parse_answer(unit * (length // len(unit)) + "a")
    assert time.process_time() - start < 3


@given(st.text(max_size=200))
def test_any_text_is_read(text):
    found = parse_answer(text)
    assert found is None or found in ("yes", "no") or isinstance(found, Quantity)


@pytest.mark.parametrize("split", ["test", "dev", "train_partial"])
def test_every_gold_answer_of_finqa_agrees_with_itself(split):
    with gzip.open(public_data(f"finqa/{split}.jsonl.gz"), "rt") as lines:
        gold = [row["exe_ans"] for row in map(json.loads, lines) if row["exe_ans"] not in ("", None)]
    assert len(gold) > 800
    assert [value for value in gold if not numbers_agree(str(value), value)] == []
