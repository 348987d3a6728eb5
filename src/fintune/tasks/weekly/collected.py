"""A folder that ``fintune collect`` filled as histories of its tickers.

Enters: the folder. Leaves: a ``History`` for each ticker with prices. News are in UTC; closes are the vendor's adjusted
ones, shown as an index; financials count from the day they were known, or else 90 days after the end of their period.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from fintune.schema.errors import DataError
from fintune.sources.files import read_file
from fintune.sources.text import is_blank
from fintune.tasks.corpus_files import corpus_files, json_lines, need_keys
from fintune.tasks.dates import parse_dates
from fintune.tasks.weekly.calendar import end_of_day
from fintune.tasks.weekly.history import History, PriceHistory, Report, dated_news, session_prices

PRICES_FILE, NEWS_FILE, UNIVERSE_FILE = "prices.csv", "news.jsonl", "universe.csv"
PROFILES_FILE, FINANCIALS_FILE = "profiles.jsonl", "financials.jsonl"
REPORT_DELAY = timedelta(days=90)
"""The longest that the SEC allows for an annual report; quarterly ones come sooner."""
_LASTING = {"name": ("name",), "sector": ("finnhubIndustry", "sector"), "exchange": ("exchange",)}


def collected_histories(folder: Path, dropped: Counter[str]) -> list[History] | None:
    """Histories by ticker; None when the folder has no prices and news of a collection."""
    files = corpus_files(folder, PRICES_FILE, NEWS_FILE)
    if files is None:
        return None
    prices, news = files
    by_ticker, profiles, reports = _news(news, dropped), _profiles(folder), _reports(folder)
    memberships = _memberships(folder)
    return [
        History(
            ticker,
            session_prices(history, dropped),
            by_ticker.get(ticker, ()),
            profiles.get(ticker, {"name": ticker}),
            reports.get(ticker, ()),
            *memberships.get(ticker, ("", "")),
        )
        for ticker, history in sorted(_prices(prices).items())
    ]


def _prices(file: Path) -> dict[str, PriceHistory]:
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for number, row in enumerate(read_file(file).rows, 1):
        try:
            close = row["adjusted_close"]
            day = str(row["date"])[:10]
            date.fromisoformat(day)
            found[str(row["ticker"])][day] = np.nan if is_blank(close) else float(close)
        except (KeyError, ValueError, TypeError) as error:
            raise DataError(
                f"Row {number} of {file} has no ticker, date and adjusted_close.", "Collect the prices again."
            ) from error
    return {
        ticker: PriceHistory.adjusted(tuple(sorted(days)), np.array([days[day] for day in sorted(days)]))
        for ticker, days in found.items()
    }


def _news(file: Path, dropped: Counter[str]) -> dict[str, Any]:
    rows = json_lines(file)
    for row in rows:
        need_keys(file, row, ("ticker", "headline", "published"))
    published, _ = parse_dates([row["published"] for row in rows], "published")
    retrieved, _ = parse_dates([row.get("retrieved_at") for row in rows], "retrieved_at")
    found: dict[str, list[tuple[datetime | None, str, str]]] = defaultdict(list)
    for row, when, fetched in zip(rows, published, retrieved, strict=True):
        if when is not None and fetched is not None and when > fetched:
            dropped["news dated after it was fetched"] += 1
            continue
        exact = when if when is None or _has_time(row["published"]) else end_of_day(when.date())
        found[str(row["ticker"])].append((exact, str(row["headline"] or ""), str(row.get("summary") or "")))
    return {ticker: dated_news(told, dropped) for ticker, told in found.items()}


def _has_time(value: Any) -> bool:
    return not isinstance(value, str) or len(value.strip()) > len("2024-02-25")


def _profiles(folder: Path) -> dict[str, dict[str, str]]:
    """Name, sector and exchange; what changes from day to day, such as a market value, is not taken."""
    found = corpus_files(folder, PROFILES_FILE)
    profiles: dict[str, dict[str, str]] = {}
    for row in json_lines(found[0]) if found else ():
        need_keys(folder / PROFILES_FILE, row, ("ticker", "profile"))
        told = {
            name: next((str(row["profile"][key]) for key in keys if not is_blank(row["profile"].get(key))), "")
            for name, keys in _LASTING.items()
        }
        profiles[str(row["ticker"])] = {name: value for name, value in told.items() if value}
    return profiles


def _memberships(folder: Path) -> dict[str, tuple[str, str]]:
    """First and last day in the index that a ticker was collected for; '' where there is no such limit."""
    found = corpus_files(folder, UNIVERSE_FILE)
    rows = read_file(found[0]).rows if found else ()
    days = {str(row["ticker"]): [row.get(name) for name in ("member_from", "member_to")] for row in rows}
    return {ticker: (_day(first), _day(last)) for ticker, (first, last) in days.items()}


def _day(value: Any) -> str:
    return "" if is_blank(value) else str(value)[:10]


def _reports(folder: Path) -> dict[str, tuple[Report, ...]]:
    """Reports by ticker as they became known; quarterly ones, where there are any."""
    found = corpus_files(folder, FINANCIALS_FILE)
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in json_lines(found[0]) if found else ():
        need_keys(folder / FINANCIALS_FILE, row, ("ticker", "frequency", "period", "known_from", "values"))
        rows[str(row["ticker"])].append(row)
    return {
        ticker: tuple(sorted(map(_report, _quarterly(part)), key=lambda one: (one.known, one.period)))
        for ticker, part in rows.items()
    }


def _quarterly(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    dated = [row for row in rows if not (is_blank(row["period"]) and is_blank(row["known_from"]))]
    has_quarters = any(row["frequency"] == "quarterly" for row in dated)
    return [row for row in dated if row["frequency"] != "annual" or not has_quarters]


def _report(row: Mapping[str, Any]) -> Report:
    """A report; figures of the day of retrieval have no period but that day."""
    known, period = (str(row[name] or "")[:10] for name in ("known_from", "period"))
    day = date.fromisoformat(known) if known else date.fromisoformat(period) + REPORT_DELAY
    return Report(end_of_day(day), period or known, dict(row["values"]))
