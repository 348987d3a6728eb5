"""A day as eight tokens, and back.

::

    tue.next  s3  | r17 o5 h7 c6 v2 a.none
    known before  | what the day brought; r, the change from close to close, comes first, so that a model's
    the day       | distribution of it depends on nothing but what was known before

Enters: ``Moves``. Leaves: codes ``(D, 8)``, a bin for each field, and their words. Edges of bins are quantiles of
the training days; the centre of a bin is the median of what fell into it, which is what decoding gives back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fintune.schema.errors import DataError
from fintune.sources.quant.bars import Floats
from fintune.sources.quant.moves import EVENTS, Ints, Moves

FIELDS = ("calendar", "level", "change", "overnight", "spread", "position", "turnover", "event")
"""The tokens of a day, in order; the first ``KNOWN`` are known the day before."""
KNOWN = 2
CHANGE = FIELDS.index("change")
BINS = {"level": 8, "change": 32, "overnight": 12, "spread": 12, "position": 8, "turnover": 8}
_LETTERS = {"level": "s", "change": "r", "overnight": "o", "spread": "h", "position": "c", "turnover": "v"}
_WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_GAPS = ("next", "rest", "gap1", "gap2", "gap5")
"""The session after; after more than a weekend's rest; 1, 2 to 4, and 5 or more sessions missed."""
CALENDAR = tuple(f"{weekday}.{gap}" for weekday in _WEEKDAYS for gap in _GAPS)
_EVENT_WORDS = tuple(f"a.{event}" for event in EVENTS)
_OUTERMOST = 2.9
_MONDAY = np.datetime64("1970-01-05", "D")


@dataclass(frozen=True)
class Bins:
    """A number cut into ``K`` bins: ``edges`` ``(K - 1,)`` ascending, ``centres`` ``(K,)``."""

    edges: Floats
    centres: Floats

    def __len__(self) -> int:
        return len(self.centres)

    def index(self, values: Floats) -> Ints:
        """The bin of each value; one that equals an edge is in the bin above."""
        return np.searchsorted(self.edges, values, side="right").astype(np.int64)

    @classmethod
    def fitted(cls, values: Floats, levels: Floats) -> Bins:
        """Bins whose edges are the quantiles of ``values`` at ``levels``; edges that coincide become one."""
        edges = np.unique(np.quantile(values, levels))
        found = np.searchsorted(edges, values, side="right")
        middles = np.concatenate([edges[:1], (edges[1:] + edges[:-1]) / 2, edges[-1:]])
        centres = [np.median(values[found == k]) if (found == k).any() else middles[k] for k in range(len(edges) + 1)]
        return cls(edges, np.array(centres))


@dataclass(frozen=True)
class Codec:
    """The bins of every field that has some; calendar and events are words of their own."""

    bins: Mapping[str, Bins]

    @classmethod
    def fitted(cls, moves: Sequence[Moves]) -> Codec:
        """Bins from training days of all tickers together."""
        values = [scaled(one) for one in moves]
        pooled = {name: np.concatenate([one[name] for one in values]) for name in BINS}
        return cls({name: Bins.fitted(pooled[name], levels(name)) for name in BINS})

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many codes each field has."""
        fixed = {"calendar": len(CALENDAR), "event": len(EVENTS)}
        return tuple(fixed[name] if name in fixed else len(self.bins[name]) for name in FIELDS)

    @property
    def words(self) -> tuple[tuple[str, ...], ...]:
        """For each field the words of its codes; no word is in two fields."""
        named = {"calendar": CALENDAR, "event": _EVENT_WORDS}
        return tuple(
            named[name] if name in named else tuple(f"{_LETTERS[name]}{k}" for k in range(size))
            for name, size in zip(FIELDS, self.sizes, strict=True)
        )

    def encode(self, moves: Moves) -> Ints:
        """Codes ``(D, 8)``."""
        values = scaled(moves)
        columns = {name: bins.index(values[name]) for name, bins in self.bins.items()}
        columns |= {"calendar": _calendar(moves), "event": moves.event}
        return np.stack([columns[name] for name in FIELDS], axis=1)

    def decode(self, codes: Ints) -> dict[str, Floats]:
        """The centres of the bins, each ``(D,)``, by field; changes, opens and spreads in units of the volatility."""
        return {name: bins.centres[codes[:, FIELDS.index(name)]] for name, bins in self.bins.items()}

    def recode(self, values: Mapping[str, Floats], codes: Ints) -> Ints:
        """Codes of scaled values; calendar and events, which are words of their own, are taken from ``codes``."""
        columns = {name: bins.index(values[name]) for name, bins in self.bins.items()}
        return np.stack([columns.get(name, codes[:, place]) for place, name in enumerate(FIELDS)], axis=1)

    def text(self, codes: Ints) -> str:
        """The words of all days, with blanks between."""
        words = self.words
        return " ".join(words[place][code] for day in codes.tolist() for place, code in enumerate(day))

    def parse(self, text: str) -> Ints:
        """The codes of words.

        Raises:
            DataError: a word is unknown, at the wrong place of its day, or the last day is incomplete.
        """
        places = [{word: code for code, word in enumerate(words)} for words in self.words]
        codes = []
        for position, word in enumerate(text.split()):
            code = places[position % len(FIELDS)].get(word)
            if code is None:
                field = FIELDS[position % len(FIELDS)]
                raise DataError(f"Word {position + 1} ({word}) is no {field} token.", "Days are eight tokens in order.")
            codes.append(code)
        if len(codes) % len(FIELDS):
            raise DataError(f"The last day has {len(codes) % len(FIELDS)} of 8 tokens.", "Give whole days.")
        return np.array(codes, np.int64).reshape(-1, len(FIELDS))

    def to_json(self) -> dict[str, Any]:
        """Edges and centres by field."""
        return {name: {"edges": one.edges.tolist(), "centres": one.centres.tolist()} for name, one in self.bins.items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Codec:
        """The codec that ``to_json`` wrote."""
        return cls({name: Bins(np.array(value[name]["edges"]), np.array(value[name]["centres"])) for name in BINS})


def levels(name: str) -> Floats:
    """The quantiles at which a field is cut: equal shares, but for changes, whose tails are told apart.

    Their levels are those that would cut a normal distribution at equal distances, from 0.19 % to 99.81 %.
    """
    from scipy.special import ndtr

    if name == "change":
        normal: Floats = ndtr(np.linspace(-_OUTERMOST, _OUTERMOST, BINS[name] - 1))
        return normal
    return np.arange(1, BINS[name]) / BINS[name]


def scaled(moves: Moves) -> dict[str, Floats]:
    """What is cut into bins, each ``(D,)``: moves in units of the volatility that was expected."""
    return {
        "level": np.log(moves.volatility),
        "change": moves.change / moves.volatility,
        "overnight": moves.overnight / moves.volatility,
        "spread": moves.spread / moves.volatility,
        "position": moves.position,
        "turnover": moves.turnover,
    }


def _calendar(moves: Moves) -> Ints:
    weekday = (moves.dates - _MONDAY).astype(np.int64) % len(_WEEKDAYS)
    missed = np.searchsorted([1, 2, 5], moves.missed, side="right")  # 0: none
    gap = np.where(missed > 0, missed + 1, moves.rested.astype(np.int64))
    return (weekday * len(_GAPS) + gap).astype(np.int64)
