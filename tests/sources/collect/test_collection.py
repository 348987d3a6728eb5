"""What a collection writes, against the server's own account of what it has; faults, gaps and refusals on the way."""

import contextlib
import csv
import json
import sys
from collections import Counter
from datetime import UTC, date, datetime, timedelta

import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from tests.sources.collect import provider_server
from tests.sources.collect.provider_server import articles_of, days

from fintune.schema.errors import ProviderError, RecipeError, RunError
from fintune.sources.collect import Asked, Span, collect_into, eodhd, finnhub, span_of, yahoo
from fintune.sources.collect.requesting import Refused, Requester
from fintune.sources.collect.stored import AnswerStore

FIRST, LAST = date(2024, 1, 1), date(2024, 1, 20)


@pytest.fixture
def collect(server, tmp_path, time_passes, patience):
    """Collects from the local server into one folder."""

    def collected(*names, **options):
        asked = Asked(names, options.pop("span", Span(FIRST, LAST)), base_urls=server.base_urls, **options)
        return collect_into(tmp_path / "data", asked, patience=patience, clock=time_passes.clock())

    return collected


def lines(folder, name):
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


def price_rows(folder):
    return list(csv.DictReader((folder / "prices.csv").read_text(encoding="utf-8").splitlines()))


def report(folder):
    return json.loads((folder / "collected.json").read_text(encoding="utf-8"))


def expected_articles(ticker, first=FIRST, last=LAST):
    return [(moment, name) for day in days(str(first), str(last)) for moment, name in articles_of(ticker, day)]


def test_news_are_all_there_once_in_utc_and_in_order(collect, server):
    found = collect("AAPL", "BUSY", what=("news",), news_providers=("finnhub", "eodhd"))
    rows = lines(found.folder, "news.jsonl")
    for ticker in ("AAPL", "BUSY"):
        for provider in ("finnhub", "eodhd"):
            own = [row for row in rows if (row["ticker"], row["provider"]) == (ticker, provider)]
            assert [(row["published"], row["headline"]) for row in own] == [
                (moment.strftime("%Y-%m-%dT%H:%M:%SZ"), name) for moment, name in expected_articles(ticker)
            ]
    first = next(row for row in rows if row["provider"] == "finnhub")
    assert first["source"] == "Reuters" and first["text"] == ""
    assert first["summary"] == f"Summary of {first['headline']}. More of it."
    other = next(row for row in rows if row["provider"] == "eodhd")
    assert other["source"] == "news.example.com" and other["text"] == f"All of {other['headline']}."
    assert not found.dropped and not found.failed and not found.notes
    assert found.rows["news.jsonl"] == len(rows)
    # 40 articles a day fill a week's answer, which stops at the newest: such weeks are asked for by days
    assert sum("company-news" in url and "BUSY" in url for url in server.asked) == 3 + 20
    assert sum("company-news" in url and "AAPL" in url for url in server.asked) == 3


def test_a_day_that_may_be_cut_is_noted(collect, monkeypatch):
    monkeypatch.setitem(provider_server.NEWS_PER_DAY, "BUSY", 230)
    found = collect("BUSY", what=("news",), span=Span(FIRST, FIRST + timedelta(days=6)))
    days_with = sum(bool(articles_of("BUSY", FIRST + timedelta(days=n))) for n in range(7))
    assert found.notes == [f"BUSY: {days_with} days from 2024-01-01 to 2024-01-07 may lack older articles"]


@given(st.dates(date(2010, 1, 1), date(2030, 1, 1)), st.integers(0, 400), st.integers(1, 40))
def test_parts_of_a_span_cover_each_day_once(first, length, n_days):
    span = Span(first, first + timedelta(days=length))
    parts = list(span.parts(n_days))
    covered = [part.first + timedelta(days=n) for part in parts for n in range(part.n_days)]
    assert covered == [first + timedelta(days=n) for n in range(length + 1)]
    assert all(1 <= part.n_days <= n_days for part in parts) and sum(part.n_days for part in parts) == span.n_days


