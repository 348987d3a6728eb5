"""StockNet's corpus as histories: 88 stocks in 2014 and 2015, their adjusted closes, and tweets with their exact times.

Enters: the corpus folder. Leaves: a ``History`` for each stock. A tweet counts from the moment it was written
(``created_at``, UTC), not from the day of its file.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fintune.tasks.acl18 import PRICES_FILE, TWEET_FILES, read_prices
from fintune.tasks.corpus_files import corpus_files, json_lines, lines_of, need_keys
from fintune.tasks.weekly.history import History, PriceHistory, dated_news, session_prices

COMPANIES_FILE = "StockTable.txt"
_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
_ADJUSTED = 4
_PLACEHOLDERS = re.compile(r"\b(?:URL|AT_USER|rt)\b|(?<=\$) (?=\w)")


def stocknet_histories(folder: Path, dropped: Counter[str]) -> list[History] | None:
    """Histories of all stocks by ticker; None when the folder does not hold the corpus."""
    files = corpus_files(folder, PRICES_FILE, *TWEET_FILES)
    if files is None:
        return None
    companies = _companies(folder)
    tweets = _tweets(files[1:])
    histories = []
    for symbol, prices in sorted(read_prices(files[0]).items()):
        adjusted = PriceHistory.adjusted(prices.days, prices.values_D5[:, _ADJUSTED])
        news = dated_news(tweets.get(symbol, ()), dropped)
        histories.append(
            History(symbol, session_prices(adjusted, dropped), news, profile=companies.get(symbol, {"name": symbol}))
        )
    return histories


def _companies(folder: Path) -> dict[str, dict[str, str]]:
    """Name and sector by symbol, where the corpus brings its table of stocks."""
    found = corpus_files(folder, COMPANIES_FILE)
    if found is None:
        return {}
    rows = csv.DictReader(lines_of(found[0]), delimiter="\t")
    return {
        row["Symbol"].lstrip("$"): {"name": row["Company"], "sector": row["Sector"].replace("Matierials", "Materials")}
        for row in rows
    }


def _tweets(files: Iterable[Path]) -> dict[str, list[tuple[datetime | None, str, str]]]:
    found: dict[str, list[tuple[datetime | None, str, str]]] = {}
    for symbol, row in _rows(files):
        found.setdefault(symbol, []).append(row)
    return found


def _rows(files: Iterable[Path]) -> Iterator[tuple[str, tuple[datetime | None, str, str]]]:
    for file in files:
        for raw in json_lines(file):
            need_keys(file, raw, ("symbol", "text"))
            yield raw["symbol"], (_moment(raw.get("created_at")), tidy_tweet(str(raw["text"])), "")


def _moment(text: Any) -> datetime | None:
    """``Wed Jan 01 03:59:03 +0000 2014`` in UTC."""
    try:
        _, month, day, clock, zone, year = str(text).split()
        written = f"{year}-{_MONTHS.index(month) + 1:02d}-{day}T{clock}{zone}"
        return datetime.fromisoformat(written).astimezone(UTC)
    except ValueError:
        return None


def tidy_tweet(text: str) -> str:
    """A tweet without the corpus's placeholders of links and users, and with its cashtags whole."""
    return " ".join(_PLACEHOLDERS.sub("", text).split())
