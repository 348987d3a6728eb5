"""Which companies: the Dow 30 day by day, the S&P 500 from its tables, and tickers in every spelling."""

import csv
from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.public_data import public_data
from tests.sources.collect import provider_server

from fintune.sources.collect import Asked, Span, collect_into
from fintune.sources.collect.universe import DOW30_KNOWN, dow30, dow30_note, named


def members_on(day):
    return {member.ticker for member in dow30(Span(day, day))}


@given(st.dates(DOW30_KNOWN.first, DOW30_KNOWN.last))
def test_the_dow_has_thirty_members_on_every_day(day):
    assert len(members_on(day)) == 30


@pytest.mark.parametrize(
    ("day", "joined", "left"),
    [
        (date(2020, 8, 31), {"CRM", "AMGN", "HON"}, {"XOM", "PFE", "RTX"}),
        (date(2024, 2, 26), {"AMZN"}, {"WBA"}),
        (date(2024, 11, 8), {"NVDA", "SHW"}, {"INTC", "DOW"}),
    ],
)
def test_members_change_before_the_announced_day_opens(day, joined, left):
    before, after = members_on(day - timedelta(days=1)), members_on(day)
    assert after - before == joined and before - after == left


def test_members_on_the_last_day_of_the_published_set_are_its_symbols():
    """FinGPT's Dow-30 set of February to May 2024 has thirty symbols."""
    import gzip
    import json

    with gzip.open(public_data("forecaster_dow30/test.jsonl.gz"), "rt", encoding="utf-8") as stream:
        symbols = {json.loads(line)["symbol"] for line in stream}
    assert len(symbols) == 30
    assert symbols ^ members_on(date(2024, 2, 25)) <= {"WBA", "AMZN"}  # it changed on its second day


def test_a_span_has_everyone_who_was_in_it_with_the_days():
    found = {member.ticker: member for member in dow30(Span(date(2024, 1, 1), date(2024, 3, 31)))}
    assert len(found) == 31
    assert found["WBA"].member_to == date(2024, 2, 25) and found["AMZN"].member_from == date(2024, 2, 26)
    assert found["AAPL"].member_from is None and found["AAPL"].member_to is None


def test_years_outside_of_the_table_are_noted():
    assert dow30_note(Span(date(2020, 1, 1), date(2025, 12, 31))) is None
    for span in (Span(date(2019, 12, 31), date(2020, 1, 5)), Span(date(2025, 12, 1), date(2026, 1, 2))):
        assert "2020-01-01 to 2025-12-31" in dow30_note(span) and len(dow30(span)) == 30


def test_names_in_every_spelling():
    assert named(["DOW30", " aapl ", "brk-b", "BRK.B", "AAPL", "SAP.DE"]) == (["dow30"], ["AAPL", "BRK.B", "SAP.DE"])


@pytest.fixture
def universe(server, tmp_path, time_passes, patience):
    def written(*names, last=date(2024, 1, 5), **options):
        asked = Asked(names, Span(date(2024, 1, 1), last), ("prices",), base_urls=server.base_urls, **options)
        found = collect_into(tmp_path / "data", asked, patience=patience, clock=time_passes.clock())
        text = (found.folder / "universe.csv").read_text(encoding="utf-8")
        return found, {row["ticker"]: row for row in csv.DictReader(text.splitlines())}

    return written


def test_the_sp500_is_dated_and_has_market_capitalisation(universe):
    found, rows = universe("sp500", "AAPL")
    assert list(rows) == ["AAPL", "BRK.B", "MMM", "SMALL"]
    assert rows["MMM"] == {
        "ticker": "MMM", "index": "sp500", "name": "3M", "sector": "Industrials", "member_from": "1957-03-04",
        "member_to": "", "market_cap": "92293693440.0", "as_of": "2024-06-03",
    }  # fmt: skip
    assert rows["AAPL"]["index"] == rows["SMALL"]["market_cap"] == ""
    assert found.dropped["universe"] == {"joined after the dates asked for": 1}
    assert any("companies that left before are missing" in note for note in found.notes)
    assert "1 members of sp500 have no market capitalisation" in found.notes


def test_the_largest_of_the_sp500(universe):
    found, rows = universe("sp500", largest=1)
    assert list(rows) == ["BRK.B"] and found.dropped["universe"]["smaller than the largest asked for"] == 2


def test_the_published_tables_are_read(universe, monkeypatch):
    files = {"CONSTITUENTS": "constituents.csv", "CAPS": "constituents-financials.csv"}
    for name, file in files.items():
        monkeypatch.setattr(provider_server, name, public_data(f"sp500/{file}").read_text(encoding="utf-8"))
    found, rows = universe("sp500", largest=3)
    caps = {row["Symbol"]: float(row["Market Cap"] or 0) for row in csv.DictReader(provider_server.CAPS.splitlines())}
    joined = {row["Symbol"]: row["Date added"] for row in csv.DictReader(provider_server.CONSTITUENTS.splitlines())}
    known = [ticker for ticker, day in joined.items() if day <= "2024-01-05"]
    assert sorted(rows) == sorted(sorted(known, key=lambda ticker: -caps.get(ticker, 0))[:3])
    assert all(rows[ticker]["member_from"] == joined[ticker] for ticker in rows)