class Paged:
    """Answers pages of a list, as the providers do; stands where a requester is expected."""

    def __init__(self, rows, page=None):
        self.rows, self.page, self.asked = rows, page, []

    def get(self, question, *, is_right):
        query = question.parameters
        self.asked.append(dict(query))
        if self.page is not None:
            found = self.rows[int(query["offset"]) :][: int(query["limit"])]
        else:
            within = [row for row in self.rows if query["from"] <= moment_of(row).date().isoformat() <= query["to"]]
            found = sorted(within, key=lambda row: -row["datetime"])[: finnhub.LONG_ANSWER + 10]
        assert is_right(found)
        return type("Answer", (), {"value": found, "retrieved_at": "2024-06-01T00:00:00Z"})


def moment_of(row):
    return datetime.fromtimestamp(row["datetime"], UTC)


@given(st.integers(0, 25), st.integers(1, 7))
def test_pages_bring_every_article_once(n_articles, page):
    rows = [{"title": f"t{n}", "date": "2024-01-05T10:00:00+00:00", "link": f"u{n}"} for n in range(n_articles)]
    whole, eodhd.PAGE = eodhd.PAGE, page
    try:
        source = Paged(rows, page)
        found = eodhd.news(source, "AAPL", Span(FIRST, LAST))
    finally:
        eodhd.PAGE = whole
    assert sorted(row.headline for row in found.rows) == sorted(row["title"] for row in rows)
    assert [int(query["offset"]) for query in source.asked] == list(range(0, n_articles + 1, page))


@given(st.lists(st.integers(0, 150), min_size=1, max_size=24))
def test_weeks_and_days_bring_every_article_once(per_day):
    start = datetime(2024, 1, 1, tzinfo=UTC)
    rows = [
        {"headline": f"d{day} n{n}", "url": f"u{day}-{n}",
         "datetime": int((start + timedelta(days=day, seconds=500 * n)).timestamp())}
        for day, count in enumerate(per_day)
        for n in range(count)
    ]  # fmt: skip
    span = Span(FIRST, FIRST + timedelta(days=len(per_day) - 1))
    found = finnhub.news(Paged(rows), "AAPL", span)
    assert Counter(row.headline for row in found.rows) == Counter(row["headline"] for row in rows)
    assert not found.dropped and not found.notes


def test_what_cannot_be_used_is_dropped_and_counted(server, tmp_path, time_passes):
    article = {"headline": "H", "summary": None, "source": 3, "url": "u", "datetime": 1704450000}
    given = [
        article, article, {**article, "url": "v"}, {**article, "headline": " \n"}, {**article, "headline": None},
        {**article, "datetime": 0}, {**article, "datetime": "now"}, {**article, "datetime": 1e30},
        {**article, "datetime": 1588677909}, {**article, "datetime": True},
    ]  # fmt: skip
    found = finnhub.news(Paged([]), "AAPL", Span(FIRST, FIRST))
    assert found.rows == []

    class Once:
        def get(self, question, *, is_right):
            return type("Answer", (), {"value": given, "retrieved_at": "2024-06-01T00:00:00Z"})

    found = finnhub.news(Once(), "AAPL", Span(date(2024, 1, 1), date(2024, 1, 7)))
    assert [(row.headline, row.url, row.summary, row.source) for row in found.rows] == [
        ("H", "u", "", ""), ("H", "v", "", ""),
    ]  # fmt: skip
    assert found.dropped == {
        "no headline": 2, "no time of publication": 4, "published outside the dates asked for": 1,
        "repeated article": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("2024-01-03T14:05:00+00:00", "2024-01-03T14:05:00Z"),
        ("2024-01-03T23:30:00-05:00", "2024-01-04T04:30:00Z"),
        ("2024-01-03 14:05:00", "2024-01-03T14:05:00Z"),
    ],
)
def test_moments_of_eodhd_are_turned_to_utc(text, utc):
    found = eodhd.news(Paged([{"title": "T", "date": text, "link": "http://[broken"}], 1000), "A", Span(FIRST, LAST))
    assert [(row.published, row.source) for row in found.rows] == [(utc, "")]


