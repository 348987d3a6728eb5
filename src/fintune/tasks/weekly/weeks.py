"""Weekly forecasts as records: what was known about a stock at a forecast date, and what the next week brought.

Enters: a ``History`` and forecast dates. Leaves: one ``Week`` for each date that has enough behind it. A week is made
from the history as it was cut at the forecast date; only its outcome is read from what came later.
"""

from __future__ import annotations

import hashlib
import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import date, datetime
from functools import lru_cache
from typing import Any

from fintune.metrics.return_bins import bin_of
from fintune.sources.text import normalise_text
from fintune.tasks.weekly.calendar import LAST, WEEK, cutoff, cutoff_day, period_of
from fintune.tasks.weekly.history import History, News, PriceHistory, known_path

MOST_DAYS_WITHOUT_PRICE = 4
"""A week's last price may be this many days older than its last session: a halted stock has no outcome."""


@dataclass(frozen=True)
class WeekOptions:
    """How much of the past a week shows.

    Attributes:
        past_weeks: weeks of prices and news before the forecast date.
        news_per_week: at most so many headlines of each, drawn where there are more.
        least_news: weeks with fewer headlines in sight are left out.
        summary_characters: longest summary.
    """

    past_weeks: int = 3
    news_per_week: int = 5
    least_news: int = 0
    summary_characters: int = 500


@dataclass(frozen=True)
class PastWeek:
    """One week in sight: from and to which date, the closes (rebased paths start at 100), and the headlines drawn."""

    start: str
    end: str
    first: float
    last: float
    first_day: str
    last_day: str
    news: tuple[News, ...] = ()
    n_news: int = 0


@dataclass(frozen=True)
class Week:
    """One stock at one forecast date.

    Attributes:
        ticker: the stock.
        date: the forecast date, written as 2015-10-04.
        cutoff: the moment up to which everything shown was known, UTC.
        weeks: the past weeks, oldest first.
        profile: name, sector and the like.
        reported: end of the period that ``financials`` are of; '' where none are known.
        financials: basic figures by name.
        rebased: the prices are an index that starts at 100.
        change: total return of the next week as a ratio; None where it is not known yet.
    """

    ticker: str
    date: str
    cutoff: datetime
    weeks: tuple[PastWeek, ...]
    profile: Mapping[str, str] = field(default_factory=dict)
    reported: str = ""
    reported_known: datetime | None = None
    financials: Mapping[str, Any] = field(default_factory=dict)
    rebased: bool = False
    change: float | None = None

    @property
    def label(self) -> str | None:
        """The bin of the next week's return."""
        return None if self.change is None else bin_of(self.change)

    @property
    def shown(self) -> dict[str, Any]:
        """Everything but the outcome."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name != "change"}


def build_weeks(
    history: History, dates: Iterable[date], options: WeekOptions, dropped: Counter[str], *, need_outcome: bool = True
) -> Iterator[Week]:
    """The weeks of one stock; dates that give none are counted in ``dropped`` by reason."""
    for forecast_date in dates:
        found = build_week(history, forecast_date, options)
        if isinstance(found, str):
            dropped[found] += 1
        elif found.change is None and need_outcome:
            dropped["weeks whose next week has no price"] += 1
        elif sum(len(past.news) for past in found.weeks) < options.least_news:
            dropped[f"weeks with fewer than {options.least_news} headlines in sight"] += 1
        else:
            yield found


def build_week(history: History, forecast_date: date, options: WeekOptions) -> Week | str:
    """One stock at one date, or why there is none."""
    if not history.member_from <= str(forecast_date) <= (history.member_to or LAST):
        return "weeks in which the stock was not in its index"
    moment = cutoff(forecast_date)
    past = history.until(cutoff_day(forecast_date), moment)
    weeks = _past_weeks(past, forecast_date, options)
    if isinstance(weeks, str):
        return weeks
    report = past.reports[-1] if past.reports else None
    return Week(
        ticker=history.ticker,
        date=str(forecast_date),
        cutoff=moment,
        weeks=weeks,
        profile=dict(past.profile),
        reported=report.period if report else "",
        reported_known=report.known if report else None,
        financials=dict(report.figures) if report else {},
        rebased=history.prices.rebased,
        change=next_return(history.prices, forecast_date),
    )


def next_return(prices: PriceHistory, forecast_date: date) -> float | None:
    """Total return from the close at the forecast date to that a week later, as a ratio; None where one is missing.

    FinGPT takes the same: adjusted closes at the ends of calendar weeks.
    """
    start, end = cutoff_day(forecast_date), cutoff_day(forecast_date + WEEK)
    known = prices.until(end)
    first, last = _last_day(known.until(start), start), _last_day(known, end)
    if first is None or last is None or first == last:
        return None
    path_D = known_path(known.between(first, last))
    return float(path_D[-1] / path_D[0] - 1)


def _past_weeks(past: History, forecast_date: date, options: WeekOptions) -> tuple[PastWeek, ...] | str:
    ends = [forecast_date - number * WEEK for number in range(options.past_weeks, -1, -1)]
    days = [_last_day(past.prices.until(cutoff_day(end)), cutoff_day(end)) for end in ends]
    if any(day is None for day in days):
        return "weeks without a price at the end of each week in sight"
    found = [day for day in days if day is not None]
    window = past.prices.between(found[0], found[-1])
    path_D = known_path(window)
    if window.rebased:
        path_D = 100 * path_D / path_D[0]
    level = {day: round(float(price), 2) for day, price in zip(window.days, path_D, strict=True)}
    return tuple(
        PastWeek(
            start=str(start),
            end=str(end),
            first=level[first],
            last=level[last],
            first_day=first,
            last_day=last,
            **_drawn_news(past, start, end, options),
        )
        for start, end, first, last in zip(ends, ends[1:], found, found[1:], strict=False)
    )


def _last_day(prices: PriceHistory, session: str) -> str | None:
    """The last day with a price, None where it is too long before ``session``."""
    if not prices.days:
        return None
    late = (date.fromisoformat(session) - date.fromisoformat(prices.days[-1])).days
    return prices.days[-1] if late <= MOST_DAYS_WITHOUT_PRICE else None


def _drawn_news(past: History, start: date, end: date, options: WeekOptions) -> dict[str, Any]:
    """A draw of the week's headlines in the order of publication.

    The draw depends on the ticker, the week and the week's own headlines, so that nothing later can change it.
    """
    first, last = (bisect_right(past.news, cutoff(day), key=lambda one: one.published) for day in (start, end))
    week = past.news[first:last]
    told = _told_once(week)
    seed = hashlib.sha256(f"{past.ticker} {period_of(start)}".encode()).digest()
    chosen = sorted(random.Random(seed).sample(range(len(told)), min(len(told), options.news_per_week)))
    shortened = tuple(
        News(one.published, one.headline, one.summary[: options.summary_characters])
        for one in (told[number] for number in chosen)
    )
    return {"news": shortened, "n_news": len(week)}


def _told_once(news: Sequence[News]) -> list[News]:
    """The first of each headline; repeats, such as retweets, would crowd out the others."""
    first: dict[str, News] = {}
    for one in news:
        first.setdefault(_told(one.headline), one)
    return list(first.values())


@lru_cache(1 << 16)
def _told(headline: str) -> str:
    return normalise_text(headline) or headline
