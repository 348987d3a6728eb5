"""Yahoo: daily prices with dividends and splits, by the chart endpoint that yfinance reads too.

Enters: a ticker. Leaves: rows. Asked through our one client, for yfinance keeps no raw answer, can be pointed at no
other address, and has a cache, a pace and retries of its own. What it knows of Yahoo's doors is worth having: a client
whose handshake is no browser's is often answered 429, so that its HTTP library, curl_cffi, is used where it is there.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, date, datetime, timedelta
from typing import Any
from urllib.parse import quote
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import httpx2

from fintune.sources.collect.limits import Limit
from fintune.sources.collect.ranges import Span
from fintune.sources.collect.requesting import Endpoint, Refused, Requester
from fintune.sources.collect.rows import Found, PriceRow
from fintune.sources.collect.stored import Question
from fintune.sources.collect.universe import with_dash

NAME = "yahoo"
BASE_URL = "https://query2.finance.yahoo.com"
LIMITS = (Limit(60, 60.0), Limit(2, 1.0))
"""Yahoo publishes none; this pace is ours."""
_HEADERS = {"User-Agent": "Mozilla/5.0 (compatible; fintune)", "Accept": "application/json"}
_HINT = "Install fintune[collect]: Yahoo turns away clients whose handshake is no browser's."
_FIELDS = ("open", "high", "low", "close", "adjclose", "volume")


def endpoint(base_url: str) -> Endpoint:
    """Yahoo, through curl_cffi where it is installed."""
    try:
        import curl_cffi
    except ImportError:
        return Endpoint(NAME, base_url, LIMITS, headers=_HEADERS, hint=_HINT)
    return Endpoint(NAME, base_url, LIMITS, transport=BrowserTransport(curl_cffi))


def prices(requester: Requester, ticker: str, span: Span) -> Found[PriceRow]:
    """Trading days of the span; the day of retrieval is not over, and left out.

    Raises:
        ProviderError: Yahoo does not know the ticker, or has no prices of it.
    """
    parameters = {
        "period1": _midnight(span.first), "period2": _midnight(span.last + timedelta(days=1)),
        "interval": "1d", "events": "div,splits", "includePrePost": "false",
    }  # fmt: skip
    question = Question(NAME, f"v8/finance/chart/{quote(with_dash(ticker), safe='')}", parameters, until=span.last)
    answer = requester.get(question, is_right=_is_chart)
    result = _result(answer.value)
    if not result.get("timestamp"):
        raise Refused(f"yahoo has no prices of {ticker} from {span.first} to {span.last}.")
    return _rows(result, ticker, answer.retrieved_at, span)


class BrowserTransport(httpx2.BaseTransport):
    """Sends requests as a browser would, by curl_cffi.

    Args:
        library: the module ``curl_cffi``.
    """

    def __init__(self, library: Any) -> None:
        self._library = library
        self._session = library.requests.Session(impersonate="chrome")

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Sends one request and reads its whole answer."""
        errors = self._library.requests.exceptions
        timeout_s = request.extensions.get("timeout", {}).get("read") or 30.0
        try:
            response = self._session.get(str(request.url), timeout=timeout_s, allow_redirects=False)
        except errors.Timeout as error:
            raise httpx2.ReadTimeout("too slow", request=request) from error
        except errors.RequestException as error:
            raise httpx2.ReadError(type(error).__name__, request=request) from error
        again = {name: value for name, value in response.headers.items() if name.lower() == "retry-after"}
        return httpx2.Response(response.status_code, headers=again, content=response.content)

    def close(self) -> None:
        """Ends its connections."""
        self._session.close()


def _is_chart(value: Any) -> bool:
    """Whether an answer can be read to its end."""
    try:
        result = _result(value)
        if result.get("timestamp"):
            _rows(result, "", "9999-12-31T00:00:00Z", Span(date.min, date.max))
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, OSError):
        return False
    return True


def _result(value: Any) -> dict[str, Any]:
    """What an answer says of its one ticker; nothing where that is unknown."""
    result: dict[str, Any] = (value["chart"]["result"] or [{}])[0]
    return result


def _columns(result: dict[str, Any]) -> dict[str, list[Any]]:
    indicators = result["indicators"]
    found = {**indicators["quote"][0], **indicators["adjclose"][0]}
    return {name: found[name] for name in _FIELDS}


def _rows(result: dict[str, Any], ticker: str, retrieved_at: str, span: Span) -> Found[PriceRow]:
    found: Found[PriceRow] = Found()
    zone = _zone(result.get("meta") or {})
    columns = _columns(result)
    dividends = _events(result, "dividends", zone, lambda event: float(event["amount"]))
    splits = _events(result, "splits", zone, lambda event: float(event["numerator"]) / float(event["denominator"]))
    retrieved_on = datetime.fromisoformat(retrieved_at).astimezone(zone).date()
    by_day: dict[date, PriceRow] = {}
    for position, seconds in enumerate(result["timestamp"]):
        day = datetime.fromtimestamp(seconds, UTC).astimezone(zone).date()
        values = [columns[name][position] for name in _FIELDS]
        if None in values:
            found.dropped["day without prices"] += 1
        elif not span.first <= day <= span.last:
            found.dropped["outside the dates asked for"] += 1
        elif day >= retrieved_on:
            found.dropped["day that was not over"] += 1
        else:
            found.dropped["repeated day"] += day in by_day
            opened, high, low, close, adjusted = map(float, values[:-1])
            paid, split = dividends.get(day, 0.0), splits.get(day, 0.0)
            by_day[day] = PriceRow(
                ticker, str(day), opened, high, low, close, adjusted, int(values[-1]), paid, split, retrieved_at
            )
    found.dropped += Counter()  # leaves out what was counted zero times
    found.rows = [by_day[day] for day in sorted(by_day)]
    return found


def _events(result: dict[str, Any], kind: str, zone: ZoneInfo, amount: Any) -> dict[date, float]:
    found: dict[date, float] = {}
    for event in ((result.get("events") or {}).get(kind) or {}).values():
        day = datetime.fromtimestamp(event["date"], UTC).astimezone(zone).date()
        found[day] = found.get(day, 0.0) + amount(event) if kind == "dividends" else amount(event)
    return found


def _zone(meta: dict[str, Any]) -> ZoneInfo:
    try:
        return ZoneInfo(str(meta.get("exchangeTimezoneName") or "America/New_York"))
    except (ZoneInfoNotFoundError, ValueError):
        return ZoneInfo("America/New_York")


def _midnight(day: date) -> str:
    return str(int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()))
