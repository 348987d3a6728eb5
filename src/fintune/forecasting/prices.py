"""Daily prices as two tables, opens and closes, by session and stock; adjusted where the file says how.

Enters: a file with a row for each stock and day. Leaves: ``Prices``, with what was left out.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fintune.schema.errors import DataError
from fintune.sources import read_file

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = {
    "symbol": ("symbol", "ticker", "name"),
    "date": ("date", "day"),
    "open": ("open",),
    "close": ("close",),
    "adjusted": ("adjclose", "adjustedclose"),
}


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
    import pandas as pd

    file = Path(path)
    if file.suffix == ".parquet" and file.is_file():
        try:
            frame = pd.read_parquet(file)
        except (OSError, ValueError) as error:
            raise DataError(f"The price table {file} cannot be read.", "Check that it is a complete file.") from error
    else:
        frame = pd.DataFrame(list(read_file(file).rows))
    return prices_of(frame, str(file))


def prices_of(frame: pd.DataFrame, source: str = "data frame") -> Prices:
    """The prices of a frame with a row for each stock and day; see ``read_prices``."""
    import pandas as pd

    table = _named(frame, source)
    try:
        table["date"] = _days(table["date"])
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"The price table {source} has a date that cannot be read.", "Write dates as 2024-02-25."
        ) from error
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


def _days(dates: pd.Series[Any]) -> pd.Series[Any]:
    """Days as they are where the stock trades: written times may have offsets that change with summer time."""
    import pandas as pd

    if not pd.api.types.is_datetime64_any_dtype(dates):
        dates = pd.to_datetime(dates.astype(str).str[: len("2024-02-25")], format="ISO8601")
    days: pd.Series[Any] = dates.dt.tz_localize(None).dt.normalize()
    return days


def _named(frame: pd.DataFrame, source: str) -> pd.DataFrame:
    """The columns that are needed, under our names."""
    given = {"".join(filter(str.isalpha, str(name).lower())): name for name in frame.columns}
    found = {ours: next((given[name] for name in names if name in given), None) for ours, names in _COLUMNS.items()}
    missing = [ours for ours, column in found.items() if column is None and ours != "adjusted"]
    if missing:
        raise DataError(
            f"The price table {source} has no column {missing[0]}.",
            "It needs symbol (or ticker), date, open and close; an adjusted close is used where there is one.",
        )
    table = frame[[column for column in found.values() if column is not None]]
    return table.set_axis([ours for ours, column in found.items() if column is not None], axis=1).copy()
