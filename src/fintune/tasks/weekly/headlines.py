"""The S&P 500's daily prices of 2015 to 2020 with dated headlines of CNBC, the Guardian and Reuters as histories.

Enters: the folder of prices; news_headlines/ and sp500/ lie beside it. Leaves: a ``History`` for each stock that a
headline names. A headline without a time counts as published when its day ends in New York.
"""

from __future__ import annotations

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np

from fintune.schema.errors import DataError
from fintune.tasks.corpus_files import corpus_files, lines_of
from fintune.tasks.weekly.calendar import NEW_YORK, end_of_day
from fintune.tasks.weekly.history import History, PriceHistory, dated_news, session_prices

PRICES_FILE = "daily.parquet"
NEWS_FOLDER, NEWS_FILES = "news_headlines", ("cnbc_headlines.csv", "guardian_headlines.csv", "reuters_headlines.csv")
NAMES_FOLDER, NAMES_FILE = "sp500", "constituents.csv"
NewsRow = tuple[datetime | None, str, str]

# Endings of a company's legal name that headlines leave out.
_LEGAL = re.compile(
    r"(?:,? (?:Inc|Incorporated|Corp|Corporation|Company|Co|Ltd|plc|PLC|N\.V|NV|S\.A|Group|Holdings?|Companies|"
    r"Enterprises|Technologies|International|Industries|Stores|Brands|Platforms|Motors?|Airlines|Laboratories|"
    r"Pharmaceuticals|Properties|Class [ABC])\b\.?|[.,]|\s*\(.*?\)|\.com\b)+$"
)
_COMMON = frozenset((
    "Target", "Dow", "Nasdaq", "Gap", "Ball", "Match", "Visa", "Block", "Public", "Smart", "Fox", "News",
    "Progressive", "General", "American", "United", "Southern", "National", "Global", "State", "Key", "Regions",
    "Dover", "Pool", "Carnival", "Citizens", "Discover", "Principal", "Equity", "Camden", "Realty", "Host", "Federal",
    "First", "Western", "Universal", "Sealed", "Steel", "Henry", "Constellation", "Intuitive", "Cooper", "Essex",
    "Electronic", "Baker", "Williams", "Phillips", "Edison", "Phoenix", "Dollar", "Charles", "Emerson", "Church",
    "Genuine", "Snap", "Raymond", "Ross", "Advance", "Quest", "Monster", "Roper", "Waters", "Trade", "Best",
))  # fmt: skip
"""One-word names that headlines also use for something else."""


def headline_histories(folder: Path, dropped: Counter[str]) -> list[History] | None:
    """Histories of all stocks that at least one headline names; None when the folder does not hold the prices.

    Raises:
        DataError: headlines or the companies' names are not beside the prices.
    """
    found = corpus_files(folder, PRICES_FILE)
    if found is None:
        return None
    companies = _companies(_beside(folder, NAMES_FOLDER, NAMES_FILE))
    news = _news_by_ticker(folder, companies, dropped)
    prices = _prices(found[0], news)
    return [
        History(ticker, session_prices(prices[ticker], dropped), dated_news(rows, dropped), companies[ticker])
        for ticker, rows in sorted(news.items())
        if ticker in prices
    ]


def _beside(folder: Path, name: str, file: str) -> Path:
    found = corpus_files(folder.resolve().parent / name, file)
    if found is None:
        raise DataError(
            f"Beside the prices in {folder} there is no {name}/{file}.", f"Put the folder {name} next to it."
        )
    return found[0]


def _companies(file: Path) -> dict[str, dict[str, str]]:
    return {
        row["Symbol"].replace(".", "-"): {"name": row["Security"], "sector": row["GICS Sector"]}
        for row in csv.DictReader(lines_of(file))
    }


def spoken_name(name: str) -> str:
    """A company as headlines call it: without what only its legal name has; '' where that word means other things."""
    spoken = _LEGAL.sub("", name.removeprefix("The ")).strip()
    return "" if spoken in _COMMON or len(spoken) < 3 else spoken


def _news_by_ticker(
    folder: Path, companies: Mapping[str, Mapping[str, str]], dropped: Counter[str]
) -> dict[str, list[NewsRow]]:
    tickers = {spoken_name(profile["name"]): ticker for ticker, profile in companies.items()}
    tickers.pop("", None)
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, sorted(tickers, key=len, reverse=True)))})(?!\w)")
    found: dict[str, list[NewsRow]] = defaultdict(list)
    for name, read in zip(NEWS_FILES, (_cnbc, _guardian, _reuters), strict=True):
        for row in read(_beside(folder, NEWS_FOLDER, name)):
            named = {tickers[match[0]] for match in pattern.finditer(row[1])}
            dropped["headlines that name no company of the index"] += not named
            for ticker in named:
                found[ticker].append(row)
    return found


def _cnbc(file: Path) -> Iterator[NewsRow]:
    for row in csv.DictReader(lines_of(file)):
        if row["Headlines"]:
            yield _read(_cnbc_time, row["Time"]), row["Headlines"], row["Description"] or ""


def _guardian(file: Path) -> Iterator[NewsRow]:
    for row in csv.DictReader(lines_of(file)):
        yield (
            _read(lambda text: end_of_day(datetime.strptime(text, "%d-%b-%y").date()), row["Time"]),
            row["Headlines"],
            "",
        )


def _reuters(file: Path) -> Iterator[NewsRow]:
    for row in csv.reader(lines_of(file)):
        yield _read(lambda text: end_of_day(date.fromisoformat(text)), row[0]), _joined(row[1]), ""


def _joined(text: str) -> str:
    """Reuters' headlines with their punctuation as it was: the file has it apart."""
    return re.sub(r"(\d\.) (?=\d)|\b([A-Z]\.) (?=[A-Z]\.)", r"\1\2", re.sub(r" ([,:;?!%.])", r"\1", text))


def _cnbc_time(text: str) -> datetime:
    """``7:51  PM ET Fri, 17 July 2020``; some months are cut to three letters."""
    clock, _, day = " ".join(text.split()).partition(" ET ")
    day = re.sub(r"^\w+, (\d+ \w{3})\w* ", r"\1 ", day)
    return datetime.strptime(f"{clock} {day}", "%I:%M %p %d %b %Y").replace(tzinfo=NEW_YORK).astimezone(UTC)


def _read(read: Callable[[str], datetime], text: str) -> datetime | None:
    try:
        return read(text)
    except ValueError:
        return None


def _prices(file: Path, wanted: Mapping[str, Any]) -> dict[str, PriceHistory]:
    """Adjusted closes by symbol; of a day that stands twice the first with a price."""
    import pandas as pd

    frame = pd.read_parquet(file, columns=["Name", "Date", "Adj Close"])
    frame = frame[frame["Name"].isin(list(wanted)) & (frame["Adj Close"] > 0)]
    frame = frame.assign(Date=pd.to_datetime(frame["Date"]).dt.strftime("%Y-%m-%d"))
    frame = frame.sort_values(["Name", "Date"], kind="stable").drop_duplicates(["Name", "Date"])
    return {
        str(name): PriceHistory.adjusted(tuple(rows["Date"]), np.asarray(rows["Adj Close"], np.float64))
        for name, rows in frame.groupby("Name", sort=True)
    }
