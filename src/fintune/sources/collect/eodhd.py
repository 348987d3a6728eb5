"""EODHD: news with whole articles, by ``api/news``.

Enters: a ticker. Leaves: rows. The key is a parameter of every request by the provider's design; it is added below all
logging and kept out of stored questions.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from fintune.sources.collect.keys import find_key
from fintune.sources.collect.limits import Limit
from fintune.sources.collect.ranges import Span
from fintune.sources.collect.requesting import Endpoint, Requester
from fintune.sources.collect.rows import Found, NewsRow, are_objects, clean, utc_text, without_repeats
from fintune.sources.collect.stored import Question
from fintune.sources.collect.universe import with_dash

NAME = "eodhd"
BASE_URL = "https://eodhd.com/api"
LIMITS = (Limit(1000, 60.0), Limit(20, 1.0))
PAGE = 1000
"""The longest page that the provider gives."""


def endpoint(base_url: str) -> Endpoint:
    """EODHD with the user's key.

    Raises:
        ProviderError: there is no key.
    """
    return Endpoint(NAME, base_url, LIMITS, find_key(NAME), key_parameter="api_token")


def news(requester: Requester, ticker: str, span: Span) -> Found[NewsRow]:
    """Articles about a company, page by page until one is not full.

    Raises:
        ProviderError: a page is not to be had.
    """
    found: Found[NewsRow] = Found()
    offset, n_rows = 0, PAGE
    while n_rows == PAGE:
        parameters = {
            "s": symbol(ticker), "from": str(span.first), "to": str(span.last),
            "limit": str(PAGE), "offset": str(offset), "fmt": "json",
        }  # fmt: skip
        answer = requester.get(Question(NAME, "news", parameters, until=span.last), is_right=are_objects)
        for article in answer.value:
            _take(found, ticker, article, answer.retrieved_at, span)
        n_rows = len(answer.value)
        offset += n_rows
    return without_repeats(found)


def symbol(ticker: str) -> str:
    """A ticker as EODHD writes it: with the exchange, US where none is named."""
    written = with_dash(ticker)
    return written if "." in written else f"{written}.US"


def _take(found: Found[NewsRow], ticker: str, article: dict[str, Any], retrieved_at: str, span: Span) -> None:
    headline, moment, url = clean(article.get("title")), _moment(article.get("date")), clean(article.get("link"))
    if not headline or moment is None:
        found.dropped["no headline" if not headline else "no time of publication"] += 1
    elif not span.holds(moment):
        found.dropped["published outside the dates asked for"] += 1
    else:
        text = article.get("content")
        found.rows.append(
            NewsRow(
                ticker, utc_text(moment), NAME, headline, summary="", text=text if isinstance(text, str) else "",
                source=_host(url), url=url, retrieved_at=retrieved_at,
            )
        )  # fmt: skip


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _moment(value: Any) -> datetime | None:
    """A moment with its offset from UTC; without one it is UTC."""
    try:
        moment = datetime.fromisoformat(str(value))
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None
