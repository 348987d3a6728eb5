"""``fintune.collect``: news, prices, profiles and financials into a folder, once, for steps that have no network.

Enters: tickers or indices and days. Leaves: tables and raw answers below ``output_dir``, and what was found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from fintune.inference.progress import tracking
from fintune.sources.collect.collection import KINDS, Asked, collect_into
from fintune.sources.collect.ranges import span_of

if TYPE_CHECKING:
    from fintune.sources.collect.collection import Collected


def collect(
    names: str | Sequence[str],
    *,
    first: date | str,
    last: date | str,
    output_dir: str | Path,
    what: Sequence[str] = KINDS,
    provider: str | Sequence[str] = "finnhub",
    largest: int | None = None,
    base_urls: Mapping[str, str] | None = None,
    progress: bool = True,
) -> Collected:
    """Collects data of companies; the same call again goes on where it was stopped, and asks for nothing twice.

    Args:
        names: tickers, or ``dow30`` (with everyone who was in it on one of the days) or ``sp500`` (today's members).
        first: first day of news and prices, such as 2024-01-01.
        last: last day, included.
        output_dir: where the tables and the raw answers go.
        what: news, prices, profile and financials.
        provider: who is asked for news: finnhub, eodhd or both. Profiles and financials are Finnhub's, prices Yahoo's.
        largest: of sp500, only this many companies by market capitalisation.
        base_urls: other addresses of providers by name; else by ``FINTUNE_FINNHUB_URL`` and the like.
        progress: show a bar.

    Raises:
        RecipeError: something asked for does not exist.
        ProviderError: a key is missing or refused, or a provider is down; what it gave before is kept.
        RunError: ``output_dir`` cannot be written, holds another collection, or another process collects into it.
    """
    given = [provider] if isinstance(provider, str) else provider
    asked = Asked(
        names=(names,) if isinstance(names, str) else tuple(names),
        span=span_of(first, last, datetime.now(UTC).date()),
        what=tuple(what),
        news_providers=tuple(given),
        largest=largest,
        base_urls=dict(base_urls or {}),
    )
    with tracking("collecting", None, shown=progress) as tracker:
        return collect_into(Path(output_dir), asked, starting=tracker.expect, advance=tracker.advance)
