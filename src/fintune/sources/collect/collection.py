"""A collection: every kind of data of every company, from disk or from its provider, into tables.

Enters: what is asked. Leaves: the tables of ``tables``, and a report. What one provider does not have of one ticker is
reported and the rest goes on; a provider that is down, or refuses the key, ends the run with everything it gave kept.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from fintune.schema.errors import ProviderError, RecipeError, RunError
from fintune.schema.run_directory import only_process, write_json
from fintune.sources.collect import eodhd, finnhub, sp500, tables, yahoo
from fintune.sources.collect.ranges import Span
from fintune.sources.collect.requesting import Clock, Endpoint, Patience, Refused, Requester
from fintune.sources.collect.rows import FinancialsRow, Found, NewsRow, PriceRow, ProfileRow
from fintune.sources.collect.stored import AnswerStore
from fintune.sources.collect.universe import Member, dow30, dow30_note, named

What = Literal["profile", "financials", "news", "prices"]
KINDS: tuple[What, ...] = get_args(What)
NEWS_PROVIDERS = (finnhub.NAME, eodhd.NAME)
ROW_TYPES: dict[What, type[Any]] = {
    "profile": ProfileRow, "financials": FinancialsRow, "news": NewsRow, "prices": PriceRow,
}  # fmt: skip
_PROVIDERS = {module.NAME: module for module in (finnhub, eodhd, yahoo, sp500)}
_DOWN_AFTER = 3
"""Tickers in a row that one provider leaves without an answer, after every try, before it counts as down."""


@dataclass(frozen=True)
class Asked:
    """What is to be collected.

    Attributes:
        names: indices and tickers.
        span: days of news and prices, and of membership.
        what: kinds of data.
        news_providers: whom to ask for news.
        largest: of sp500, only this many by market capitalisation.
        base_urls: other addresses of providers, by name.
    """

    names: tuple[str, ...]
    span: Span
    what: tuple[str, ...] = KINDS
    news_providers: tuple[str, ...] = ("finnhub",)
    largest: int | None = None
    base_urls: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require_known(self.what, KINDS, "kind of data")
        _require_known(self.news_providers, NEWS_PROVIDERS, "provider of news")

    @property
    def units(self) -> list[tuple[What, str]]:
        """Each kind of data with its provider; those that need a key come first."""
        providers: dict[What, tuple[str, ...]] = {
            "profile": (finnhub.NAME,), "financials": (finnhub.NAME,), "prices": (yahoo.NAME,),
            "news": tuple(name for name in NEWS_PROVIDERS if name in self.news_providers),
        }  # fmt: skip
        return [(what, provider) for what in KINDS if what in self.what for provider in providers[what]]

    @property
    def summary(self) -> dict[str, Any]:
        """The same for every way to ask the same thing.

        Raises:
            RecipeError: a name is no ticker.
        """
        indices, tickers = named(self.names)
        return {
            "names": sorted([*indices, *tickers]), "from": str(self.span.first), "to": str(self.span.last),
            "what": sorted(set(self.what)), "news": sorted(set(self.news_providers)), "largest": self.largest,
        }  # fmt: skip


@dataclass
class Collected:
    """What a collection found.

    Attributes:
        folder: where the tables are.
        members: how many companies.
        rows: how many rows each table has.
        dropped: rows left out, by kind and reason.
        failed: why something is missing, by ticker and then by kind and provider.
        notes: what a reader of the tables has to know.
        requests: sent in this run, repeated ones too, by provider.
    """

    folder: Path
    members: int
    rows: dict[str, int]
    dropped: dict[str, dict[str, int]]
    failed: dict[str, dict[str, str]]
    notes: list[str]
    requests: dict[str, int]


def collect_into(
    folder: Path,
    asked: Asked,
    *,
    patience: Patience | None = None,
    clock: Clock | None = None,
    starting: Callable[[int], None] = lambda units: None,
    advance: Callable[[int], None] = lambda units: None,
) -> Collected:
    """Collects into a folder; started again after a stop, it asks for nothing that it has.

    Args:
        folder: where the tables and raw answers go.
        asked: what to collect.
        patience: how long to wait for providers.
        clock: real time unless a test says otherwise.
        starting: told how many units of work there are.
        advance: told how many more are done.

    Raises:
        RecipeError: a name is no ticker.
        ProviderError: a key is missing or refused, or a provider is down; what it gave before is kept.
        RunError: the folder cannot be written, holds another collection, or another process collects into it.
    """
    indices, tickers = named(asked.names)
    if asked.largest is not None and sp500.NAME not in indices:
        raise RecipeError("The largest companies can only be chosen of sp500.", "Leave --largest out, or name sp500.")
    names = {provider for _, provider in asked.units} | ({sp500.NAME} & set(indices))
    endpoints = [_endpoint(name, asked) for name in sorted(names)]  # a key that is missing shows before anything else
    with only_process(folder, "collects"), ExitStack() as opened:
        _require_same(folder, asked)
        store = AnswerStore(folder / "raw")
        store.adopt_leftovers()
        for partial in folder.glob(".*.partial"):  # tables that a killed run was writing aside
            partial.unlink(missing_ok=True)
        requesters = {
            endpoint.provider: opened.enter_context(Requester(endpoint, store, patience=patience, clock=clock))
            for endpoint in endpoints
        }
        universe = _universe(indices, tickers, asked, requesters)
        run = _Run(asked, requesters, notes=list(universe.notes), dropped={"universe": dict(universe.dropped)})
        companies = sorted({member.ticker for member in universe.rows})
        starting(len(companies) * len(asked.units))
        for ticker in companies:
            for what, provider in asked.units:
                run.unit(ticker, what, provider)
                advance(1)
        return _written(folder, asked, universe.rows, run)


def address(provider: str, given: Mapping[str, str]) -> str:
    """Where a provider is: as given, else by ``FINTUNE_<PROVIDER>_URL``, else its own address."""
    own: str = _PROVIDERS[provider].BASE_URL
    return (given.get(provider) or os.environ.get(f"FINTUNE_{provider.upper()}_URL") or own).rstrip("/")


@dataclass
class _Run:
    """What was found so far."""

    asked: Asked
    requesters: Mapping[str, Requester]
    notes: list[str]
    dropped: dict[str, dict[str, int]]
    rows: dict[What, list[Any]] = field(default_factory=dict)
    by_ticker: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, dict[str, str]] = field(default_factory=dict)
    unanswered: dict[str, int] = field(default_factory=dict)

    def unit(self, ticker: str, what: What, provider: str) -> None:
        """Collects one kind of data of one company from one provider."""
        requester = self.requesters[provider]
        try:
            found = _collected(requester, what, provider, ticker, self.asked.span)
        except Refused as refusal:
            self.failed.setdefault(ticker, {})[f"{what} {provider}"] = refusal.message
            self._note_refusal(provider, refusal)
            return
        self.unanswered[provider] = 0
        self.rows.setdefault(what, []).extend(found.rows)
        counts = {"rows": len(found.rows), "dropped": dict(sorted(found.dropped.items())), "notes": found.notes}
        self.by_ticker.setdefault(ticker, {})[f"{what} {provider}"] = counts
        for reason, count in found.dropped.items():
            of_kind = self.dropped.setdefault(what, {})
            of_kind[reason] = of_kind.get(reason, 0) + count
        self.notes += [f"{ticker}: {note}" for note in found.notes]

    def _note_refusal(self, provider: str, refusal: Refused) -> None:
        self.unanswered[provider] = self.unanswered.get(provider, 0) + 1 if refusal.unanswered else 0
        if self.unanswered[provider] >= _DOWN_AFTER:
            again = "Give the same command again later; what was collected is kept."
            raise ProviderError(
                f"{provider} does not answer any more: {refusal.message}",
                f"{self.requesters[provider].endpoint.hint} {again}".strip(),
            )


def _collected(requester: Requester, what: What, provider: str, ticker: str, span: Span) -> Found[Any]:
    if what == "prices":
        return yahoo.prices(requester, ticker, span)
    if what == "profile":
        return finnhub.profile(requester, ticker)
    if what == "financials":
        return finnhub.financials(requester, ticker)
    return finnhub.news(requester, ticker, span) if provider == finnhub.NAME else eodhd.news(requester, ticker, span)


def _universe(
    indices: Sequence[str], tickers: Sequence[str], asked: Asked, requesters: Mapping[str, Requester]
) -> Found[Member]:
    found: Found[Member] = Found()
    if "dow30" in indices:
        found.rows += dow30(asked.span)
        found.notes += [note for note in [dow30_note(asked.span)] if note]
    if sp500.NAME in indices:
        members = sp500.members(requesters[sp500.NAME], asked.span, asked.largest)
        found.rows += members.rows
        found.notes += members.notes
        found.dropped += members.dropped
    known = {member.ticker for member in found.rows}
    found.rows += [Member(ticker) for ticker in tickers if ticker not in known]
    found.rows.sort(key=lambda member: (member.ticker, member.index))
    return found


def _endpoint(provider: str, asked: Asked) -> Endpoint:
    endpoint: Endpoint = _PROVIDERS[provider].endpoint(address(provider, asked.base_urls))
    return endpoint


def _written(folder: Path, asked: Asked, members: Sequence[Member], run: _Run) -> Collected:
    files = {tables.UNIVERSE: _file(folder / tables.UNIVERSE, Member, members)}
    for what in KINDS:
        if what in asked.what:
            rows = sorted(run.rows.get(what, []), key=_order)
            files[tables.FILES[what]] = _file(folder / tables.FILES[what], ROW_TYPES[what], rows)
    collected = Collected(
        folder=folder,
        members=len({member.ticker for member in members}),
        rows={name: file["rows"] for name, file in files.items()},
        dropped={kind: counts for kind, counts in run.dropped.items() if counts},
        failed=run.failed,
        notes=run.notes,
        requests={name: requester.requests for name, requester in run.requesters.items()},
    )
    write_json(
        folder / tables.REPORT,
        {
            "asked": asked.summary,
            "files": files,
            "dropped": collected.dropped,
            "failed": collected.failed,
            "notes": collected.notes,
            "tickers": run.by_ticker,
        },
    )
    return collected


def _file(path: Path, kind: type[Any], rows: Sequence[Any]) -> dict[str, Any]:
    return {"rows": len(rows), "sha256 without retrieval times": tables.write_table(path, kind, rows)}


def _order(row: Any) -> tuple[str, ...]:
    if isinstance(row, FinancialsRow):
        return row.ticker, row.provider, row.frequency, row.period or ""
    if isinstance(row, NewsRow):
        return row.ticker, row.published, row.provider, row.url, row.headline, row.summary, row.text
    return row.ticker, getattr(row, "date", "")


def _require_same(folder: Path, asked: Asked) -> None:
    """The tables of another collection are not to be replaced by these."""
    report = folder / tables.REPORT
    try:
        before = dict(json.loads(report.read_text(encoding="utf-8"))["asked"])
    except (OSError, ValueError, LookupError, TypeError):
        return
    if differing := [key for key, value in asked.summary.items() if before.get(key) != value]:
        raise RunError(
            f"{folder} holds a collection that was asked for otherwise ({', '.join(differing)}).",
            f"Name another folder, or delete {report.name} to have its tables replaced; answers in raw are used again.",
        )


def _require_known(given: Sequence[str], known: Sequence[str], kind: str) -> None:
    for name in given:
        if name not in known:
            raise RecipeError(f"{name!r} is no {kind}.", f"Choose from {', '.join(known)}.")
    if not given:
        raise RecipeError(f"No {kind} is asked for.", f"Choose from {', '.join(known)}.")
