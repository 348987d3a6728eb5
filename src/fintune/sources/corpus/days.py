"""A cell or a text as the day it names, such as 2024-01-31, in the usual forms.

Enters: what a source has for a date. Leaves: a day, or '' where there is none or it could be read in two ways. With an
offset, such as -05:00, it is the day in UTC, so that one moment is one day in whatever form it comes; without one it is
the day as written.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from typing import Any

from fintune.sources.text import is_blank

PUBLISHED_AFTER = timedelta(days=90)
"""Days after which a quarter's results are taken as public: a 10-K is due within 60 to 90 days, a 10-Q within 45."""

_MONTH_NAMES = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTHS = {name: number for number, name in enumerate(_MONTH_NAMES, start=1)}
_YEAR = r"((?:19|20)\d\d)"
_ISO = re.compile(rf"(?<!\d){_YEAR}([-/.])(\d{{1,2}})\2(\d{{1,2}})(?!\d)")
_NUMBERS = re.compile(rf"(?<!\d)(\d{{1,2}})([-/.])(\d{{1,2}})\2{_YEAR}(?!\d)")
_CTIME = re.compile(
    rf"\b([A-Za-z]{{3}})[a-z]* +(\d{{1,2}}) \d\d:\d\d(?::\d\d)?(?: (?:[+-]\d{{4}}|[A-Z]{{3,4}}))? {_YEAR}\b"
)
# Two digits are a year unless a time of day goes on behind them.
_DAY_FIRST = re.compile(
    rf"(?<!\d)(\d{{1,2}})(?:st|nd|rd|th)?[ -]([A-Za-z]{{3}})[A-Za-z]*\.?[ ,-]+"
    rf"(?:{_YEAR}(?!\d)|(\d\d)(?![\d:]|[.,]\d|h|\s*[AaPp]\.?[Mm]))"
)
_MONTH_FIRST = re.compile(rf"\b([A-Za-z]{{3}})[A-Za-z]*\.? (\d{{1,2}})(?:st|nd|rd|th)?,? {_YEAR}(?!\d)")
_COMPACT = re.compile(rf"{_YEAR}([01]\d)([0-3]\d)(?:[T_ -]|$)")
_DIGITS = re.compile(r"(\d{8,19})(?:\.\d+)?")
_DIGITS_OF_DAY = re.compile(rf"{_YEAR}([01]\d)([0-3]\d)(?:[0-2]\d(?:[0-5]\d){{0,2}})?")
_PER_SECOND = {9: 1, 10: 1, 12: 10**3, 13: 10**3, 16: 10**6, 19: 10**9}
"""Of a number with that many digits: what counts up since 1970."""
_OFFSET = re.compile(
    r"(?:(?<!\d)(?P<hour>\d{1,2}):|(?<=\dT)(?P<hours>\d\d))(?P<minute>\d\d)(?::?\d\d(?:[.,]\d+)?)?"
    r"\s*(?P<half>[AaPp][Mm])?\s*(?P<sign>[+-])(?P<ahead>\d\d)(?::?(?P<minutes>00|15|30|45))?(?![\d:])"
)


def day_of(value: Any, date_format: str | None = None) -> str:
    """A cell as a day; '' where it is none, or could be read with day or month first.

    Args:
        value: of any type.
        date_format: of ``strptime``, where it is known.
    """
    if is_blank(value):
        return ""
    if isinstance(value, datetime):
        return _utc_day(value)
    if isinstance(value, date):
        return value.isoformat()
    text = str(value).strip()
    if date_format is not None:
        try:
            return _utc_day(datetime.strptime(text, date_format))
        except ValueError:
            return ""
    return _of_digits(match[1]) if (match := _DIGITS.fullmatch(text)) else _written_day(text)


def day_of_period(year: str, quarter: str | None) -> str:
    """The day by which a fiscal quarter, or year, was surely reported: its last one and ``PUBLISHED_AFTER``."""
    number = int(quarter or 4)
    if not 1 <= number <= 4:
        return ""
    try:
        last = date(int(year), 3 * number, 31 if number in {1, 4} else 30)
    except ValueError:
        return ""
    return (last + PUBLISHED_AFTER).isoformat()


def _utc_day(moment: datetime) -> str:
    return (moment.astimezone(UTC) if moment.tzinfo else moment).date().isoformat()


def _of_digits(digits: str) -> str:
    """Year, month, day and perhaps a time without anything between, else what has gone by since 1970."""
    if (match := _DIGITS_OF_DAY.fullmatch(digits)) and (day := _valid(*match.groups())):
        return day
    since = _PER_SECOND.get(len(digits))
    return "" if since is None else datetime.fromtimestamp(int(digits) // since, UTC).date().isoformat()


def _written_day(text: str) -> str:
    day = _local_day(text)
    moment = _OFFSET.search(text) if day else None
    if moment is None:
        return day
    hour, ahead = int(moment["hour"] or moment["hours"]), int(moment["ahead"])
    if hour > 23 or ahead > 14:
        return day
    if moment["half"]:
        hour = hour % 12 + 12 * (moment["half"].lower() == "pm")
    offset = timedelta(hours=ahead, minutes=int(moment["minutes"] or 0)) * (-1 if moment["sign"] == "-" else 1)
    local = datetime.fromisoformat(day) + timedelta(hours=hour, minutes=int(moment["minute"]))
    return (local - offset).date().isoformat()


def _local_day(text: str) -> str:
    """The day as it is written, whatever its offset."""
    if match := _ISO.search(text):
        return _valid(match[1], match[3], match[4])
    if match := _NUMBERS.search(text):
        return _either_way(int(match[1]), int(match[3]), match[4])
    if match := _CTIME.search(text):
        return _valid(match[3], _month(match[1]), match[2])
    if match := _DAY_FIRST.search(text):
        return _valid(match[3] or match[4], _month(match[2]), match[1])
    if match := _MONTH_FIRST.search(text):
        return _valid(match[3], _month(match[1]), match[2])
    match = _COMPACT.match(text)
    return _valid(*match.groups()) if match else ""


def _either_way(first: int, second: int, year: str) -> str:
    """31.01.2024 and 12/31/2019 can be read in one way only, 03/04/2019 in two."""
    days = {day for day in (_valid(year, second, str(first)), _valid(year, first, str(second))) if day}
    return days.pop() if len(days) == 1 else ""


def _month(name: str) -> int | None:
    return _MONTHS.get(name.lower())


def _valid(year: str, month: str | int | None, day: str) -> str:
    if month is None:
        return ""
    full = int(year) if len(year) == 4 else int(year) + (1900 if int(year) >= 70 else 2000)
    try:
        return date(full, int(month), int(day)).isoformat()
    except ValueError:
        return ""
