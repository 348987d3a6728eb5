"""From a price table to a folder that a model trains on and forecasts are scored with.

::

    quant.json            bins, dates, counts
    days.parquet          a row for each ticker and day
    tokens/train.jsonl    a document for each ticker; validation and test beside it
    lines/train.jsonl     the same days as lines of words
    untrained/            a GPT that has read nothing, with the tokenizer of the tokens
    recipe.yaml           trains it: fintune train DIR/recipe.yaml

Enters: prices and ``BuildSettings``. Leaves: the folder, and ``BuildFacts``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from fintune.forecasting.quant.days import SPLITS, DayTable, day_table, write_days
from fintune.forecasting.quant.starting import price_data, write_recipe, write_start
from fintune.schema.errors import DataError
from fintune.schema.run_directory import write_json, write_text_atomically, writing
from fintune.sources.quant.bars import BarTable, Days, Floats, read_bars
from fintune.sources.quant.codec import CALENDAR, CHANGE, FIELDS, Codec
from fintune.sources.quant.lines import day_lines
from fintune.sources.quant.moves import EVENTS, WARM_UP, Moves, moves_of

FACTS = "quant.json"
DAYS = "days.parquet"
_SHARES = (0.7, 0.85)
_GAPS = ("after the session before", "after a longer rest", "one missed", "two to four missed", "five or more missed")
_TAIL = 5.0  # a change this many times the expected size lies in an outer bin, whose centre says little of it


@dataclass(frozen=True)
class BuildSettings:
    """What is taken of the prices, and the shape of the GPT to start from.

    Attributes:
        tickers: names to take; None for all.
        limit: take at most so many, chosen by a hash of their names, whatever became of them.
        validation_from: first day of validation; None after 70 % of the sessions.
        test_from: first day of test; None after 85 %.
        least_days: a ticker with fewer training days is left out.
        window_days: days a training block holds.
        layers: of the GPT.
        width: of the GPT.
        seed: of its first weights.
    """

    tickers: tuple[str, ...] | None = None
    limit: int | None = None
    validation_from: date | None = None
    test_from: date | None = None
    least_days: int = 250
    window_days: int = 32
    layers: int = 4
    width: int = 64
    seed: int = 17


@dataclass(frozen=True)
class BuildFacts:
    """What came of the prices.

    Attributes:
        tickers: how many.
        days: ticker-days by split.
        sessions: distinct dates by split.
        first_validation: first date of validation.
        first_test: first date of test.
        rows: rows of the price table.
        dropped_rows: rows left out, by reason.
        dropped_tickers: tickers left out, by reason.
        warm_up_days: days that only fed a first volatility.
        gaps: days by what lies between them and the day before.
        events: days by what adjusted prices.
        adjusted: whether the table knows splits and dividends.
        vocabulary: words of the tokens.
        change_rmse: root mean squared error of changes as decoded, over their root mean square.
        change_rmse_inner: the same without changes beyond 5 expected sizes; ``change_tail`` is how many those are.
        change_tail: see there.
    """

    tickers: int
    days: dict[str, int]
    sessions: dict[str, int]
    first_validation: str
    first_test: str
    rows: int
    dropped_rows: dict[str, int]
    dropped_tickers: dict[str, int]
    warm_up_days: int
    gaps: dict[str, int]
    events: dict[str, int]
    adjusted: bool
    vocabulary: int
    change_rmse: float
    change_rmse_inner: float
    change_tail: int


def build(prices: str | Path, folder: str | Path, settings: BuildSettings) -> BuildFacts:
    """Reads prices and writes the folder.

    Raises:
        DataError: the prices cannot be read, or too few days are left in a split.
        RunError: the folder cannot be written.
    """
    place = Path(folder)
    if (place / FACTS).exists():
        raise DataError(f"{place} holds built data already.", "Choose another folder, or remove this one.")
    table = read_bars(prices)
    borders = split_dates(table.sessions, settings)
    moves, dropped = _moves(table, settings, borders[0])
    codec = Codec.fitted([one.only(one.dates < np.datetime64(borders[0])) for one in moves.values()])
    days = day_table(moves, codec, *borders)
    facts = _facts(table, days, codec, dropped, borders)
    with writing(place):
        place.mkdir(parents=True, exist_ok=True)
        write_days(place / DAYS, days)
        _write_documents(place, days, codec, moves)
        known_by = price_data(codec, *borders)
        write_start(place, codec, settings.layers, settings.width, settings.seed, build=known_by)
        write_recipe(place, settings.window_days)
        write_json(
            place / FACTS,
            {"window_days": settings.window_days, "codec": codec.to_json(), "facts": asdict(facts)},
        )
    return facts


def read_build(folder: str | Path) -> tuple[Codec, int, dict[str, Any]]:
    """The bins, the days of a block, and the facts of a folder that ``build`` wrote.

    Raises:
        DataError: it is no such folder.
    """
    try:
        found = json.loads((Path(folder) / FACTS).read_text(encoding="utf-8"))
        return Codec.from_json(found["codec"]), int(found["window_days"]), dict(found["facts"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder} is no folder of built prices.", "Write one with fintune quant build.") from error


def split_dates(sessions: Days, settings: BuildSettings) -> tuple[date, date]:
    """First day of validation and of test, the same for all tickers.

    Raises:
        DataError: they are not in order, or a split has no session.
    """
    positions = [min(int(share * len(sessions)), len(sessions) - 1) for share in _SHARES]
    by_share: list[date] = [sessions[position].astype("datetime64[D]").item() for position in positions]
    first, second = settings.validation_from or by_share[0], settings.test_from or by_share[1]
    inner = [np.datetime64(first), np.datetime64(second)]
    counts = np.histogram(np.searchsorted(inner, sessions, side="right"), bins=range(4))[0]
    if first >= second or (counts == 0).any():
        raise DataError(
            f"Validation from {first} and test from {second} leave a split of the prices without a day.",
            f"The prices go from {sessions[0]} to {sessions[-1]}: choose two dates in order between them.",
        )
    return first, second


def _moves(table: BarTable, settings: BuildSettings, first_validation: date) -> tuple[dict[str, Moves], dict[str, int]]:
    """The moves of the tickers that are asked for and have enough training days; the others are counted."""
    dropped = {"not asked for": 0, "beyond the limit": 0, "too few training days": 0}
    asked = _asked(table.bars, settings.tickers)
    dropped["not asked for"] = len(table.bars) - len(asked)
    found = {name: moves_of(table.bars[name], table.sessions) for name in asked}
    border = np.datetime64(first_validation)
    usable = {name: one for name, one in found.items() if one and (one.dates < border).sum() >= settings.least_days}
    dropped["too few training days"] = len(asked) - len(usable)
    chosen = sorted(sorted(usable, key=_rank)[: settings.limit])
    dropped["beyond the limit"] = len(usable) - len(chosen)
    if not chosen:
        raise DataError(
            f"No ticker has {settings.least_days} training days before {first_validation}.",
            "Give longer prices, a later validation, or a smaller --least-days.",
        )
    return {name: usable[name] for name in chosen}, {reason: n for reason, n in dropped.items() if n}


def _asked(bars: Collection[str], tickers: tuple[str, ...] | None) -> list[str]:
    missing = sorted(set(tickers or ()) - set(bars))
    if missing:
        raise DataError(f"The prices have no ticker {', '.join(missing[:5])}.", "Write tickers as in the table.")
    return sorted(tickers or bars)


def _rank(name: str) -> str:
    return hashlib.sha256(f"ticker:{name}".encode()).hexdigest()


def _write_documents(place: Path, days: DayTable, codec: Codec, moves: Mapping[str, Moves]) -> None:
    for kind in ("tokens", "lines"):
        (place / kind).mkdir(exist_ok=True)
    lines = {name: [str(line) for line in day_lines(one)] for name, one in moves.items()}
    for number, split in enumerate(SPLITS):
        chosen = [np.flatnonzero(days.split[rows] == number) for rows in days.series()]
        starts = [rows.start for rows in days.series()]
        _write_split(
            place / "tokens" / f"{split}.jsonl",
            days.tickers,
            (codec.text(days.codes[start + rows]) for start, rows in zip(starts, chosen, strict=True)),
        )
        by_ticker = zip(days.tickers, chosen, strict=True)
        _write_split(
            place / "lines" / f"{split}.jsonl",
            days.tickers,
            ("\n".join(lines[name][row] for row in rows.tolist()) for name, rows in by_ticker),
        )


def _write_split(path: Path, tickers: Collection[str], texts: Iterator[str]) -> None:
    """One document for each ticker that has a day in the split."""
    named = ((name, text) for name, text in zip(tickers, texts, strict=True) if text)
    rows = (json.dumps({"id": f"{name}-{path.stem}", "ticker": name, "text": text}) for name, text in named)
    write_text_atomically(path, "".join(f"{row}\n" for row in rows))


def _facts(
    table: BarTable, days: DayTable, codec: Codec, dropped: dict[str, int], borders: tuple[date, date]
) -> BuildFacts:
    gaps = np.bincount(days.codes[:, 0], minlength=len(CALENDAR)).reshape(-1, 5).sum(0).tolist()
    events = np.bincount(days.codes[:, FIELDS.index("event")], minlength=len(EVENTS)).tolist()
    error, inner, tail = _decoding_error(days, codec)
    return BuildFacts(
        tickers=len(days.tickers),
        days=_by_split(lambda split: int(days.in_split(split).sum())),
        sessions=_by_split(lambda split: len(np.unique(days.dates[days.in_split(split)]))),
        first_validation=str(borders[0]),
        first_test=str(borders[1]),
        rows=table.rows,
        dropped_rows=dict(table.dropped),
        dropped_tickers=dropped,
        warm_up_days=(WARM_UP + 1) * len(days.tickers),
        gaps=dict(zip(_GAPS, gaps, strict=True)),
        events=dict(zip(EVENTS, events, strict=True)),
        adjusted=table.adjusted,
        vocabulary=sum(codec.sizes),
        change_rmse=error,
        change_rmse_inner=inner,
        change_tail=tail,
    )


def _by_split(count: Callable[[str], int]) -> dict[str, int]:
    return {split: count(split) for split in SPLITS}


def _decoding_error(days: DayTable, codec: Codec) -> tuple[float, float, int]:
    """What bins lose of changes: relative error of all, of those within the tail's border, and the number beyond."""
    true, size = days.change, days.volatility
    wrong = codec.bins["change"].centres[days.codes[:, CHANGE]] * size - true
    inside = np.abs(true) <= _TAIL * size
    return _relative(wrong, true), _relative(wrong[inside], true[inside]), int((~inside).sum())


def _relative(wrong: Floats, true: Floats) -> float:
    return float(np.sqrt((wrong**2).mean() / max(float((true**2).mean()), 1e-300)))