def test_prices_have_the_exchanges_days_and_what_was_paid(collect, server):
    found = collect("AAPL", what=("prices",))
    rows = price_rows(found.folder)
    weekdays = [day for day in days(str(FIRST), str(LAST)) if day.weekday() < 5]
    assert [row["date"] for row in rows] == [str(day) for day in weekdays if day != weekdays[2]]
    assert found.dropped == {"prices": {"day without prices": 1}}
    answer = provider_server.chart("AAPL", {"period1": "1704067200", "period2": "1705795200"})["chart"]["result"][0]
    quote = answer["indicators"]["quote"][0]
    for position, row in zip([0, 1, 3, 4], rows, strict=False):
        assert [float(row[name]) for name in ("open", "high", "low", "close", "volume")] == [
            quote[name][position] for name in ("open", "high", "low", "close", "volume")
        ]
        assert float(row["adjusted_close"]) == answer["indicators"]["adjclose"][0]["adjclose"][position]
    assert [(float(row["dividends"]), float(row["splits"])) for row in rows[:4]] == [(0, 0), (0.24, 0), (0, 4), (0, 0)]


def test_a_day_is_the_exchanges_and_today_is_left_out():
    """Tokyo opens at midnight UTC; in New York that is still the day before."""
    result = {
        "meta": {"exchangeTimezoneName": "Asia/Tokyo"},
        "timestamp": [1704153600, 1704240000, 1704240900],  # 2, 3 and 3 January 2024, 9:00 in Tokyo and later
        "indicators": {
            "quote": [{name: [1, 2, 3] for name in ("open", "high", "low", "close", "volume")}],
            "adjclose": [{"adjclose": [1, 2, 3]}],
        },
    }

    class Once:
        def __init__(self, at):
            self.at = at

        def get(self, question, *, is_right):
            assert is_right({"chart": {"result": [result], "error": None}})
            return type("Answer", (), {"value": {"chart": {"result": [result]}}, "retrieved_at": self.at})

    span = Span(date(2024, 1, 1), date(2024, 1, 4))
    found = yahoo.prices(Once("2024-01-04T00:00:00Z"), "7203.T", span)
    assert [(row.date, row.close) for row in found.rows] == [("2024-01-02", 1.0), ("2024-01-03", 3.0)]
    assert found.dropped == {"repeated day": 1}
    found = yahoo.prices(Once("2024-01-02T15:30:00Z"), "7203.T", span)  # 3 January, 0:30 in Tokyo
    assert [row.date for row in found.rows] == ["2024-01-02"] and found.dropped == {"day that was not over": 2}


def test_financials_say_from_when_they_were_known(collect):
    found = collect("AAPL", what=("financials",))
    rows = {(row["frequency"], row["period"]): row for row in lines(found.folder, "financials.jsonl")}
    assert {key: row["known_from"] for key, row in rows.items()} == {
        ("annual", "2010-09-25"): None,  # its report is not among the filings
        ("annual", "2023-09-30"): "2023-11-03",
        ("current", None): "2024-06-03",  # as of the day of retrieval
        ("quarterly", "2023-07-01"): "2023-08-04",  # not when it was filed once more
        ("quarterly", "2023-09-30"): None,
        ("quarterly", "2023-12-30"): "2024-02-02",  # the filing says the month's last day
    }
    assert rows["annual", "2023-09-30"]["values"] == {"eps": 6.13}
    assert rows["current", None]["values"] == {"52WeekHigh": 199.62, "beta": 1.28}
    assert set(rows["quarterly", "2023-12-30"]["values"]) == {"currentRatio", "eps", "netMargin"}
    assert found.notes == ["AAPL: 2 periods of financials have no filing date"]


