"""Daily bars made for tests."""

import numpy as np
import pandas as pd

from fintune.forecasting.quant.days import day_table
from fintune.sources.quant.bars import bars_of
from fintune.sources.quant.codec import Codec
from fintune.sources.quant.moves import moves_of


def bar_frame(n_days=320, tickers=("AA", "BB", "CC"), seed=0, start="2020-01-01"):
    """Bars on business days whose volatility changes slowly, with a dividend of AA on day 100 and one of BB on 200."""
    generator = np.random.default_rng(seed)
    days = pd.bdate_range(start, periods=n_days)
    frames = []
    for number, ticker in enumerate(tickers):
        size = 0.015 * np.exp(0.5 * np.sin(np.arange(n_days) / 20 + number))
        change = size * generator.standard_t(5, n_days)
        close = 50 * np.exp(np.cumsum(change))
        first = close * np.exp(-change * generator.uniform(0.2, 0.8, n_days))
        top = np.maximum(first, close) * (1 + size * generator.uniform(0, 1, n_days))
        bottom = np.minimum(first, close) * (1 - size * generator.uniform(0, 1, n_days))
        volume = np.exp(generator.normal(12, 0.4, n_days))
        paid = np.where(np.arange(n_days) >= 100 * (number + 1), 1.0, 0.99)
        frames.append(pd.DataFrame({
            "Symbol": ticker, "Date": days, "Open": first, "High": top, "Low": bottom, "Close": close,
            "Adj Close": close * paid, "Volume": volume,
        }))  # fmt: skip
    return pd.concat(frames, ignore_index=True)


def all_moves(frame):
    table = bars_of(frame)
    return {name: moves_of(bars, table.sessions) for name, bars in table.bars.items()}


def made_days(frame=None, n_days=320, **options):
    """A table of days with its codec: validation from 60 %, test from 80 % of the dates."""
    moves = all_moves(bar_frame(n_days, **options) if frame is None else frame)
    dates = np.unique(np.concatenate([one.dates for one in moves.values()]))
    borders = [dates[int(share * len(dates))].item() for share in (0.6, 0.8)]
    codec = Codec.fitted([one.only(one.dates < np.datetime64(borders[0])) for one in moves.values()])
    return day_table(moves, codec, *borders), codec
