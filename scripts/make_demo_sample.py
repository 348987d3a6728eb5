"""Writes the demo page's sample: two invented companies in the files of ``fintune collect``.

Real headlines belong to those who wrote them and may not be shipped. So everything here is made up, and the prices are
a random walk that knows nothing of the news: nothing can be forecast from them.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np

from fintune.tasks.weekly.calendar import sessions

FOLDER = Path(__file__).parents[1] / "src/fintune/serving/demo/sample"
FIRST, LAST = "2024-01-02", "2024-06-28"
RETRIEVED = "2024-07-01T12:00:00+00:00"
COMPANIES = {
    "XDEMO": ("Sample Pumps", "Machinery", 48.0, 0.017, 11),
    "XTOYS": ("Makebelieve Toys", "Consumer products", 112.0, 0.023, 12),
}
HEADLINES = {
    "XDEMO": (
        ("{name} wins order for {n} pumps from a water utility", "Delivery starts in autumn; the price was not told."),
        ("{name} says steel costs rose {n} percent", "Margins will be thinner in the current quarter."),
        ("Broker raises price target of {name} by {n} percent", "It expects demand from farms to last."),
        ("Strike stops the {name} plant for {n} days", "Union and management meet again on Monday."),
        ("{name} opens a repair centre with {n} workers", "Service earns more than new pumps do."),
        ("{name} recalls {n} pumps over a faulty seal", "No one was hurt, and insurance pays most of it."),
        ("Order book of {name} grew {n} percent from a year ago", "Export orders were the strongest part."),
    ),
    "XTOYS": (
        ("{name} sells {n} percent more puzzles than a year ago", "Online shops took most of them."),
        ("Retailer cuts shelf space of {name} by {n} percent", "The retailer wants to carry fewer brands."),
        ("{name} licenses a cartoon for {n} countries", "Royalties start once the series is shown."),
        ("Freight delays hold up {n} containers of {name}", "Some shops will get their goods a week late."),
        ("{name} names a new head of design after {n} months", "The post had been vacant."),
        ("Analysts cut profit estimates of {name} by {n} percent", "They point to weaker birthday sales."),
        ("{name} buys back {n} thousand shares", "The programme runs until the end of the year."),
    ),
}


def price_rows(ticker: str, days: list[str]) -> list[dict[str, object]]:
    """Daily prices: a random walk without drift."""
    _, _, start, spread, seed = COMPANIES[ticker]
    rng = np.random.default_rng(seed)
    closes = start * np.exp(np.cumsum(rng.normal(0, spread, len(days))))
    opens = np.concatenate([[start], closes[:-1]]) * np.exp(rng.normal(0, spread / 4, len(days)))
    return [
        {
            "ticker": ticker,
            "date": day,
            "open": round(float(opened), 2),
            "high": round(float(max(opened, close) * 1.006), 2),
            "low": round(float(min(opened, close) * 0.994), 2),
            "close": round(float(close), 2),
            "adjusted_close": round(float(close), 2),
            "volume": int(rng.integers(400, 1600)) * 1000,
            "dividends": 0.0,
            "splits": 0.0,
            "retrieved_at": RETRIEVED,
        }
        for day, opened, close in zip(days, opens, closes, strict=True)
    ]


def news_rows(ticker: str, days: list[str]) -> list[dict[str, object]]:
    """About two headlines a week, drawn without a look at the prices."""
    name, *_, seed = COMPANIES[ticker]
    rng = np.random.default_rng(seed + 100)
    rows: list[dict[str, object]] = []
    for number, day in enumerate(days[1::2]):
        headline, summary = HEADLINES[ticker][number % 7]
        told = headline.format(name=name, n=int(rng.integers(2, 30)))
        rows.append(
            {
                "ticker": ticker,
                "published": f"{day}T{13 + number % 5:02d}:30:00+00:00",
                "provider": "invented",
                "headline": told,
                "summary": summary,
                "text": "",
                "source": "invented",
                "url": "",
                "retrieved_at": RETRIEVED,
            }
        )
    return rows


def report_rows(ticker: str) -> list[dict[str, object]]:
    """Two quarterly reports, each known five weeks after its quarter."""
    rng = np.random.default_rng(COMPANIES[ticker][-1] + 200)
    return [
        {
            "ticker": ticker,
            "provider": "invented",
            "frequency": "quarterly",
            "period": period,
            "known_from": known,
            "values": {
                "grossMargin": round(float(rng.uniform(0.25, 0.45)), 3),
                "currentRatio": round(float(rng.uniform(1.1, 2.0)), 2),
                "eps": round(float(rng.uniform(0.4, 1.6)), 2),
            },
            "retrieved_at": RETRIEVED,
        }
        for period, known in (("2023-12-31", "2024-02-05"), ("2024-03-31", "2024-05-06"))
    ]


def write_lines(name: str, rows: list[dict[str, object]]) -> None:
    """JSON lines."""
    (FOLDER / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    """Writes the four tables."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    days = [day for day in sessions().days if FIRST <= day <= LAST]
    prices = [row for ticker in COMPANIES for row in price_rows(ticker, days)]
    with (FOLDER / "prices.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(prices[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(prices)
    write_lines("news.jsonl", [row for ticker in COMPANIES for row in news_rows(ticker, days)])
    write_lines("financials.jsonl", [row for ticker in COMPANIES for row in report_rows(ticker)])
    profiles = [
        {
            "ticker": ticker,
            "provider": "invented",
            "profile": {"name": name, "finnhubIndustry": sector, "exchange": "Invented Exchange"},
            "retrieved_at": RETRIEVED,
        }
        for ticker, (name, sector, *_) in COMPANIES.items()
    ]
    write_lines("profiles.jsonl", profiles)


if __name__ == "__main__":
    main()
