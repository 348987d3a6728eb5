"""A day as a line of words, for language models with their ordinary tokenizers, and back.

::

    2019-03-04 Mon AAPL opened +0.31%, closed -0.50%, range 1.90% (ended at 42%), volume 1.10x, dividend

Enters: ``Moves``, or lines. Leaves: lines, or ``DayLine``. Per cents are ordinary returns, not logarithms. Reading a
line and writing it again gives the same line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date

import numpy as np

from fintune.schema.errors import DataError
from fintune.sources.quant.moves import EVENTS, Moves

_WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_LINE = re.compile(
    r"(?P<day>\d{4}-\d\d-\d\d) \w{3} (?P<ticker>.+?) opened (?P<opened>[+-]\d+\.\d\d)%, closed "
    r"(?P<closed>[+-]\d+\.\d\d)%, range (?P<spread>\d+\.\d\d)% \(ended at (?P<position>\d+)%\), "
    r"volume (?P<volume>\d+\.\d\d)x(?:, (?P<event>dividend|split))?(?:, (?P<missed>\d+) sessions? missed before)?"
)


@dataclass(frozen=True)
class DayLine:
    """One day of one ticker in round numbers.

    Attributes:
        day: the day.
        ticker: its name, on one line.
        opened: per cent from the close before to the open.
        closed: per cent from the close before to the close, dividends counted in.
        spread: per cent from low to high.
        position: per cent of the way from low to high at which it closed.
        volume: money traded over its recent mean.
        event: none, dividend or split.
        missed: sessions before it without a usable row.
    """

    day: date
    ticker: str
    opened: float
    closed: float
    spread: float
    position: int
    volume: float
    event: str = "none"
    missed: int = 0

    def __str__(self) -> str:
        event = "" if self.event == "none" else f", {self.event}"
        plural = "" if self.missed == 1 else "s"
        missed = f", {self.missed} session{plural} missed before" if self.missed else ""
        return (
            f"{self.day} {_WEEKDAYS[self.day.weekday()]} {self.ticker} opened {self.opened + 0.0:+.2f}%, "
            f"closed {self.closed + 0.0:+.2f}%, range {self.spread:.2f}% (ended at {self.position}%), "
            f"volume {self.volume:.2f}x{event}{missed}"
        )


def day_lines(moves: Moves) -> list[DayLine]:
    """A line for each day."""
    columns = zip(
        moves.dates.astype("datetime64[D]").tolist(),
        _per_cent(moves.overnight),
        _per_cent(moves.change),
        _per_cent(moves.spread),
        np.rint(100 * moves.position).astype(int).tolist(),
        np.round(np.exp(moves.turnover), 2).tolist(),
        moves.event.tolist(),
        moves.missed.tolist(),
        strict=True,
    )
    return [
        DayLine(day, moves.ticker, opened, closed, spread, position, volume, EVENTS[event], missed)
        for day, opened, closed, spread, position, volume, event, missed in columns
    ]


def parse_day_line(line: str) -> DayLine:
    """Reads a line that ``str(DayLine)`` wrote.

    Raises:
        DataError: it is no such line.
    """
    found = _LINE.fullmatch(line.strip())
    try:
        day = date.fromisoformat(found["day"]) if found else None
    except ValueError:
        day = None
    if found is None or day is None:
        raise DataError(f"This is no line of a day: {line.strip()[:80]!r}.", "Give lines of fintune quant build.")
    return DayLine(
        day=day,
        ticker=found["ticker"],
        opened=float(found["opened"]),
        closed=float(found["closed"]),
        spread=float(found["spread"]),
        position=int(found["position"]),
        volume=float(found["volume"]),
        event=found["event"] or "none",
        missed=int(found["missed"] or 0),
    )


def _per_cent(logs: np.typing.NDArray[np.float64]) -> list[float]:
    rounded: list[float] = np.round(100 * np.expm1(logs), 2).tolist()
    return rounded
