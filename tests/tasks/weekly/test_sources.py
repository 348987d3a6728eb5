"""Corpora and collections as weekly prompts: what is read, how it is dated; what files say of later changes nothing."""

import csv
from collections import Counter
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from tests.tasks.weekly.conftest import trading_days
from tests.tasks.weekly.corpora import json_lines, stocknet_part
from tests.tasks.weekly.test_weeks import prompt_bytes

from fintune.schema.errors import DataError
from fintune.schema.recipe import TaskSection
from fintune.tasks import get_task, load_task
from fintune.tasks.weekly import WeekOptions, build_week, collected_histories, cutoff, cutoff_day, find_lookahead
from fintune.tasks.weekly.headlines import headline_histories, spoken_name
from fintune.tasks.weekly.rationales import RATIONALES_VARIABLE
from fintune.tasks.weekly.stocknet import stocknet_histories, tidy_tweet

OPTIONS = WeekOptions()


def collection(folder, n_days=120, seed=1):
    """A collected folder of two tickers; its rows as lists, so that tests can cut and change them."""
    folder.mkdir(parents=True, exist_ok=True)
    draw, days = np.random.default_rng(seed), trading_days(n_days)
    prices = [
        {
            "ticker": ticker,
            "date": day,
            "open": 1,
            "close": 9.0,
            "adjusted_close": round(float(close), 4),
            "splits": 0.0,
        }
        for ticker in ("AAA", "BBB")
        for day, close in zip(days, 40 * np.cumprod(1 + draw.normal(0, 0.02, n_days)), strict=True)
    ]
    start = datetime(2015, 1, 5, tzinfo=UTC)
    news = [
        {
            "ticker": ticker,
            "headline": f"{ticker} story {number}",
            "summary": f"What happened {number}",
            "published": (start + timedelta(hours=int(hours))).isoformat(),
            "url": "u",
            "source": "s",
        }
        for ticker in ("AAA", "BBB")
        for number, hours in enumerate(draw.integers(0, n_days * 33, 150))
    ]
    profiles = [
        {"ticker": "AAA", "profile": {"name": "Aaa Inc", "finnhubIndustry": "Tools", "marketCapitalization": 12345}},
        {"ticker": "BBB", "profile": {"name": "Bbb Inc"}},
    ]
    quarter = {"ticker": "AAA", "frequency": "quarterly"}
    financials = [
        quarter | {"period": "2014-12-31", "known_from": "2015-02-10", "values": {"eps": 1.25}},
        quarter | {"period": "2015-03-31", "known_from": None, "values": {"eps": 7.75}},
        quarter | {"period": "2014-12-31", "known_from": "2015-02-10", "values": {"eps": 5.0}, "frequency": "annual"},
    ]
    return {"prices": prices, "news": news, "profiles": profiles, "financials": financials}


def write_collection(folder, rows):
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows["prices"]).to_csv(folder / "prices.csv", index=False)
    for name in ("news", "profiles", "financials"):
        json_lines(folder / f"{name}.jsonl", rows[name])
    return folder


def prompts_at(histories, forecast_date):
    weeks = {history.ticker: build_week(history, forecast_date, OPTIONS) for history in histories}
    return {ticker: prompt_bytes(week) for ticker, week in weeks.items() if not isinstance(week, str)}


# --- a collection --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("forecast_date", [date(2015, 2, 15), date(2015, 3, 29)])
def test_rows_after_a_date_in_a_collections_files_change_no_prompt(tmp_path, forecast_date):
    rows = collection(tmp_path / "whole")
    day, moment = cutoff_day(forecast_date), cutoff(forecast_date).isoformat()
    is_past = {
        "prices": lambda row: row["date"] <= day,
        "news": lambda row: row["published"] <= moment,
        "profiles": lambda row: True,
        "financials": lambda row: (row["known_from"] or "9") <= day,
    }
    deleted = {name: [row for row in part if is_past[name](row)] for name, part in rows.items()}
    changed = {
        name: [
            row if is_past[name](row) else row | {"adjusted_close": 1.0, "headline": "secret", "values": {"eps": 99.0}}
            for row in part
        ]
        for name, part in rows.items()
    }
    found = [
        prompts_at(collected_histories(write_collection(tmp_path / name, part), Counter()), forecast_date)
        for name, part in (("whole", rows), ("deleted", deleted), ("changed", changed))
    ]
    assert found[0] == found[1] == found[2] and set(found[0]) == {"AAA", "BBB"}
    assert b"secret" not in found[2]["AAA"] and b"AAA story" in found[0]["AAA"]


def test_a_collection_is_a_task(tmp_path):
    folder = write_collection(tmp_path / "collected", collection(tmp_path))
    loaded = load_task(TaskSection(name="weekly", source=str(folder)))
    sizes = {split: len(rows) for split, rows in loaded.splits.items()}
    assert all(sizes.values()) and sizes["train"] > sizes["test"] > sizes["validation"]
    assert any("weeks between two splits" in note for note in loaded.notes)
    early, late = loaded.splits["train"][0], loaded.splits["test"][-2]
    assert "Aaa Inc is a company in the Tools sector" in late.document and "12345" not in late.document
    assert "No basic financial reported." in early.document
    assert "reported at 2014-12-31" in late.document and "eps: 1.25" in late.document, "the next report is not filed"
    words = load_task(TaskSection(name="weekly_forecast", source=str(folder), config="label")).splits["train"]
    assert [e.target for e in words] == [f"Prediction: {e.target}" for e in bins_of(folder)]
    assert {e.target for e in loaded.splits["train"]} == {"Up", "Down"}


