"""Finnhub: company news, profile and basic financials, by its documented REST endpoints.

Enters: a ticker. Leaves: rows. Asked through our one client and not through ``finnhub-python``: that library puts the
key into every URL, from where it reaches exceptions and urllib3's log, and keeps neither raw answers nor a pace. Here
the key travels in the header ``X-Finnhub-Token``. A free key gets 60 calls a minute and one year of news.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime
from typing import Any

from fintune.sources.collect.keys import find_key
from fintune.sources.collect.limits import Limit
from fintune.sources.collect.ranges import Span
from fintune.sources.collect.requesting import Endpoint, Refused, Requester
from fintune.sources.collect.rows import (
    FinancialsRow,
    Found,
    NewsRow,
    ProfileRow,
    are_objects,
    clean,
    numbers,
    utc_text,
    without_repeats,
)
from fintune.sources.collect.stored import Question

NAME = "finnhub"
BASE_URL = "https://finnhub.io/api/v1"
LIMITS = (Limit(60, 60.0), Limit(30, 1.0))
WINDOW_DAYS = 7
LONG_ANSWER = 200
"""Answers stop, without saying so, at some 250 of the newest articles: from here on, single days are asked for."""
_SAME_PERIOD_DAYS = 7


def endpoint(base_url: str) -> Endpoint:
    """Finnhub with the user's key.

    Raises:
        ProviderError: there is no key.
    """
    return Endpoint(NAME, base_url, LIMITS, find_key(NAME), key_header="X-Finnhub-Token")


def news(requester: Requester, ticker: str, span: Span) -> Found[NewsRow]:
    """Articles about a company, week by week, and day by day where a week has many.

    Raises:
        ProviderError: a part of the span is not to be had.
    """
    found: Found[NewsRow] = Found()
    for week in span.parts(WINDOW_DAYS):
        rows = _window(requester, ticker, week)
        if len(rows) >= LONG_ANSWER and week.n_days > 1:
            days = [_window(requester, ticker, day) for day in week.parts(1)]
            if cut := sum(len(day) >= LONG_ANSWER for day in days):
                found.notes.append(f"{cut} days from {week.first} to {week.last} may lack older articles")
            rows = [row for day in days for row in day]
        for row in rows:
            _take(found, ticker, row, span)
    return without_repeats(found)


def profile(requester: Requester, ticker: str) -> Found[ProfileRow]:
    """The company as it is on the day of retrieval.

    Raises:
        ProviderError: Finnhub does not know the ticker.
    """
    question = Question(NAME, "stock/profile2", {"symbol": ticker})
    answer = requester.get(question, is_right=lambda value: isinstance(value, dict) and "error" not in value)
    if not answer.value:
        raise Refused(f"finnhub has no profile of {ticker}.")
    return Found([ProfileRow(ticker, NAME, dict(sorted(answer.value.items())), answer.retrieved_at)])


def financials(requester: Requester, ticker: str) -> Found[FinancialsRow]:
    """Ratios by quarter and year, with the day of the filing that made them known, and today's.

    Raises:
        ProviderError: Finnhub has none.
    """
    question = Question(NAME, "stock/metric", {"symbol": ticker, "metric": "all"})
    answer = requester.get(question, is_right=_has_metrics)
    found: Found[FinancialsRow] = Found()
    for frequency in ("annual", "quarterly"):
        by_period = _by_period(dict(answer.value["series"]).get(frequency))
        filed = _filings(requester, ticker, frequency, found) if by_period else {}
        for period, values in sorted(by_period.items()):
            known = _known_from(period, filed)
            found.rows.append(
                FinancialsRow(ticker, NAME, frequency, period, known, numbers(values), answer.retrieved_at)
            )
    if current := numbers(dict(answer.value["metric"]).items()):
        day = answer.retrieved_at[:10]
        found.rows.append(FinancialsRow(ticker, NAME, "current", None, day, current, answer.retrieved_at))
    if not found.rows:
        raise Refused(f"finnhub has no financials of {ticker}.")
    if undated := sum(row.known_from is None for row in found.rows):
        found.notes.append(f"{undated} periods of financials have no filing date")
    return found


def _window(requester: Requester, ticker: str, span: Span) -> list[tuple[dict[str, Any], str]]:
    parameters = {"symbol": ticker, "from": str(span.first), "to": str(span.last)}
    answer = requester.get(Question(NAME, "company-news", parameters, until=span.last), is_right=are_objects)
    return [(article, answer.retrieved_at) for article in answer.value]


def _take(found: Found[NewsRow], ticker: str, row: tuple[dict[str, Any], str], span: Span) -> None:
    article, retrieved_at = row
    headline, moment = clean(article.get("headline")), _moment(article.get("datetime"))
    if not headline or moment is None:
        found.dropped["no headline" if not headline else "no time of publication"] += 1
    elif not span.holds(moment):
        found.dropped["published outside the dates asked for"] += 1
    else:
        summary, source, url = (clean(article.get(name)) for name in ("summary", "source", "url"))
        found.rows.append(NewsRow(ticker, utc_text(moment), NAME, headline, summary, "", source, url, retrieved_at))


def _moment(seconds: Any) -> datetime | None:
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool) or seconds <= 0:
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, OSError, ValueError):
        return None


def _has_metrics(value: Any) -> bool:
    """An unknown ticker has empty ones, at times as a list."""
    return isinstance(value, dict) and all(
        isinstance(value.get(name), dict) or value.get(name) == [] for name in ("metric", "series")
    )


def _by_period(series: Any) -> dict[str, list[tuple[str, Any]]]:
    """From ``{name: [{"period", "v"}]}`` to the named values of each period."""
    found: dict[str, list[tuple[str, Any]]] = defaultdict(list)
    for name, points in series.items() if isinstance(series, dict) else ():
        for point in points if are_objects(points) else ():
            if _as_day(point.get("period")) is not None:
                found[str(point["period"])[:10]].append((name, point.get("v")))
    return found


def _filings(requester: Requester, ticker: str, frequency: str, found: Found[FinancialsRow]) -> dict[date, str]:
    """The first day each period's report was public, by the period's last day."""
    question = Question(NAME, "stock/financials-reported", {"symbol": ticker, "freq": frequency})
    try:
        answer = requester.get(question, is_right=lambda value: isinstance(value, dict) and "data" in value)
    except Refused:
        found.notes.append(f"the filings behind {frequency} financials are not to be had")
        return {}
    filed: dict[date, str] = {}
    for end, day in _filing_days(answer.value["data"]):
        filed[end] = min(day, filed.get(end, day))
    return filed


def _filing_days(reports: Any) -> Iterator[tuple[date, str]]:
    for report in reports if are_objects(reports) else ():
        end, filed = _as_day(report.get("endDate")), _as_day(report.get("acceptedDate") or report.get("filedDate"))
        if end is not None and filed is not None:
            yield end, str(filed)


def _known_from(period: str, filed: dict[date, str]) -> str | None:
    """Fiscal calendars end on a weekday, series at times on the month's last day: the nearest filing within a week."""
    end = date.fromisoformat(period)
    near: Iterable[date] = sorted(filed, key=lambda other: (abs((other - end).days), other))
    nearest = next(iter(near), None)
    return filed[nearest] if nearest is not None and abs((nearest - end).days) <= _SAME_PERIOD_DAYS else None


def _as_day(value: Any) -> date | None:
    try:
        return date.fromisoformat(str(value)[:10])
    except ValueError:
        return None
