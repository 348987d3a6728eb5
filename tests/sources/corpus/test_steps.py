"""Single steps of a corpus: letters, HTML, line ends, boilerplate, private data, tickers, days, splits."""

from datetime import date, datetime, timedelta, timezone

import pytest

from fintune.schema.errors import DataError, RecipeError
from fintune.sources.corpus.days import day_of
from fintune.sources.corpus.drafts import Draft, draft_of, find_roles
from fintune.sources.corpus.lines import LineCounter, line_key, without_lines
from fintune.sources.corpus.private import without_private
from fintune.sources.corpus.repair import repair, text_of_html
from fintune.sources.corpus.settings import Cleaning, CorpusSource, sources_of
from fintune.sources.corpus.steps import Tally, finish, split_of
from fintune.sources.corpus.tickers import tickers_in

WIRE = """Showers continued throughout the week in the
Bahia cocoa zone, alleviating the drought since early
January and improving prospects for the coming crop.
    The dry period means the temporao will be late
this year and that arrivals will be somewhat lower."""
FIGURES = "Shr 34 cts vs 1.19 dlrs in the quarter before\n    Net 807,000 vs 2,858,000 in the quarter\n    Revs 1.2 mln"


def test_html_becomes_its_words_without_menus():
    page = (
        "<html><body><nav>Home | Markets</nav><h1>Profit up</h1><p>Sales rose <b>8</b>%&nbsp;to &pound;2bn.</p>"
        "<script>x()</script><ul><li>one</li><li>two</li></ul>Line<br>break<footer>Copyright</footer></body></html>"
    )
    assert text_of_html(page).split("\n") == ["Profit up", "Sales rose 8% to £2bn.", "one", "two", "Line", "break"]


def test_cells_of_a_table_stand_apart():
    page = (
        "<p>In millions:</p><table><tr><th></th><th>2023</th><th>2022</th></tr><tr><td>Revenue</td><td>1,234</td>"
        "<td> 1,100 </td></tr><tr><td><p>Costs</p></td><td></td><td>900</td></tr></table><p>Rivals | agree |</p>"
    )
    assert text_of_html(page).split("\n") == ["In millions:", "2023 | 2022", "Revenue | 1,234 | 1,100", "Costs", "900",
                                              "Rivals | agree |"]  # fmt: skip


def test_a_page_in_a_form_and_the_header_of_an_article_stay():
    page = (
        "<body><form><header>Home</header><article><header><h1>Profit up</h1></header><p>Sales rose.</p><nav>More</nav>"
        "<footer><p>Shares fell.</p></footer></article><select><option>Country</option></select><button>Go</button>"
        "<textarea>Say</textarea><footer>Copyright</footer></form></body>"
    )
    assert text_of_html(page).split("\n") == ["Profit up", "Sales rose.", "Shares fell."]
    assert text_of_html("<main><div><header>Profit up</header></div></main>") == "Profit up"


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("Profit < 5 and revenue > 7 as expected.", ()),
        ("<p>Profit rose.</p>", ("html",)),
        ("Computer Terminal Systems <P> and Emerson <EM> rose.", ()),
        ("Itâ€™s up 8%.", ("repair",)),
        (WIRE, ("unwrap",)),
        (FIGURES, ()),
        ("\n".join(["Ford recalls two million cars over their brakes today"] * 5), ()),
    ],
)
def test_a_step_is_named_only_where_it_changed_something(text, steps):
    cleaned, changed = repair(text, html=True, unwrap=True)
    assert changed == steps
    assert repair(cleaned, html=True, unwrap=True) == (cleaned, ())


def test_wrapped_lines_are_joined_to_paragraphs():
    cleaned, _ = repair(WIRE, html=True, unwrap=True)
    assert [len(line.split()) for line in cleaned.split("\n")] == [23, 18]


def test_repeated_lines_are_found_in_bounded_memory_and_never_too_many():
    counter, kept = LineCounter(capacity=50), LineCounter()
    for number in range(400):
        footer = "\nThis call is being recorded today." if number % 3 == 0 else ""
        text = f"Results of company number {number:04d} follow.\nThey were {number:04d} million dollars.{footer}"
        counter.add(text)
        kept.add(text)
    found = kept.repeated(0.1)
    assert found == [line_key("this CALL is  being recorded today.").hex()]
    assert counter.repeated(0.1) == found
    assert len(counter._counts) <= 100


def test_boilerplate_goes_and_sentences_stay():
    text = (
        "(C) - Sales of exporters.\nThis call is being recorded today.\n"
        "Reporting by A. Writer\nRead more: our report on exporters"
    )
    cleaned, removed = without_lines(text, {line_key("This call is being recorded today.")})
    assert (cleaned, removed) == ("(C) - Sales of exporters.", 3)
    assert without_lines("Reuters said on Monday that sales rose.", ()) == (
        "Reuters said on Monday that sales rose.",
        0,
    )