def bins_of(folder):
    return load_task(TaskSection(name="weekly_bins", source=str(folder))).splits["train"]


def test_a_teachers_rationales_are_read_and_training_rows_without_one_counted(tmp_path, monkeypatch):
    folder = write_collection(tmp_path / "collected", collection(tmp_path))
    section = TaskSection(name="weekly_forecast", source=str(folder), config="teacher")
    with pytest.raises(DataError, match=r"no teacher's rationales in .*rationales\.jsonl"):
        load_task(section)
    first = bins_of(folder)[0]
    json_lines(tmp_path / "said.jsonl", [{"id": first.example_id, "answer": "Prediction: Up by 1-2%, because."}])
    monkeypatch.setenv(RATIONALES_VARIABLE, str(tmp_path / "said.jsonl"))
    loaded = load_task(section)
    assert [e.target for e in loaded.splits["train"]] == ["Prediction: Up by 1-2%, because."]
    left = loaded.counts["dropped"]["training rows without a teacher answer that predicts"]
    assert left == len(bins_of(folder)) - 1 and loaded.splits["test"]


def test_news_dated_after_they_were_fetched_and_days_without_times(tmp_path):
    rows = collection(tmp_path)
    rows["news"] = [
        {
            "ticker": "AAA",
            "headline": "from the future",
            "published": "2015-02-06T10:00:00Z",
            "retrieved_at": "2015-02-01T00:00:00Z",
        },
        {"ticker": "AAA", "headline": "some time on Friday", "published": "2015-02-06"},
        {"ticker": "AAA", "headline": "nobody knows when", "published": None},
    ]
    dropped = Counter()
    (aaa, _) = collected_histories(write_collection(tmp_path / "c", rows), dropped)
    assert [one.headline for one in aaa.news] in ([], ["some time on Friday"])
    assert dropped["news dated after it was fetched"] == 1 and dropped["news without a readable date"] == 1
    assert aaa.news[0].published > cutoff(date(2015, 2, 8)), "it may have come after the close"


def test_damaged_collections_are_named(tmp_path):
    rows = collection(tmp_path)
    rows["prices"] = [{"ticker": "AAA", "date": "yesterday", "adjusted_close": 1}]
    with pytest.raises(DataError, match=r"Row 1 of .*prices.csv has no ticker, date and adjusted_close"):
        collected_histories(write_collection(tmp_path / "c", rows), Counter())
    with pytest.raises(DataError, match="has no column"):
        json_lines(tmp_path / "test.jsonl", [{"text": "x", "answer": "Up"}])
        load_task(TaskSection(name="weekly", source=str(tmp_path / "test.jsonl")))


# --- StockNet ------------------------------------------------------------------------------------------------------


def test_tweets_are_tidied():
    assert tidy_tweet("rt AT_USER : $ aapl up $ 3 URL") == ": $aapl up $3"


def test_rows_after_a_date_in_stocknets_files_change_no_prompt(shared_data, tmp_path):
    symbols, forecast_date = {"AAPL", "XOM"}, date(2014, 6, 8)  # Apple split on the day after
    day, moment = cutoff_day(forecast_date), cutoff(forecast_date)
    is_past = {"prices": lambda when: when <= day, "tweets": lambda when: when <= moment}

    def keep(table, when):
        return is_past[table](when)

    def altered(row):
        return row | ({"text": "secret"} if "text" in row else {"Adj Close": "1.0"})

    copies = [
        stocknet_part(shared_data, tmp_path / "whole", symbols),
        stocknet_part(shared_data, tmp_path / "deleted", symbols, keep, lambda row: None),
        stocknet_part(shared_data, tmp_path / "altered", symbols, keep, altered),
    ]
    found = [prompts_at(stocknet_histories(copy, Counter()), forecast_date) for copy in copies]
    assert found[0] == found[1] == found[2] and set(found[0]) == symbols
    assert b"$aapl" in found[0]["AAPL"] and b"secret" not in found[2]["AAPL"]


