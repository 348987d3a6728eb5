"""Overlap between lists of examples: by text, by document and by week; the shipped sample has no equal texts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fintune.schema.errors import InternalError
from fintune.schema.example import Example, Message
from fintune.schema.results import OverlapReport
from fintune.sources import count_overlap, group_key, near, normalise_text, read_sample, remove_overlap
from fintune.sources.overlap import HeldOut, overlap_pairs


def example(text, number=0):
    return Example(str(number), "t", (Message.around("user", "Q: ", text, "\nA:"),), "positive")


def test_links_case_punctuation_and_whitespace_do_not_matter():
    assert normalise_text("$AAPL up 5%! https://t.co/aB1 ") == normalise_text("aapl  UP, 5 www.x.com/y") == "aaplup5"


def test_twins_are_dropped_from_train_and_counted():
    train = [example("Profit up."), example("PROFIT up! https://t.co/x"), example("Loss"), example("https://t.co/1")]
    heldout = [example("Profit up."), example("profit UP"), example("other"), example("https://t.co/2")]
    kept, report = remove_overlap(train, heldout)
    assert [e.document for e in kept] == ["Loss", "https://t.co/1"]
    assert (report.exact, report.normalised, report.removed_from_train) == (1, 2, 2)
    assert (report.n_train, report.n_test) == (4, 4)
    counted = count_overlap(train, heldout)
    assert (counted.exact, counted.normalised, counted.removed_from_train) == (1, 2, 0)


@given(st.lists(st.text(max_size=6)), st.lists(st.text(max_size=6)))
def test_after_removal_nothing_overlaps_and_nothing_else_is_lost(train_texts, heldout_texts):
    train, heldout = [example(t) for t in train_texts], [example(t) for t in heldout_texts]
    kept, report = remove_overlap(train, heldout)
    assert remove_overlap(kept, heldout)[1].normalised == 0
    assert len(kept) + report.removed_from_train == len(train)
    assert report.exact <= report.normalised <= len(heldout)


def test_near_duplicates_are_dropped_and_counted_only_with_a_threshold():
    train = [
        example("Operating profit of Raisio rose to EUR 13.1 mn"),
        example("Profit up."),
        example("Nokia cuts a thousand jobs"),
    ]
    heldout = [example("Operating profit of Raisio rose to EUR 13.4 mn"), example("PROFIT up!"), example("Oil falls")]
    kept, report = remove_overlap(train, heldout, threshold=0.7)
    assert kept == (train[2],)
    assert (report.exact, report.normalised, report.near, report.near_threshold) == (0, 1, 2, 0.7)
    kept, report = remove_overlap(train, heldout)
    assert kept == (train[0], train[2])
    assert (report.normalised, report.near, report.near_threshold) == (1, 0, None)
    counted = count_overlap(train, heldout, threshold=0.7)
    assert (counted.near, counted.removed_from_train) == (2, 0)


@given(
    st.lists(st.text("aAb .", max_size=12)),
    st.lists(st.text("aAb .", max_size=12)),
    st.sampled_from([0.3, 0.6, 1.0]),
)
def test_each_kind_of_overlap_includes_the_one_before(train_texts, heldout_texts, threshold):
    train, heldout = [example(t) for t in train_texts], [example(t) for t in heldout_texts]
    kept, report = remove_overlap(train, heldout, threshold=threshold)
    assert report.exact <= report.normalised <= report.near <= len(heldout)
    assert all(example in remove_overlap(train, heldout)[0] for example in kept)
    again = remove_overlap(kept, heldout, threshold=threshold)[1]
    assert (again.near, again.removed_from_train) == (0, 0)


def test_reports_written_before_near_duplicates_were_sought_still_load():
    old = {"task": "t", "n_train": 9, "n_test": 3, "exact": 1, "normalised": 2, "removed_from_train": 2}
    report = OverlapReport.model_validate(old)
    assert (report.near, report.near_threshold) == (0, None)


@given(st.text())
def test_group_keys_agree_with_normalisation(text):
    assert group_key(text) == group_key(f" {text.strip()} ")
    assert normalise_text(normalise_text(text)) == normalise_text(normalise_text(normalise_text(text)))


def test_the_shipped_sample_is_balanced_short_and_disjoint():
    tables = read_sample("tfns")
    assert {split: len(table) for split, table in tables.items()} == {"train": 900, "validation": 150, "test": 300}
    keys = []
    for table in tables.values():
        labels = [row["label"] for row in table.rows]
        assert len({labels.count(label) for label in ("0", "1", "2")}) == 1
        assert all(15 <= len(row["text"]) <= 160 for row in table.rows)
        keys += [normalise_text(row["text"]) for row in table.rows]
    assert "" not in keys and len(set(keys)) == len(keys) == 1350


def row(text, number=0, task="t", **metadata):
    return Example(str(number), task, (Message.around("user", "Q: ", text, "\nA:"),), "positive", metadata=metadata)


def test_every_pair_of_tasks_is_counted_on_its_own():
    train = {
        "a": [row("Operating profit of Raisio rose to EUR 13.1 mn"), row("Nokia cuts jobs"), row("Nokia cuts jobs")],
        "b": [row("PROFIT up!"), row("Oil falls sharply")],
    }
    tests = {
        "a": [row("Operating profit of Raisio rose to EUR 13.4 mn"), row("Profit up.")],
        "c": [row("Nokia cuts jobs"), row("https://t.co/1"), row("Nokia cuts jobs")],
    }
    heldout = HeldOut([*tests["a"], *tests["c"], row("Oil falls, sharply")], threshold=0.6)
    found = overlap_pairs(train, tests, heldout)
    counted = {(o.trained_on, o.task): (o.exact, o.normalised, o.near, o.removed_from_train) for o in found}
    # A held-out row that is not tested, such as a validation row, counts for no pair.
    assert counted == {
        ("a", "a"): (0, 0, 1, 1),
        ("b", "a"): (0, 1, 1, 1),
        ("a", "c"): (2, 2, 2, 2),
        ("b", "c"): (0,) * 4,
    }
    assert {(o.trained_on, o.n_train, o.n_test) for o in found if o.task == "c"} == {("a", 3, 3), ("b", 2, 3)}


ROWS = st.lists(
    st.builds(
        row,
        st.text("aAb .", max_size=12),
        task=st.sampled_from(["p", "q"]),
        document_id=st.sampled_from(["", "X/1", "X/2", "7"]),
        question=st.sampled_from(["", "How much?"]),
        ticker=st.sampled_from(["", "AAPL", "aapl", "T"]),
        date=st.sampled_from(["2020-01-05", "2020-01-06", "2020-01-12T09:30", "5 May", None]),
    ),
    max_size=6,
)


@given(ROWS, ROWS, ROWS, st.sampled_from([None, 0.6]), st.booleans())
def test_pairs_over_one_index_are_what_each_pair_is_alone(first, second, tested, threshold, same_document):
    train, tests = {"p": first, "q": second}, {"p": tested[::2], "q": tested[1::2]}
    pairs = overlap_pairs(train, tests, HeldOut(tested, threshold=threshold), same_document=same_document)
    for report in pairs:
        rows, held = train[report.trained_on], tests[report.task]
        kept, alone = remove_overlap(rows, held, threshold=threshold, same_document=same_document)
        assert report == alone.model_copy(update={"task": report.task, "trained_on": report.trained_on})
        assert report.removed_from_train == len(rows) - len(kept)


def test_questions_about_a_held_out_page_are_dropped_and_rows_of_a_filing_are_only_counted():
    page = {"document_id": "MRO/2007/page_134.pdf"}
    train = [row("one", **page, question="How much?"), row("two", document_id="MRO/2007/page_1.pdf", question="Why?")]
    heldout = [row("three", task="u", **page, question="How many?"), row("four", task="u", **page, question="Who?")]
    kept, report = remove_overlap(train, heldout, threshold=0.6)
    assert kept == (train[1],)
    assert (report.near, report.same_document, report.removed_from_train) == (0, 2, 1)
    kept, report = remove_overlap(train, heldout, same_document=False)
    assert kept == tuple(train) and (report.same_document, report.removed_from_train) == (2, 0)
    sentence, tagged = row("one", document_id="FIN5-3"), [row("two", document_id="FIN5-3")]
    kept, report = remove_overlap([sentence], tagged)
    assert kept == (sentence,) and report.same_document == 1


def test_a_bare_number_names_a_document_of_its_own_task_only():
    train = [row("one", task="a", document_id="12")]
    assert remove_overlap(train, [row("two", task="a", document_id=12)])[1].same_document == 1
    assert remove_overlap(train, [row("two", task="b", document_id=12)])[1].same_document == 0


def test_ticker_weeks_are_iso_weeks_and_none_is_dropped_for_them():
    train = [row("one", ticker="AAPL", date="2019-12-30"), row("two", ticker="T", date="2020-01-06")]
    heldout = [
        row("three", ticker="aapl", date="2020-01-05"),  # the Sunday of the week that began in 2019
        row("four", ticker="AAPL", date="2020-01-06"),
        row("five", ticker="T", date="2020-01-12T16:00:00"),
        row("six", ticker="T"),
        row("seven", date="2020-01-06"),
    ]
    kept, report = remove_overlap(train, heldout, threshold=0.6)
    assert report.same_ticker_week == 2 and kept == tuple(train) and report.same_document is None


def test_what_rows_do_not_say_is_not_counted_as_none_shared():
    dated = [row("one", ticker="T", date="2020-01-06")]
    for train, heldout in ((dated, [row("two")]), ([row("two")], dated), ([], dated), (dated, [])):
        assert remove_overlap(train, heldout)[1].same_ticker_week is None


def test_an_index_that_lacks_a_row_is_our_own_mistake():
    heldout = HeldOut([row("Profit up.")], threshold=0.6)
    with pytest.raises(InternalError, match="lacks them"):
        heldout.among([row("Nokia cuts jobs")])


def test_a_text_is_looked_up_once_and_held_out_texts_are_hashed_once(monkeypatch):
    """What keeps many pairs of tasks as quick as one pair of all their rows."""
    hashed = []
    signature = near.signature
    monkeypatch.setattr(near, "signature", lambda key, count: hashed.append(key) or signature(key, count))
    rows = [row(f"share {number} of {chr(97 + number)} rose") for number in range(9)]
    train, tests = {"a": rows[:3], "b": rows[2:5]}, {"c": rows[4:7], "d": rows[6:]}
    heldout = HeldOut([*rows[4:], rows[8]], threshold=0.6)
    remove_overlap(train["a"], heldout)
    overlap_pairs(train, tests, heldout)
    assert len(hashed) == 5 + 5  # the held-out texts, then the trained ones
