"""Daily bars of each ticker: open, high, low, close, volume, and the factor that adjusts for splits and dividends.

Enters: a table with a row for each ticker and day. Leaves: ``BarTable``, with what was left out counted by reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fintune.schema.errors import DataError
from fintune.sources.price_tables import price_columns, read_price_frame

if TYPE_CHECKING:
    import pandas as pd

Floats = npt.NDArray[np.float64]
Days = npt.NDArray[np.datetime64]
_COLUMNS = {
    "ticker": ("symbol", "ticker", "name"),
    "date": ("date", "day"),
    "open": ("open",),
    "high": ("high",),
    "low": ("low",),
    "close": ("close",),
    "volume": ("volume",),
    "adjusted": ("adjclose", "adjustedclose"),
}
_NEEDS = "It needs ticker (or symbol), date, open, high, low, close and volume; an adjusted close where there is one."
_ROUNDING = 1e-4
"""Prices are rounded, so an open may lie this share outside of the day's range."""


@dataclass(frozen=True)
class Bars:
    """One ticker's days in ascending order, each array ``(D,)``; prices as they stand in the table.

    Attributes:
        ticker: its name.
        dates: the days on which it traded.
        open: first price.
        high: highest price.
        low: lowest price.
        close: last price.
        volume: shares traded.
        factor: adjusted close over close; 1 where the table has no adjusted close.
    """

    ticker: str
    dates: Days
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    volume: Floats
    factor: Floats


@dataclass(frozen=True)
class BarTable:
    """All tickers of a table.

    Attributes:
        bars: by ticker, in the order of their names.
        sessions: the days on which any of them traded.
        adjusted: whether the table knows splits and dividends; without it a split is a large move like any other.
        rows: rows of the table.
        dropped: rows that were left out, by reason.
    """

    bars: Mapping[str, Bars]
    sessions: Days
    adjusted: bool
    rows: int
    dropped: Mapping[str, int]


def read_bars(path: str | Path) -> BarTable:
    """Reads ticker (or symbol, name), date, open, high, low, close, volume and, where there is one, adjusted close.

    Raises:
        DataError: the file cannot be read, lacks a column, or has no usable row.
    """
    return bars_of(read_price_frame(path), str(path))


def bars_of(frame: pd.DataFrame, source: str = "data frame") -> BarTable:
    """The bars of a frame with a row for each ticker and day; see ``read_bars``."""
    import pandas as pd

    table = price_columns(frame, source, _COLUMNS, ("adjusted",), _NEEDS)
    adjusted = "adjusted" in table
    for name in table.columns.difference(["ticker", "date"]):
        table[name] = pd.to_numeric(table[name], errors="coerce").astype(np.float64)
    if not adjusted:
        table["adjusted"] = table["close"]
    usable, dropped = _usable(table)
    if usable.empty:
        raise DataError(f"The price table {source} has no usable row.", "It needs prices and volumes above 0.")
    usable = usable.assign(ticker=usable["ticker"].astype(str)).sort_values(["ticker", "date"])
    bars = {str(ticker): _bars(str(ticker), rows) for ticker, rows in usable.groupby("ticker", sort=True)}
    sessions = np.unique(usable["date"].to_numpy().astype("datetime64[D]"))
    return BarTable(bars, sessions, adjusted, len(table), dropped)


def _usable(table: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """Rows that pass every check, and how many fail which first."""
    prices = table[["open", "high", "low", "close", "adjusted"]].to_numpy(np.float64)
    first, low, high, last = (table[name] for name in ("open", "low", "high", "close"))
    slack = _ROUNDING * high
    checks = {
        "without ticker or date": table["ticker"].notna() & table["date"].notna(),
        "without a price above 0": (np.isfinite(prices) & (prices > 0)).all(axis=1),
        "without volume": table["volume"] > 0,
        "open or close outside of low and high": (first.clip(upper=last) >= low - slack)
        & (first.clip(lower=last) <= high + slack),
    }
    dropped: Counter[str] = Counter()
    kept = np.ones(len(table), np.bool_)
    for reason, passes in checks.items():
        failing = kept & ~np.asarray(passes)
        dropped[reason] += int(failing.sum())
        kept &= ~failing
    table = table[kept]
    once = table.drop_duplicates(["ticker", "date"])
    dropped["repeats a day of its ticker"] += len(table) - len(once)
    return once, dict(+dropped)


def _bars(ticker: str, rows: pd.DataFrame) -> Bars:
    columns = {name: rows[name].to_numpy(np.float64) for name in ("open", "high", "low", "close", "volume")}
    dates = rows["date"].to_numpy().astype("datetime64[D]")
    return Bars(ticker, dates, factor=rows["adjusted"].to_numpy(np.float64) / columns["close"], **columns)