def test_without_filings_the_figures_stay_and_have_no_day(collect, server):
    server.fault = lambda url, attempt: 403 if "financials-reported" in url else None
    found = collect("AAPL", what=("financials",))
    assert [row["known_from"] for row in lines(found.folder, "financials.jsonl")] == [None, None, "2024-06-03"] + [
        None
    ] * 3
    assert "AAPL: the filings behind quarterly financials are not to be had" in found.notes and not found.failed


def test_a_profile_is_kept_as_it_was_given(collect):
    found = collect("AAPL", "BRK-B", what=("profile",))
    first, second = lines(found.folder, "profiles.jsonl")
    assert (
        first["profile"] == provider_server.profile({"symbol": "AAPL"})
        and first["retrieved_at"] == "2024-06-03T12:00:00Z"
    )
    assert second["ticker"] == second["profile"]["ticker"] == "BRK.B"


def test_each_provider_gets_a_share_class_as_it_writes_it(collect, server):
    collect("brk-b", what=("news", "prices"), news_providers=("finnhub", "eodhd"))
    asked = " ".join(server.asked)
    assert "symbol=BRK.B" in asked and "s=BRK-B.US" in asked and "/chart/BRK-B?" in asked


def test_what_one_ticker_lacks_is_reported_and_the_rest_goes_on(collect, server):
    server.fault = lambda url, attempt: 403 if "profile2" in url and "MSFT" in url else None
    found = collect("AAPL", "GONE", "MSFT")
    assert found.failed == {
        "GONE": {"prices yahoo": "yahoo has no prices of GONE from 2024-01-01 to 2024-01-20."},
        "MSFT": {"profile finnhub":
                 "finnhub does not give stock/profile2 (symbol=MSFT): not in your plan (status 403)."},
    }  # fmt: skip
    assert {row["ticker"] for row in price_rows(found.folder)} == {"AAPL", "MSFT"}
    assert {row["ticker"] for row in lines(found.folder, "profiles.jsonl")} == {"AAPL", "GONE"}
    said = report(found.folder)
    assert said["failed"] == found.failed and said["tickers"]["AAPL"]["news finnhub"]["rows"] > 0
    server.fault = lambda url, attempt: None
    before = sum(server.delivered.values())
    found = collect("AAPL", "GONE", "MSFT")
    assert set(found.failed) == {"GONE"} and sum(server.delivered.values()) == before + 1  # only what was missing


def test_a_provider_that_is_down_ends_the_run(collect, server, time_passes):
    server.fault = lambda url, attempt: 503 if "/yahoo/" in url else None
    with pytest.raises(ProviderError, match="yahoo does not answer any more: .*status 503"):
        collect("A", "B", "C", "D", what=("prices", "profile"))
    assert sum(count for url, count in server.asked.items() if "/yahoo/" in url) == 3 * 8
    kept = sum(server.delivered.values())
    server.fault = lambda url, attempt: None
    found = collect("A", "B", "C", "D", what=("prices", "profile"))
    assert not found.failed and sum(server.delivered.values()) == 8 and kept == 3


def test_yahoos_door_has_a_hint_for_who_lacks_the_extra(collect, server, monkeypatch):
    server.fault = lambda url, attempt: 429
    monkeypatch.setitem(sys.modules, "curl_cffi", None)
    with pytest.raises(ProviderError, match="status 429") as caught:
        collect("A", "B", "C", what=("prices",))
    assert caught.value.remedy.startswith("Install fintune[collect]") and "again later" in caught.value.remedy


def test_a_refused_key_ends_the_run_at_once(collect, server, monkeypatch):
    monkeypatch.setenv("FINNHUB_API_KEY", "expired-key-123456")
    with pytest.raises(ProviderError, match="finnhub refuses the key") as caught:
        collect("AAPL", "MSFT")
    assert sum(server.asked.values()) == 1 and "expired-key" not in str(caught.value)