SENTENCES = (
    "Copyright suit against Oracle may go on, a judge ruled.",
    "Reporting by segment changed in 2020: cloud is now apart.",
    "Read more than 40 analyst notes before you buy.",
    "Sign up for Netflix slowed in the third quarter.",
    "Subscribe to the shares by Friday, holders were told.",
)
FOOTERS = (
    "Copyright (c) Reuters", "COPYRIGHT © Dow Jones", "Copyright 2020 Reuters Limited", "(c) 2019 Wire",
    "© copyright Wire", "(Reporting by A. Writer; Editing By B. Reader)", "Writing by Élodie Blanc", "Read more",
    "READ NEXT: Profit falls", "Sign up here.", "Sign up: our letter", "Sign up for our daily newsletter",
    "Subscribe now", "All rights reserved.",
)  # fmt: skip


def test_known_footers_go_at_the_end_and_sentences_stay():
    for sentence in SENTENCES:
        text = f"Sales rose by 8 percent.\n{sentence}"
        assert without_lines(text, ()) == (text, 0)
    for footer in FOOTERS:
        assert without_lines(f"Sales rose.\n\n{footer}", ()) == ("Sales rose.", 1)
        assert without_lines(footer, ()) == (footer, 0)
    middle = "Read more:\nSales rose.\nShares fell.\nAll was quiet."
    assert without_lines(middle, ()) == (middle, 0)
    assert without_lines("\n".join(["Sales rose.", *FOOTERS]), ()) == ("Sales rose.", len(FOOTERS))


def test_private_data_is_replaced_where_its_check_digit_is_right():
    text = (
        "Mail jane.doe@example.com or call (212) 555-0143 or +44 20 7946 0958; card 4111 1111 1111 1111, not 4111 1111 "
        "1111 1112; IBAN DE89 3704 0044 0532 0130 00, not DE89 3704 0044 0532 0130 01; SSN 123-45-6789."
    )
    cleaned, counts = without_private(text)
    assert counts == {"email": 1, "phone": 2, "card": 1, "iban": 1, "ssn": 1}
    assert "4111 1111 1111 1112" in cleaned and "0130 01" in cleaned and "[IBAN]" in cleaned
    for phone in ("+442079460958", "+1 (212) 555-0143", "+33 1 23 45 67 89", "+44.20.7946.0958"):
        assert without_private(f"Call {phone}.") == ("Call [PHONE].", {"phone": 1})
    for change in ("+10 200 300 basis points", "+1.23456789 pct", "+10.25 2000 3000", "+1 200 300 4000 5000.5"):
        assert without_private(f"It rose {change}") == (f"It rose {change}", {})
    figures = "Net 1,234,567 vs 2,345,678; 1986-1987; 12.5-13.5 pct; CUSIP 037833100; revenue of $212.555 0143 mln"
    assert without_private(figures) == (figures, {})


def test_tickers_are_listed_once_in_order():
    text = "$AAPL and $BRK.B rose; IBM (NYSE: IBM), (NASDAQ:MSFT) and Ford (F) fell; (US) cost $5; $AAPL and <GM>."
    assert tickers_in(text) == ["AAPL", "BRK.B", "IBM", "MSFT", "GM"]
    filing = "<TABLE><CAPTION>Sears <S> fell.<BR><S>  <C>  <C>\nRevenue  1,234"
    assert tickers_in(filing) == [] and tickers_in(filing, {"S"}) == ["S"]
    assert tickers_in(text, {"F"}) == ["AAPL", "BRK.B", "IBM", "MSFT", "F", "GM"]


@pytest.mark.parametrize(
    ("written", "day"),
    [
        ("26-FEB-1987 15:01:01.79", "1987-02-26"),
        ("18-Jul-20", "2020-07-18"),
        (" 7:51  PM ET Fri, 17 July 2020", "2020-07-17"),
        ("March 3rd, 2019", "2019-03-03"),
        ("2024-01-03T14:05:00Z", "2024-01-03"),
        ("20240131", "2024-01-31"),
        (1704290700, "2024-01-03"),
        ("03/04/2019", ""),  # the third of April, or the fourth of March
        ("1987-02-30", ""),
        ("31.01.2024", "2024-01-31"),
        ("12/31/2019", "2019-12-31"),
        ("05/05/2019", "2019-05-05"),
        ("1706659200000.0", "2024-01-31"),
        ("202401311530", "2024-01-31"),
        ("12 Jan 10:30", ""),  # no year
        ("12 January 2024, 10:30", "2024-01-12"),
        ("Wed Oct 10 20:19:24 +0000 2018", "2018-10-10"),
        ("2024-01-03 - 10:30", "2024-01-03"),
        ("soon", ""),
        (None, ""),
    ],
)
def test_days_are_read_but_never_guessed(written, day):
    assert day_of(written) == day


