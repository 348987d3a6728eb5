"""What is on record about one stock, each fact with the moment at which it became known.

Enters: prices, news, reports and a profile. Leaves: ``History``, which can be cut at any moment (``until``), and prices
as they were known then. Nothing after that moment can change what is left.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fintune.tasks.weekly.calendar import sessions

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PriceHistory:
    """Daily closes of one stock, ``D`` days, oldest first.

    Attributes:
        days: trading days, written as 2015-10-01.
        close_D: closes in dollars.
        splits_D: new shares for one old one from that day on; 1 on other days.
        dividends_D: dollars a share paid to holders of the day before; 0 on other days.
        rebased: the closes were adjusted with later events, as data vendors do. Their ratios are right but their level
            knows the future, so that only paths which start at 100 may be shown.
    """

    days: tuple[str, ...]
    close_D: Floats
    splits_D: Floats
    dividends_D: Floats
    rebased: bool = False

    @classmethod
    def adjusted(cls, days: tuple[str, ...], close_D: Floats) -> PriceHistory:
        """Closes that a vendor has adjusted for all splits and dividends up to the day of the download."""
        return cls(days, close_D, np.ones(len(days)), np.zeros(len(days)), rebased=True)

    def until(self, day: str) -> PriceHistory:
        """The days up to and including ``day``."""
        n_days = bisect_right(self.days, day)
        return replace(
            self,
            days=self.days[:n_days],
            close_D=self.close_D[:n_days],
            splits_D=self.splits_D[:n_days],
            dividends_D=self.dividends_D[:n_days],
        )

    def between(self, first: str, last: str) -> PriceHistory:
        """The days from ``first`` to ``last``, both included."""
        whole, start = self.until(last), bisect_right(self.days, first)
        start -= int(start > 0 and self.days[start - 1] == first)
        return replace(
            whole,
            days=whole.days[start:],
            close_D=whole.close_D[start:],
            splits_D=whole.splits_D[start:],
            dividends_D=whole.dividends_D[start:],
        )


@dataclass(frozen=True)
class News:
    """A headline, perhaps with a summary, and when it was published (UTC)."""

    published: datetime
    headline: str
    summary: str = ""


@dataclass(frozen=True)
class Report:
    """Basic financials of one period: what its figures are, the period's end, and when they were made public (UTC)."""

    known: datetime
    period: str
    figures: Mapping[str, Any]


@dataclass(frozen=True)
class History:
    """All that is known about one stock; news and reports in the order in which they became known.

    ``profile`` holds what does not change from week to week (name, sector, exchange), never a market value.
    ``member_from`` and ``member_to`` are the days of its membership in the index it was collected for, '' for no limit:
    an index takes in those who did well, so that weeks before would know their future.
    """

    ticker: str
    prices: PriceHistory
    news: tuple[News, ...] = ()
    profile: Mapping[str, str] = field(default_factory=dict)
    reports: tuple[Report, ...] = ()
    member_from: str = ""
    member_to: str = ""

    def until(self, day: str, moment: datetime) -> History:
        """The history without prices after ``day`` and without anything that became known after ``moment``."""
        return replace(
            self,
            prices=self.prices.until(day),
            news=self.news[: bisect_right(self.news, moment, key=lambda one: one.published)],
            reports=self.reports[: bisect_right(self.reports, moment, key=lambda one: one.known)],
        )


def known_path(prices: PriceHistory) -> Floats:
    """Closes adjusted with the splits and dividends of these days alone, ``(D,)``.

    The last close stands as it was traded; an earlier one is divided by each later split and reduced by each later
    dividend in proportion to the close before it. Call it on prices that are cut at the forecast date: an event after
    that date then has no influence, however the data were downloaded.
    """
    if len(prices.days) < 2:
        return prices.close_D.copy()
    paid_D = 1 - prices.dividends_D[1:] / prices.close_D[:-1]
    event_D = paid_D / prices.splits_D[1:]
    later_D = np.concatenate([np.cumprod(event_D[::-1])[::-1], [1.0]])
    return np.asarray(prices.close_D * later_D, np.float64)


def dated_news(rows: Iterable[tuple[datetime | None, str, str]], dropped: Counter[str]) -> tuple[News, ...]:
    """News in the order of publication; what cannot be placed in time is left out and counted.

    Args:
        rows: when each was published (UTC), headline and summary.
        dropped: counts, by reason.
    """
    kept: dict[tuple[datetime, str], News] = {}
    for published, headline, summary in rows:
        if published is None:
            dropped["news without a readable date"] += 1
        elif not headline.strip():
            dropped["news without a headline"] += 1
        elif (published, headline) in kept:
            dropped["news that repeat another's time and headline"] += 1
        else:
            kept[published, headline] = News(published, " ".join(headline.split()), " ".join(summary.split()))
    return tuple(sorted(kept.values(), key=lambda one: (one.published, one.headline)))


def session_prices(prices: PriceHistory, dropped: Counter[str]) -> PriceHistory:
    """The prices of days on which the exchange was open; others, and prices that are none, are counted."""
    known = sessions()
    open_D = np.array([known.is_session(day) for day in prices.days], dtype=bool)
    priced_D = np.isfinite(prices.close_D) & (prices.close_D > 0)
    dropped["prices of days without a session"] += int((~open_D).sum())
    dropped["prices that are missing or not above zero"] += int((open_D & ~priced_D).sum())
    keep_D = open_D & priced_D
    return PriceHistory(
        tuple(day for day, keep in zip(prices.days, keep_D, strict=True) if keep),
        prices.close_D[keep_D],
        prices.splits_D[keep_D],
        prices.dividends_D[keep_D],
        prices.rebased,
    )
