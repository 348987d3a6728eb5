"""From a source's row to a draft of a document: its text, title, day, publisher and tickers.

Enters: rows with columns of any name. Leaves: ``Draft`` objects. Dates that could be read in two ways are not guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from fintune.schema.errors import DataError
from fintune.sources.corpus.settings import CorpusSource
from fintune.sources.text import is_blank

ROLES: dict[str, tuple[str, ...]] = {
    "text": ("text", "body", "content", "article", "document", "transcript", "description", "summary"),
    "title": ("title", "headline", "headlines"),
    "date": ("date", "published", "published_at", "publisheddate", "datetime", "time", "timestamp"),
    "source": ("source", "publisher"),
    "ticker": ("ticker", "tickers", "symbol", "symbols"),
}
"""Names that a column of each role is looked for under, in this order, whatever their case."""

_MONTH_NAMES = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTHS = {name: number for number, name in enumerate(_MONTH_NAMES, start=1)}
_ISO = re.compile(r"(?<!\d)((?:19|20)\d\d)([-/.])(\d{1,2})\2(\d{1,2})(?!\d)")
_COMPACT = re.compile(r"(?<!\d)((?:19|20)\d\d)([01]\d)([0-3]\d)")
_DAY_FIRST = re.compile(r"(?<!\d)(\d{1,2})[ -]([A-Za-z]{3})[a-z]*[ ,-]+(\d{4}|\d{2})(?!\d)")
_MONTH_FIRST = re.compile(r"\b([A-Za-z]{3})[a-z]*\.? (\d{1,2})(?:st|nd|rd|th)?,? (\d{4})(?!\d)")
_SECONDS = re.compile(r"\d{9,10}(?:\.\d+)?|\d{12,13}")
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
    """Which column is what; None where there is none."""

    text: str | None
    title: str | None
    date: str | None
    source: str | None
    ticker: str | None


def find_roles(source: CorpusSource, columns: Iterable[str]) -> Roles:
    """The columns of a source: those it names, else the first of ``ROLES`` that is there.

    Raises:
        DataError: a named column is not there, or none holds text.
    """
    names = list(columns)
    by_lower = {name.strip().lower(): name for name in reversed(names)}
    found: dict[str, str | None] = {}
    for role, usual in ROLES.items():
        asked = getattr(source, role)
        if asked is not None and asked not in names:
            raise DataError(f"{source.place} has no column {asked!r}.", f"It has {', '.join(names)}.")
        found[role] = asked or next((by_lower[name] for name in usual if name in by_lower), None)
    if found["text"] is None and found["title"] is None:
        raise DataError(
            f"No column of {source.place} is known to hold text.", f"Name one: text: COLUMN; it has {', '.join(names)}."
        )
    if source.pattern is not None and (column := source.compiled_pattern()[0]) not in names:
        raise DataError(f"{source.place} has no column {column!r}, which its pattern reads.", "Correct the pattern.")
    return Roles(**found)


def draft_of(row: Mapping[str, Any], source: CorpusSource, roles: Roles) -> Draft:
    """The row as a draft; its text may be empty."""
    text, title = _cell(row, roles.text), _cell(row, roles.title)
    read = _by_pattern(row, source)
    moment = None if roles.date is None else row.get(roles.date)
    tickers = [*_tickers(None if roles.ticker is None else row.get(roles.ticker)), *_tickers(read.get("ticker"))]
    return Draft(
        text=text,
        title=" ".join(title.split()),
        date=day_of(moment, source.date_format) or _pattern_day(read),
        source=_cell(row, roles.source).strip() or source.label,
        tickers=tuple(dict.fromkeys(tickers)),
    )


def day_of(value: Any, date_format: str | None = None) -> str:
    """A cell as a day, such as 2024-01-31; '' where it is none, or could be read with day or month first."""
    if is_blank(value):
        return ""
    if isinstance(value, datetime):
        return (value.astimezone(UTC) if value.tzinfo else value).date().isoformat()
    if isinstance(value, date):
        return value.isoformat()
    text = str(value).strip()
    if date_format is not None:
        try:
            return datetime.strptime(text, date_format).date().isoformat()
        except ValueError:
            return ""
    if _SECONDS.fullmatch(text):
        seconds = float(text)
        return datetime.fromtimestamp(seconds / 1000 if seconds > 1e11 else seconds, UTC).date().isoformat()
    return _written_day(text)


def _written_day(text: str) -> str:
    if match := _ISO.search(text):
        return _valid(match[1], match[3], match[4])
    if match := _DAY_FIRST.search(text):
        return _valid(match[3], _MONTHS.get(match[2].lower()), match[1])
    if match := _MONTH_FIRST.search(text):
        return _valid(match[3], _MONTHS.get(match[1].lower()), match[2])
    match = _COMPACT.match(text)
    return _valid(*match.groups()) if match else ""


def _valid(year: str, month: str | int | None, day: str) -> str:
    if month is None:
        return ""
    full = int(year) if len(year) == 4 else int(year) + (1900 if int(year) >= 70 else 2000)
    try:
        return date(full, int(month), int(day)).isoformat()
    except ValueError:
        return ""


def _by_pattern(row: Mapping[str, Any], source: CorpusSource) -> dict[str, str | None]:
    if source.pattern is None:
        return {}
    column, pattern = source.compiled_pattern()
    match = pattern.search(_cell(row, column))
    return match.groupdict() if match else {}


def _pattern_day(read: Mapping[str, str | None]) -> str:
    """The named day, or the last one of the named quarter or year, which is close at best: the docs say so."""
    if read.get("date"):
        return day_of(read["date"])
    year = read.get("year")
    if not year:
        return ""
    quarter = int(read.get("quarter") or 4)
    return f"{year}-{('03-31', '06-30', '09-30', '12-31')[quarter - 1]}" if 1 <= quarter <= 4 else ""


def _tickers(value: Any) -> list[str]:
    if is_blank(value):
        return []
    parts = value if isinstance(value, (list, tuple)) else re.split(r"[\s,;|]+", str(value))
    words = (str(part).strip().upper().removeprefix("$") for part in parts)
    return [word for word in words if _TICKER.fullmatch(word)]


def _cell(row: Mapping[str, Any], column: str | None) -> str:
    value = None if column is None else row.get(column)
    return "" if is_blank(value) else str(value)
