"""Daily prices as two tables, opens and closes, by session and stock; adjusted where the file says how.

Enters: a file with a row for each stock and day. Leaves: ``Prices``, with what was left out.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fintune.schema.errors import DataError
from fintune.sources.price_tables import price_columns, read_price_frame

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = {
    "symbol": ("symbol", "ticker", "name"),
    "date": ("date", "day"),
    "open": ("open",),
    "close": ("close",),
    "adjusted": ("adjclose", "adjustedclose"),
}
_NEEDS = "It needs symbol (or ticker), date, open and close; an adjusted close is used where there is one."


@dataclass(frozen=True)
class Prices:
    """Prices by session (rows, ascending dates) and stock (columns); NaN where there was no trade.

    Attributes:
        opens: first price of each session.
        closes: last price.
        adjusted: whether both are adjusted for splits and dividends; otherwise a split looks like a crash.
        dropped: rows that had no usable price, or repeated a day of a stock.
    """

    opens: pd.DataFrame
    closes: pd.DataFrame
    adjusted: bool
    dropped: int = 0

    def only(self, symbols: Collection[str]) -> Prices:
        """The same sessions, of these stocks as far as they are here."""
        kept = [symbol for symbol in self.opens.columns if symbol in symbols]
        return replace(self, opens=self.opens[kept], closes=self.closes[kept])

    @property
    def sessions(self) -> pd.DatetimeIndex:
        """Days on which any stock has a price."""
        import pandas as pd

        return pd.DatetimeIndex(self.opens.index)


def read_prices(path: str | Path) -> Prices:
    """Reads symbol (or ticker, name), date, open, close and, where there is one, adjusted close.

    Raises:
        DataError: the file cannot be read, lacks a column, or has no usable row.
    """
    return prices_of(read_price_frame(path), str(path))


def prices_of(frame: pd.DataFrame, source: str = "data frame") -> Prices:
    """The prices of a frame with a row for each stock and day; see ``read_prices``."""
    import pandas as pd

    table = price_columns(frame, source, _COLUMNS, ("adjusted",), _NEEDS)
    numbers = [name for name in ("open", "close", "adjusted") if name in table]
    for name in numbers:
        table[name] = pd.to_numeric(table[name], errors="coerce").astype(np.float64)
    values = table[numbers].to_numpy(np.float64)
    usable = table[(np.isfinite(values) & (values > 0)).all(axis=1)].drop_duplicates(["symbol", "date"])
    if usable.empty:
        raise DataError(f"The price table {source} has no row with prices.", "It needs an open and a close above 0.")
    if "adjusted" in table:
        usable = usable.assign(open=usable["open"] * usable["adjusted"] / usable["close"], close=usable["adjusted"])
    opens, closes = (usable.pivot(index="date", columns="symbol", values=name) for name in ("open", "close"))
    return Prices(opens, closes, "adjusted" in table, len(table) - len(usable))