def test_the_order_of_names_and_a_second_run_change_nothing_but_times(collect, server, time_passes, tmp_path):
    found = collect("MSFT", "AAPL", "aapl", news_providers=("eodhd", "finnhub"))
    before = {path.name: path.read_bytes() for path in found.folder.iterdir() if path.is_file()}
    time_passes.moment += 5 * 86400
    found = collect("AAPL", "MSFT", news_providers=("finnhub", "eodhd"))
    after = {path.name: path.read_bytes() for path in found.folder.iterdir() if path.is_file()}
    assert sum(found.requests.values()) == 0
    assert before == after


def test_another_collection_is_not_written_over(collect, server):
    found = collect("AAPL", what=("prices",))
    before = (found.folder / "prices.csv").read_bytes()
    for names, options in ((("MSFT",), {"what": ("prices",)}), (("AAPL",), {"what": ("news",)})):
        with pytest.raises(RunError, match="holds a collection that was asked for otherwise"):
            collect(*names, **options)
    assert (found.folder / "prices.csv").read_bytes() == before
    (found.folder / "collected.json").unlink()
    found = collect("AAPL", "MSFT", what=("prices",))
    assert found.requests == {"yahoo": 1} and found.rows["prices.csv"] > 20


def test_hashes_follow_what_rows_say_and_not_when_they_came(collect, server, tmp_path, time_passes, patience):
    first = report(collect("AAPL").folder)["files"]
    time_passes.moment += 3600
    asked = Asked(("AAPL",), Span(FIRST, LAST), base_urls=server.base_urls)
    other = collect_into(tmp_path / "other", asked, patience=patience, clock=time_passes.clock())
    assert report(other.folder)["files"] == first
    assert (other.folder / "news.jsonl").read_text() != (tmp_path / "data" / "news.jsonl").read_text()


def test_a_collection_under_faults_equals_one_without(collect, server, tmp_path, time_passes, patience):
    plain = report(collect("AAPL", "BUSY").folder)
    faults = [(429, "1"), "truncated", 500, "html", "cut", "empty"]
    server.fault = lambda url, attempt: faults[attempt + len(url) & 3] if attempt <= 3 else None
    asked = Asked(("AAPL", "BUSY"), Span(FIRST, LAST), base_urls=server.base_urls)
    other = collect_into(tmp_path / "other", asked, patience=patience, clock=time_passes.clock())
    assert report(other.folder) == plain


def test_two_processes_do_not_collect_into_one_folder(collect, tmp_path, server):
    (tmp_path / "data").mkdir()
    with FileLock(tmp_path / "data" / ".lock"), pytest.raises(RunError, match="Another process collects into"):
        collect("AAPL")
    assert not server.asked


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"what": ("rumours",)}, "'rumours' is no kind of data"),
        ({"what": ()}, "No kind of data is asked for"),
        ({"news_providers": ("reuters",)}, "'reuters' is no provider of news"),
    ],
)
def test_what_does_not_exist_is_one_sentence(collect, options, said):
    with pytest.raises(RecipeError, match=said):
        collect("AAPL", **options)


def test_the_largest_belong_to_the_sp500(collect, server):
    with pytest.raises(RecipeError, match="only be chosen of sp500"):
        collect("dow30", largest=3)
    assert not server.asked


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NAMES = st.sampled_from(
    [
        "chart",
        "result",
        "timestamp",
        "indicators",
        "quote",
        "adjclose",
        "events",
        "dividends",
        "meta",
        "metric",
        "series",
        "quarterly",
        "annual",
        "eps",
        "period",
        "v",
        "data",
        "endDate",
        "filedDate",
        "datetime",
        "headline",
        "date",
        "title",
    ]
)
SHAPED = st.recursive(
    JSON | st.sampled_from(["2024-01-03", "2024-01-03T10:00:00+00:00", "America/New_York", 1704240000]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=6),
    max_leaves=25,
)


