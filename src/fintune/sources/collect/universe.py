"""Which companies: the Dow 30 by its dated changes, the S&P 500 by a public table, or tickers as given.

Enters: names, such as ``dow30`` or ``AAPL``, and a span of days. Leaves: members with the days of their membership.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from fintune.schema.errors import RecipeError
from fintune.sources.collect.ranges import Span

INDICES = ("dow30", "sp500")
_TICKER = re.compile(r"[A-Z0-9][A-Z0-9.\-]{0,14}")
_SHARE_CLASS = re.compile(r"([A-Z0-9]+)[.\-]([AB])")


@dataclass(frozen=True, order=True)
class Member:
    """One company of a universe.

    Attributes:
        index: dow30, sp500, or '' for a ticker that was named.
        member_from: first day in the index; None for before the table begins, or unknown.
        member_to: last day in the index; None where it has not left.
        market_cap: in dollars, None where unknown; as of
        as_of: the day the table was retrieved, such as ``2024-04-02``; '' where nothing was.
    """

    ticker: str
    index: str = ""
    name: str = ""
    sector: str = ""
    member_from: date | None = None
    member_to: date | None = None
    market_cap: float | None = None
    as_of: str = ""


# Dow Jones Industrial Average, S&P Dow Jones Indices' announcements of 2020-08-24, 2024-02-20 and 2024-11-01. RTX was
# United Technologies (UTX) until its merger on 2020-04-03; providers have both under RTX.
DOW30_KNOWN = Span(date(2020, 1, 1), date(2025, 12, 31))
_DOW30_ALWAYS = (
    "AAPL AXP BA CAT CSCO CVX DIS GS HD IBM JNJ JPM KO MCD MMM MRK MSFT NKE PG TRV UNH V VZ WMT"  # of all these years
)
_DOW30_LEFT = {
    "XOM": date(2020, 8, 30),
    "PFE": date(2020, 8, 30),
    "RTX": date(2020, 8, 30),
    "WBA": date(2024, 2, 25),
    "INTC": date(2024, 11, 7),
    "DOW": date(2024, 11, 7),
}
_DOW30_JOINED = {
    "CRM": date(2020, 8, 31),
    "AMGN": date(2020, 8, 31),
    "HON": date(2020, 8, 31),
    "AMZN": date(2024, 2, 26),
    "NVDA": date(2024, 11, 8),
    "SHW": date(2024, 11, 8),
}


def dow30(span: Span) -> list[Member]:
    """Every company that was in the Dow 30 on a day of the span, with its days of membership.

    Days before or after those of ``DOW30_KNOWN`` are answered with the first or last known membership.
    """
    members = [Member(ticker, "dow30") for ticker in _DOW30_ALWAYS.split()]
    members += [Member(ticker, "dow30", member_to=day) for ticker, day in _DOW30_LEFT.items()]
    members += [Member(ticker, "dow30", member_from=day) for ticker, day in _DOW30_JOINED.items()]
    first, last = (min(max(day, DOW30_KNOWN.first), DOW30_KNOWN.last) for day in (span.first, span.last))
    return sorted(
        (
            member
            for member in members
            if (member.member_from is None or member.member_from <= last)
            and (member.member_to is None or member.member_to >= first)
        ),
        key=lambda member: member.ticker,
    )


def dow30_note(span: Span) -> str | None:
    """What is to be known where the span leaves the years that the table has."""
    if DOW30_KNOWN.first <= span.first and span.last <= DOW30_KNOWN.last:
        return None
    return (
        f"members of the Dow 30 are known from {DOW30_KNOWN.first} to {DOW30_KNOWN.last}; days outside have the "
        "nearest known members"
    )


def named(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The indices and the tickers among the names, each once, in the form ``BRK.B``.

    Raises:
        RecipeError: there is none, or one cannot be a ticker.
    """
    words = [name.strip() for name in names if name.strip()]
    if not words:
        raise RecipeError("There is nothing to collect.", f"Name tickers, or one of {', '.join(INDICES)}.")
    indices = [index for index in INDICES if index in {word.lower() for word in words}]
    tickers = dict.fromkeys(_with_dot(word.upper()) for word in words if word.lower() not in INDICES)
    for ticker in tickers:
        if not _TICKER.fullmatch(ticker):
            raise RecipeError(f"{ticker!r} is no ticker.", f"Write AAPL or BRK.B, or one of {', '.join(INDICES)}.")
    return indices, list(tickers)


def with_dash(ticker: str) -> str:
    """A class of shares as Yahoo and EODHD write it: BRK-B."""
    return _SHARE_CLASS.sub(r"\1-\2", ticker) if _SHARE_CLASS.fullmatch(ticker) else ticker


def _with_dot(ticker: str) -> str:
    return _SHARE_CLASS.sub(r"\1.\2", ticker) if _SHARE_CLASS.fullmatch(ticker) else ticker
