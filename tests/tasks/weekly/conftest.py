"""Histories made up by a seed: random prices with splits and dividends, news at random times."""

from datetime import UTC, date, datetime, timedelta

import numpy as np
import pytest
from tests.public_data import FOLDER, public_data

from fintune.tasks.weekly import History, News, PriceHistory, Report
from fintune.tasks.weekly.calendar import sessions

FIRST = date(2015, 1, 5)


@pytest.fixture
def shared_data():
    public_data()
    return FOLDER


def trading_days(number, first=FIRST):
    days = sessions().days
    start = sessions().last_on(first)
    return days[start : start + number]


def some_history(seed=3, n_days=60, n_news=80, *, rebased=False):
    """About three months of a stock that splits and pays dividends."""
    draw = np.random.default_rng(seed)
    days = trading_days(n_days)
    close = np.round(50 * np.cumprod(1 + draw.normal(0, 0.02, n_days)), 2)
    splits, dividends = np.ones(n_days), np.zeros(n_days)
    splits[draw.integers(1, n_days, 2)] = draw.choice([2.0, 3.0, 0.5], 2)
    dividends[draw.integers(1, n_days, 3)] = draw.choice([0.25, 0.5], 3)
    start = datetime(2015, 1, 5, tzinfo=UTC)
    minutes = sorted(int(value) for value in draw.integers(0, n_days * 24 * 60 * 7 // 5, n_news))
    news = tuple(
        News(start + timedelta(minutes=minute), f"Headline {number} of {seed}", f"Summary {number}")
        for number, minute in enumerate(minutes)
    )
    reports = tuple(
        Report(start + timedelta(days=30 * number), f"2014-{number + 9}-30", {"eps": round(float(draw.normal()), 4)})
        for number in range(1, 4)
    )
    prices = PriceHistory.adjusted(days, close) if rebased else PriceHistory(days, close, splits, dividends)
    return History("ABC", prices, news, {"name": "Abc Inc", "sector": "Energy"}, reports)