class Says:
    """Gives one answer to everything, if it passes for right; refuses otherwise, as a requester does in the end."""

    def __init__(self, value):
        self.value = value

    def get(self, question, *, is_right):
        value = self.value
        if question.parameters.get("offset", "0") != "0":
            value = []
        if not is_right(value):
            raise Refused("of another form")
        return type("Answer", (), {"value": value, "retrieved_at": "2024-06-01T00:00:00Z"})


@given(SHAPED)
def test_whatever_a_provider_says_ends_in_rows_or_in_a_refusal(value):
    span = Span(FIRST, LAST)
    for read in (finnhub.news, eodhd.news, yahoo.prices):
        with contextlib.suppress(Refused):
            assert all(row.ticker == "AAPL" for row in read(Says(value), "AAPL", span).rows)
    for read in (finnhub.profile, finnhub.financials):
        with contextlib.suppress(Refused):
            assert read(Says(value), "AAPL").rows


@given(st.data())
def test_a_chart_with_anything_in_one_place_ends_in_rows_or_in_a_refusal(data):
    chart = provider_server.chart("AAPL", {"period1": "1704067200", "period2": "1705795200"})
    places = [(chart, "chart")]
    for parent, key in places:
        child = parent[key]
        if isinstance(child, dict) and child:
            places += [(child, name) for name in child]
        if isinstance(child, list) and child:
            places += [(child, 0)]
    parent, key = data.draw(st.sampled_from(places))
    parent[key] = data.draw(JSON)
    with contextlib.suppress(Refused):
        assert yahoo.prices(Says(chart), "AAPL", Span(FIRST, LAST)).rows is not None


@pytest.mark.parametrize("names", [(), (" ",), ("AA PL",), ("../etc",), ("A" * 20,)])
def test_names_that_are_no_tickers(collect, names, server):
    with pytest.raises(RecipeError):
        collect(*names)
    assert not server.asked


@pytest.mark.parametrize(
    ("first", "last", "said"),
    [
        ("2024-02-30", "2024-03-01", "is no date"),
        ("yesterday", "2024-03-01", "is no date"),
        ("2024-03-02", "2024-03-01", "is after the last"),
        ("2024-03-02", "2024-03-12", "is yet to come"),
    ],
)
def test_spans_that_cannot_be(first, last, said):
    with pytest.raises(RecipeError, match=said):
        span_of(first, last, date(2024, 3, 11))


def test_a_browsers_handshake_takes_the_same_way(server, tmp_path, time_passes, patience):
    pytest.importorskip("curl_cffi", reason="an extra: fintune[collect]")
    faults = [429, "cut", "slow", "close", (429, "3")]
    server.fault = lambda url, attempt: faults[attempt - 1] if attempt <= len(faults) else None
    endpoint = yahoo.endpoint(f"{server.url}/yahoo")
    assert isinstance(endpoint.transport, yahoo.BrowserTransport)
    with Requester(endpoint, AnswerStore(tmp_path), patience=patience, clock=time_passes.clock()) as requester:
        found = yahoo.prices(requester, "AAPL", Span(FIRST, LAST))
    assert len(found.rows) == 14 and requester.requests == 6 and time_passes.slept[-1] == 3
    assert all("Chrome" in agent for agent in server.agents)


def test_without_the_extra_requests_go_the_plain_way(server, tmp_path, time_passes, patience, monkeypatch):
    monkeypatch.setitem(sys.modules, "curl_cffi", None)
    endpoint = yahoo.endpoint(f"{server.url}/yahoo")
    with Requester(endpoint, AnswerStore(tmp_path), patience=patience, clock=time_passes.clock()) as requester:
        assert len(yahoo.prices(requester, "AAPL", Span(FIRST, LAST)).rows) == 14
    assert server.agents == {"Mozilla/5.0 (compatible; fintune)"}
