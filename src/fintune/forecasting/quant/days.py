"""All tickers' days in one table: tokens, changes, volatilities, and the split by date that all tickers share.

Enters: moves and two dates. Leaves: ``DayTable``, also to and from a Parquet file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fintune.schema.errors import DataError
from fintune.schema.run_directory import writing
from fintune.sources.quant.bars import Days, Floats
from fintune.sources.quant.codec import FIELDS, Codec
from fintune.sources.quant.moves import Ints, Moves

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class DayTable:
    """Rows sorted by ticker, then date; each array has a row for each ticker and day.

    Attributes:
        tickers: their names.
        ticker: (D,) position in ``tickers``.
        dates: (D,).
        split: (D,) position in ``SPLITS``.
        change: (D,) log return.
        volatility: (D,) its size as expected the day before.
        codes: (D, 8) tokens.
    """

    tickers: tuple[str, ...]
    ticker: Ints
    dates: Days
    split: Ints
    change: Floats
    volatility: Floats
    codes: Ints

    def __len__(self) -> int:
        return len(self.dates)

    def in_split(self, split: str) -> npt.NDArray[np.bool_]:
        """(D,) which rows belong to a split."""
        chosen: npt.NDArray[np.bool_] = self.split == SPLITS.index(split)
        return chosen

    def series(self) -> Iterator[slice]:
        """The rows of each ticker."""
        ends = np.searchsorted(self.ticker, np.arange(len(self.tickers) + 1))
        yield from (slice(int(start), int(stop)) for start, stop in zip(ends[:-1], ends[1:], strict=True))


def day_table(moves: Mapping[str, Moves], codec: Codec, first_validation: date, first_test: date) -> DayTable:
    """The table of all moves; validation and test begin at these dates."""
    ones = list(moves.values())
    dates = np.concatenate([one.dates for one in ones]).astype("datetime64[D]")
    borders = np.array([first_validation, first_test], "datetime64[D]")
    return DayTable(
        tickers=tuple(moves),
        ticker=np.repeat(np.arange(len(ones)), [len(one) for one in ones]),
        dates=dates,
        split=np.searchsorted(borders, dates, side="right").astype(np.int64),
        change=np.concatenate([one.change for one in ones]),
        volatility=np.concatenate([one.volatility for one in ones]),
        codes=np.concatenate([codec.encode(one) for one in ones]),
    )


def write_days(path: Path, table: DayTable) -> None:
    """Writes the table as Parquet, a row for each ticker and day."""
    import pandas as pd

    columns = {
        "ticker": np.array(table.tickers)[table.ticker],
        "date": table.dates.astype("datetime64[s]"),
        "split": np.array(SPLITS)[table.split],
        "log_return": table.change,
        "volatility": table.volatility,
        **{name: table.codes[:, place] for place, name in enumerate(FIELDS)},
    }
    with writing(path):
        pd.DataFrame(columns).to_parquet(path, index=False)


def read_days(path: Path) -> DayTable:
    """The table that ``write_days`` wrote.

    Raises:
        DataError: it is not there, or something else.
    """
    import pandas as pd

    try:
        frame = pd.read_parquet(path)
        names, ticker = np.unique(frame["ticker"].to_numpy(str), return_inverse=True)
        order = np.lexsort((frame["date"].to_numpy(), ticker))
        frame = frame.iloc[order]
        return DayTable(
            tickers=tuple(map(str, names)),
            ticker=ticker[order].astype(np.int64),
            dates=frame["date"].to_numpy().astype("datetime64[D]"),
            split=frame["split"].map(SPLITS.index).to_numpy(np.int64),
            change=frame["log_return"].to_numpy(np.float64),
            volatility=frame["volatility"].to_numpy(np.float64),
            codes=frame[list(FIELDS)].to_numpy(np.int64),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no table of days.", "Write it with fintune quant build.") from error
