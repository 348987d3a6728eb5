"""A model's distributions over the bins of the next day's change, for the same ticker-days as every other model's.

Enters: a table of days, the bins and a split. Leaves: ``Targets``, what is forecast, and ``Forecasts`` of one model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from fintune.forecasting.quant.days import DayTable
from fintune.metrics.classification import Floats, Ints
from fintune.schema.errors import DataError
from fintune.sources.quant.codec import CHANGE, Codec

_MONDAY = np.datetime64("1970-01-05", "D")


@dataclass(frozen=True)
class Targets:
    """The ticker-days that are forecast.

    Attributes:
        days: all days of all tickers, for what came before.
        rows: (N,) rows of ``days`` that are forecast.
        edges: (E,) inner edges of the bins of a change in units of the expected volatility.
    """

    days: DayTable
    rows: Ints
    edges: Floats

    @property
    def n_bins(self) -> int:
        """How many bins a change has."""
        return len(self.edges) + 1

    @property
    def code(self) -> Ints:
        """(N,) bins that came true."""
        code: Ints = self.days.codes[self.rows, CHANGE]
        return code

    @property
    def volatility(self) -> Floats:
        """(N,) sizes expected the day before."""
        return self.days.volatility[self.rows]

    @property
    def change(self) -> Floats:
        """(N,) what happened."""
        return self.days.change[self.rows]

    @property
    def log_edges(self) -> Floats:
        """(N, E) inner edges as log returns."""
        return self.edges[None] * self.volatility[:, None]

    @property
    def day(self) -> Ints:
        """(N,) number of the date, by which statistics cluster: the tickers of a day move together."""
        day: Ints = np.unique(self.days.dates[self.rows], return_inverse=True)[1].astype(np.int64)
        return day

    @property
    def week(self) -> Ints:
        """(N,) number of the week, Monday to Sunday, for a second look where the days of a week resemble each other."""
        weeks = (self.days.dates[self.rows].astype("datetime64[D]") - _MONDAY) // np.timedelta64(7, "D")
        week: Ints = np.unique(weeks, return_inverse=True)[1].astype(np.int64)
        return week


@dataclass(frozen=True)
class Forecasts:
    """One model's distributions.

    Attributes:
        name: of the model, as people read it.
        probabilities: (N, K).
        chosen: what was chosen on validation days, in words; empty where nothing was.
        counts: what went wrong, by what.
    """

    name: str
    probabilities: Floats
    chosen: str = ""
    counts: Mapping[str, float] = field(default_factory=dict)


def targets_of(days: DayTable, codec: Codec, split: str) -> Targets:
    """Every ticker-day of a split.

    Raises:
        DataError: it has none.
    """
    rows = np.flatnonzero(days.in_split(split))
    if not len(rows):
        raise DataError(f"The built prices have no {split} day.", "Build them again with other dates.")
    return Targets(days, rows, codec.bins["change"].edges)