def test_weekly_acl18_holds_all_weeks_in_order_without_lookahead(shared_data, tmp_path):
    copy = stocknet_part(shared_data, tmp_path / "part", {"AAPL", "XOM", "GMRE"})
    loaded = load_task(TaskSection(name="weekly_acl18", source=str(copy), prompt="short"))
    ends = {split: sorted(e.metadata["period"][-10:] for e in rows) for split, rows in loaded.splits.items()}
    assert ends["train"][-1] <= "2015-07-31" and "2015-08-07" <= ends["validation"][0] <= ends["validation"][-1]
    assert ends["validation"][-1] <= "2015-09-30" < ends["test"][0] <= ends["test"][-1] <= "2015-12-31"
    assert {e.metadata["ticker"] for e in loaded.splits["train"]} == {"AAPL", "XOM"}, "GMRE has no tweets"
    histories = stocknet_histories(copy, Counter())

    def build(past, day):
        return build_week(past, day, OPTIONS)

    for history in (one for one in histories if one.news):
        days = [date.fromisoformat(day) for day in ("2014-06-08", "2015-03-01", "2015-11-29")]
        assert not find_lookahead([build(history, day) for day in days], history, build)
    # The outcome against pandas, from the file itself.
    frame = pd.read_csv(copy / "prices_raw.csv", parse_dates=["Date"]).query("Symbol == 'XOM'").set_index("Date")
    weekly = frame["Adj Close"].resample("W").ffill().pct_change()
    for example in (e for rows in loaded.splits.values() for e in rows if e.metadata["ticker"] == "XOM"):
        assert example.metadata["change"] == pytest.approx(weekly[example.metadata["period"][-10:]])
        assert example.target == ("Up" if example.metadata["change"] >= 0 else "Down")


# --- the S&P 500's prices and dated headlines ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "spoken"),
    [
        ("Apple Inc.", "Apple"),
        ("Boeing", "Boeing"),
        ("Walt Disney Company (The)", "Walt Disney"),
        ("Amazon.com", "Amazon"),
        ("Ford Motor Company", "Ford"),
        ("Target Corporation", ""),
        ("Alphabet Inc. (Class A)", "Alphabet"),
        ("3M", ""),
    ],
)
def test_companies_as_headlines_call_them(name, spoken):
    assert spoken_name(name) == spoken


def headline_folder(root, *, until=None):
    """Prices and headlines of one made-up company, as the real files have them; nothing after ``until``."""
    days = [day for day in trading_days(900, date(2016, 6, 1)) if until is None or day <= until]
    draw = np.random.default_rng(5)
    close = 50 * np.cumprod(1 + draw.normal(0, 0.02, 900))[: len(days)]
    prices = root / "ohlcv_sp500_2015_2020"
    for folder in (prices, root / "news_headlines", root / "sp500"):
        folder.mkdir(parents=True)
    pd.DataFrame({"Name": "ACM", "Date": days, "Adj Close": close}).to_parquet(prices / "daily.parquet")
    (root / "sp500" / "constituents.csv").write_text("Symbol,Security,GICS Sector\nACM,Acme Corp.,Industrials\n")
    write = {
        "cnbc_headlines.csv": [
            ["Headlines", "Time", "Description"],
            ["Acme soars", " 3:51  PM ET Fri, 9 March 2018", "Up a lot."],
            ["Acme after the close", " 4:01  PM ET Fri, 9 March 2018", ""],
            ["", "", ""],
            ["Nothing about it", " 3:51  PM ET Fri, 9 March 2018", ""],
        ],
        "guardian_headlines.csv": [["Time", "Headlines"], ["08-Mar-18", "Acme's workers strike"]],
        "reuters_headlines.csv": [
            ["2018-03-09", "Acme , Bcme say merger U . S . probe ends"],
            ["2018-03-20", "Acme later"],
        ],
    }
    for name, rows in write.items():
        with (root / "news_headlines" / name).open("w", newline="", encoding="utf-8") as out:
            csv.writer(out).writerows(rows)
    return prices


def test_headlines_are_dated_to_the_minute_or_to_the_end_of_their_day(tmp_path):
    dropped = Counter()
    (history,) = headline_histories(headline_folder(tmp_path), dropped)
    assert [(one.published.isoformat(), one.headline) for one in history.news] == [
        ("2018-03-09T04:59:59+00:00", "Acme's workers strike"),
        ("2018-03-09T20:51:00+00:00", "Acme soars"),
        ("2018-03-09T21:01:00+00:00", "Acme after the close"),
        ("2018-03-10T04:59:59+00:00", "Acme, Bcme say merger U.S. probe ends"),
        ("2018-03-21T03:59:59+00:00", "Acme later"),
    ]
    assert dropped["headlines that name no company of the index"] == 1
    week = build_week(history, date(2018, 3, 11), OPTIONS)
    assert [one.headline for one in week.weeks[-1].news] == ["Acme's workers strike", "Acme soars"]
    (cut,) = headline_histories(headline_folder(tmp_path / "cut", until="2018-03-09"), Counter())
    assert prompt_bytes(build_week(cut, date(2018, 3, 11), OPTIONS)) == prompt_bytes(week)


def test_weekly_sp500_is_a_task_and_names_what_is_missing_beside_it(tmp_path):
    folder = headline_folder(tmp_path)
    example, *_ = load_task(TaskSection(name="weekly_sp500", source=str(folder))).splits["train"]
    assert (
        example.messages[0].role == "system" and "Acme Corp. is a company in the Industrials sector" in example.document
    )
    (tmp_path / "sp500" / "constituents.csv").unlink()
    with pytest.raises(DataError, match=r"there is no sp500/constituents.csv"):
        get_task("weekly_sp500").builders[""](folder)