def test_a_moment_is_one_day_in_every_form():
    """23:30 in New York is the next day in UTC."""
    moment = datetime(2023, 12, 31, 23, 30, tzinfo=timezone(timedelta(hours=-5)))
    forms = ["%Y-%m-%dT%H:%M:%S%z", "%Y%m%dT%H%M%S%z", "%a, %d %b %Y %H:%M:%S %z", "%a %b %d %H:%M:%S %z %Y"]
    written = [moment.isoformat(), moment.timestamp(), *(moment.strftime(form) for form in forms)]
    assert {day_of(value) for value in [moment, *written]} == {"2024-01-01"}
    assert day_of("31/12/2023 23:30 -0500", "%d/%m/%Y %H:%M %z") == "2024-01-01"
    assert day_of(moment.replace(tzinfo=None).isoformat()) == "2023-12-31"


def test_a_stated_format_decides_which_is_the_month():
    assert day_of("03/04/2019", "%d/%m/%Y") == "2019-04-03"


def test_columns_are_found_by_name_and_read_by_a_pattern():
    source = CorpusSource("calls.jsonl", pattern=r"name=^(?P<ticker>[A-Z]+)_q(?P<quarter>\d)_(?P<year>\d{4})$")
    row = {"name": "ABM_q1_2021", "Transcript": "Revenue rose."}
    draft = draft_of(row, source, find_roles(source, row))
    assert draft == Draft("Revenue rose.", date="2021-06-29", source="calls", tickers=("ABM",))  # 90 days after March
    with pytest.raises(DataError, match="no column 'body'"):
        find_roles(CorpusSource("calls.jsonl", text="body"), row)


def test_each_row_is_read_by_its_own_columns():
    source = CorpusSource("mixed.jsonl")
    rows = [
        {"text": "Sales rose.", "date": "2021-05-01"},
        {"Body": "Sales fell.", "published": "2020-05-01"},
        {"text": " ", "date": None, "summary": "Sales are flat.", "time": "10:30", "timestamp": 1704290700},
    ]
    drafts = [draft_of(row, source, find_roles(source, rows[0])) for row in rows]
    assert [(one.text, one.date) for one in drafts] == [
        ("Sales rose.", "2021-05-01"), ("Sales fell.", "2020-05-01"), ("Sales are flat.", "2024-01-03")]  # fmt: skip
    named = CorpusSource("mixed.jsonl", text="text", date="date")
    assert draft_of(rows[2], named, find_roles(named, rows[0])) == Draft("", source="mixed")


def test_documents_split_by_day_and_by_hash_without_one():
    cleaning = Cleaning(validation_from="2020-01-01", test_from="2021-01-01")
    days = ["2019-12-31", "2020-01-01", "2020-12-31", "2021-01-01"]
    assert [split_of(day, "f" * 16, cleaning) for day in days] == ["train", "validation", "validation", "test"]
    assert [split_of("", digit * 16, cleaning) for digit in "02f"] == ["test", "validation", "train"]


@pytest.mark.parametrize("border", ["20210101", "2020-W53-5", date(2021, 1, 1), "2021-01-01"])
def test_borders_in_any_form_are_the_same_day(border):
    cleaning = Cleaning(test_from=border)
    assert cleaning == Cleaning(test_from="2021-01-01")
    assert [split_of(day, "f" * 16, cleaning) for day in ("2020-12-31", "2021-01-01")] == ["train", "test"]


def test_checks_drop_and_count():
    tally, cleaning = Tally(), Cleaning(min_characters=10, max_characters=100)
    texts = ["short", "x" * 101, "Прибыль выросла сильно", "Profit rose by 8%."]
    kept = [done for text in texts if (done := finish(Draft(text), cleaning, tally))]
    assert [done.draft.text for done in kept] == texts[3:]
    assert tally.plain() == {"long": {"dropped": 1}, "script": {"dropped": 1}, "short": {"dropped": 1}}


def test_a_title_stands_once_in_front():
    tally, cleaning = Tally(), Cleaning()
    for body in ("Sales rose by 8 percent.", "PROFIT UP\nSales rose by 8 percent."):
        done = finish(Draft(body, title="Profit up"), cleaning, tally)
        assert done.draft.text.lower().count("profit up") == 1


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"place": "a", "tilte": "x"}, "unknown key 'tilte'"),
        ({"text": "x"}, "no place"),
        ({"place": "a", "pattern": "name=(.*)"}, "names nothing"),
        ({"place": "a", "columns": "date"}, "'date' for columns"),
    ],
)
def test_a_wrong_entry_is_one_sentence(entry, message):
    with pytest.raises(RecipeError, match=message):
        sources_of([entry])


def test_wrong_limits_are_refused():
    with pytest.raises(RecipeError, match="'keep' for undated"):
        Cleaning(undated="keep")
    with pytest.raises(RecipeError, match="after test"):
        Cleaning(validation_from="2021-01-01", test_from="2020-01-01")
    with pytest.raises(RecipeError, match="no day"):
        Cleaning(test_from="2020")
