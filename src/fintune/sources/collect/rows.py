"""What providers say, in one form for all of them: news, prices, profiles, financials.

Enters: fields of a provider. Leaves: rows that ``tables`` writes, and how many were dropped and why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

Row = TypeVar("Row")
TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True, order=True)
class NewsRow:
    """One article about one ticker.

    Attributes:
        published: in UTC, such as ``2024-01-03T14:05:00Z``.
        summary: of a few sentences; '' where the provider has none.
        text: the whole article; '' where the provider has none.
        source: who published it.
    """

    ticker: str
    published: str
    provider: str
    headline: str
    summary: str
    text: str
    source: str
    url: str
    retrieved_at: str


@dataclass(frozen=True, order=True)
class PriceRow:
    """One trading day; open to close are adjusted for splits, ``adjusted_close`` for dividends too.

    Attributes:
        date: at the exchange, such as ``2024-01-03``.
        dividends: paid on shares held before this day, per share; 0 on most days.
        splits: new shares for one old share from this day on; 0 on most days.
    """

    ticker: str
    date: str
    open: float
    high: float
    low: float
    close: float
    adjusted_close: float
    volume: int
    dividends: float
    splits: float
    retrieved_at: str


@dataclass(frozen=True)
class ProfileRow:
    """A company as its provider describes it on the day of retrieval, which need not be how it was before."""

    ticker: str
    provider: str
    profile: dict[str, Any]
    retrieved_at: str


@dataclass(frozen=True)
class FinancialsRow:
    """Figures of one period.

    Attributes:
        frequency: quarterly, annual, or current for figures as of the day of retrieval.
        period: the period's last day; None for current.
        known_from: first day on which the public knew them, None where the provider does not say. Figures that were
            corrected later stand as corrected.
        values: by the provider's names.
    """

    ticker: str
    provider: str
    frequency: str
    period: str | None
    known_from: str | None
    values: dict[str, float]
    retrieved_at: str


@dataclass
class Found(Generic[Row]):
    """Rows of one ticker, what was dropped by reason, and what a reader has to know."""

    rows: list[Row] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


def without_repeats(found: Found[NewsRow]) -> Found[NewsRow]:
    """News sorted by time, each article of a provider once."""
    kept: dict[tuple[str, ...], NewsRow] = {}
    for row in sorted(found.rows):
        kept.setdefault((row.provider, row.url, row.headline, row.published), row)
    if repeated := len(found.rows) - len(kept):
        found.dropped["repeated article"] += repeated
    found.rows = list(kept.values())
    return found


def utc_text(moment: datetime) -> str:
    """A moment as rows write it."""
    return moment.astimezone(UTC).strftime(TIME_FORMAT)


def clean(value: Any) -> str:
    """Text on one line; '' for what is no text."""
    return " ".join(value.split()) if isinstance(value, str) else ""


def are_objects(value: Any) -> bool:
    """Whether a parsed answer is a list of JSON objects."""
    return isinstance(value, list) and all(isinstance(one, dict) for one in value)


def numbers(values: Iterable[tuple[str, Any]]) -> dict[str, float]:
    """The named values that are finite numbers, by name in order."""
    return {
        name: value
        for name, value in sorted(values, key=lambda item: item[0])
        if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")
    }
