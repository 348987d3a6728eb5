"""The S&P 500 of today: constituents and market capitalisation, from two public tables (ODC-PDDL 1.0).

Enters: a span of days. Leaves: members, dated by when they joined and by when the tables were retrieved. Companies that
have left the index are not in the tables, so that earlier years hold survivors only: a note says so.
"""

from __future__ import annotations

import csv
import io
from datetime import date
from typing import Any

from fintune.sources.collect.limits import Limit
from fintune.sources.collect.ranges import Span
from fintune.sources.collect.requesting import Endpoint, Requester
from fintune.sources.collect.rows import Found
from fintune.sources.collect.stored import Question
from fintune.sources.collect.universe import Member

NAME = "sp500"
BASE_URL = "https://raw.githubusercontent.com/datasets"
LIMITS = (Limit(2, 1.0),)
CONSTITUENTS = "s-and-p-500-companies/main/data/constituents.csv"
FINANCIALS = "s-and-p-500-companies-financials/main/data/constituents-financials.csv"
SURVIVORS = "sp500 holds the members of the day its table was retrieved: companies that left before are missing"


def endpoint(base_url: str) -> Endpoint:
    """Where the tables are."""
    return Endpoint(NAME, base_url, LIMITS)


def members(requester: Requester, span: Span, largest: int | None = None) -> Found[Member]:
    """Today's members that had joined by the end of the span, by ticker.

    Args:
        requester: of ``endpoint``.
        span: the days that are collected.
        largest: only this many, by market capitalisation; those without one come last.

    Raises:
        ProviderError: the tables are not to be had.
    """
    table = requester.get(Question(NAME, CONSTITUENTS, {}), is_right=_has("Symbol", "Date added"), text=True)
    caps = requester.get(Question(NAME, FINANCIALS, {}), is_right=_has("Symbol", "Market Cap"), text=True)
    capitalised = {row["Symbol"]: _number(row["Market Cap"]) for row in _rows(caps.value)}
    found: Found[Member] = Found(notes=[SURVIVORS])
    for row in _rows(table.value):
        joined = _day(row["Date added"])
        if joined is not None and joined > span.last:
            found.dropped["joined after the dates asked for"] += 1
            continue
        found.rows.append(
            Member(
                row["Symbol"], NAME, row.get("Security") or "", row.get("GICS Sector") or "", member_from=joined,
                market_cap=capitalised.get(row["Symbol"]), as_of=table.retrieved_at[:10],
            )
        )  # fmt: skip
    if largest is not None:
        found.rows.sort(key=lambda member: (-(member.market_cap or 0.0), member.ticker))
        found.dropped["smaller than the largest asked for"] += max(0, len(found.rows) - largest)
        found.rows = found.rows[:largest]
    found.rows.sort(key=lambda member: member.ticker)
    if unknown := sum(member.market_cap is None for member in found.rows):
        found.notes.append(f"{unknown} members of sp500 have no market capitalisation")
    return found


def _has(*columns: str) -> Any:
    return lambda text: bool(text) and set(columns) <= set(next(csv.reader(io.StringIO(text)), []))


def _rows(text: str) -> list[dict[str, str]]:
    return [row for row in csv.DictReader(io.StringIO(text)) if row["Symbol"]]


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


def _day(text: str | None) -> date | None:
    try:
        return date.fromisoformat(text or "")
    except ValueError:
        return None
