"""From a source's row to a draft of a document: its text, title, day, publisher and tickers.

Enters: rows with columns of any name. Leaves: ``Draft`` objects. Rows of one source may have different
columns: each is read by its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fintune.schema.errors import DataError
from fintune.sources.corpus.days import day_of, day_of_period
from fintune.sources.corpus.settings import CorpusSource
from fintune.sources.text import is_blank

ROLES: dict[str, tuple[str, ...]] = {
    "text": ("text", "body", "content", "article", "document", "transcript", "description", "summary"),
    "title": ("title", "headline", "headlines"),
    "date": (
        *("date", "published", "published_at", "publisheddate", "published_date", "publication_date", "pubdate"),
        *("datetime", "created_at", "time", "timestamp"),
    ),
    "source": ("source", "publisher"),
    "ticker": ("ticker", "tickers", "symbol", "symbols"),
}
"""Names that a column of each role is looked for under, in this order, whatever their case."""

_TICKER = re.compile(r"[A-Z0-9][A-Z0-9.\-]{0,14}")


@dataclass(frozen=True)
class Draft:
    """A document on its way.

    Attributes:
        text: the body.
        title: headline, '' without one.
        date: such as 2024-01-31, '' where it is not known.
        source: who published it, or the source's name.
        tickers: companies it is about, each once.
    """

    text: str
    title: str = ""
    date: str = ""
    source: str = ""
    tickers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Roles:
    """Names of the columns that each role is looked for under; of one row the first that is not blank counts."""

    text: tuple[str, ...] = ROLES["text"]
    title: tuple[str, ...] = ROLES["title"]
    date: tuple[str, ...] = ROLES["date"]
    source: tuple[str, ...] = ROLES["source"]
    ticker: tuple[str, ...] = ROLES["ticker"]


def find_roles(source: CorpusSource, columns: Iterable[str]) -> Roles:
    """The columns of a source: those it names, else all of ``ROLES``.

    Args:
        source: which may name some.
        columns: of its first rows.

    Raises:
        DataError: a named column is not there, or none holds text.
    """
    names = list(dict.fromkeys(columns))
    found: dict[str, tuple[str, ...]] = {}
    for role, usual in ROLES.items():
        asked = getattr(source, role)
        if asked is not None and asked not in names:
            raise DataError(f"{source.place} has no column {asked!r}.", f"It has {', '.join(names)}.")
        found[role] = usual if asked is None else (asked,)
    if not _present(tuple(names), found["text"]) and not _present(tuple(names), found["title"]):
        raise DataError(
            f"No column of {source.place} is known to hold text.", f"Name one: text: COLUMN; it has {', '.join(names)}."
        )
    if source.pattern is not None and (column := source.compiled_pattern()[0]) not in names:
        raise DataError(f"{source.place} has no column {column!r}, which its pattern reads.", "Correct the pattern.")
    return Roles(**found)


def draft_of(row: Mapping[str, Any], source: CorpusSource, roles: Roles) -> Draft:
    """The row as a draft; its text may be empty."""
    read = _by_pattern(row, source)
    tickers = [*_tickers(_first(row, roles.ticker)), *_tickers(read.get("ticker"))]
    return Draft(
        text=_words(_first(row, roles.text)),
        title=" ".join(_words(_first(row, roles.title)).split()),
        date=_day(row, roles.date, source.date_format) or _pattern_day(read),
        source=_words(_first(row, roles.source)).strip() or source.label,
        tickers=tuple(dict.fromkeys(tickers)),
    )


def columns_of(row: Mapping[str, Any], names: tuple[str, ...]) -> tuple[str, ...]:
    """The columns of the row that have one of the names, in the order of the names, whatever their case."""
    return _present(tuple(row), names)


@lru_cache(maxsize=1024)
def _present(columns: tuple[str, ...], names: tuple[str, ...]) -> tuple[str, ...]:
    by_lower = {column.strip().lower(): column for column in reversed(columns)}
    found = (name if name in columns else by_lower.get(name) for name in names)
    return tuple(dict.fromkeys(column for column in found if column is not None))


def _first(row: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((row[column] for column in columns_of(row, names) if not is_blank(row[column])), None)


def _day(row: Mapping[str, Any], names: tuple[str, ...], date_format: str | None) -> str:
    """Of the first column that has a day; another may hold only the time of day."""
    days = (day_of(row[column], date_format) for column in columns_of(row, names))
    return next((day for day in days if day), "")


def _by_pattern(row: Mapping[str, Any], source: CorpusSource) -> dict[str, str | None]:
    if source.pattern is None:
        return {}
    column, pattern = source.compiled_pattern()
    match = pattern.search(_words(row.get(column)))
    return match.groupdict() if match else {}


def _pattern_day(read: Mapping[str, str | None]) -> str:
    """The named day, or one by which the results of the named quarter or year were out."""
    if read.get("date"):
        return day_of(read["date"])
    year = read.get("year")
    return day_of_period(year, read.get("quarter")) if year else ""


def _tickers(value: Any) -> list[str]:
    if is_blank(value):
        return []
    parts = value if isinstance(value, (list, tuple)) else re.split(r"[\s,;|]+", str(value))
    words = (str(part).strip().upper().removeprefix("$") for part in parts)
    return [word for word in words if _TICKER.fullmatch(word)]


def _words(value: Any) -> str:
    return "" if is_blank(value) else str(value)
