"""Collectors: news, prices, profiles and financials of companies, from their providers into a folder.

Enters: tickers or indices, days, and keys from the environment. Leaves: tables that later steps read without a network,
and raw answers beside them, so that a stopped collection goes on without asking for anything twice.
"""

from fintune.sources.collect.collection import KINDS, NEWS_PROVIDERS, Asked, Collected, collect_into
from fintune.sources.collect.ranges import Span, span_of

__all__ = ["KINDS", "NEWS_PROVIDERS", "Asked", "Collected", "Span", "collect_into", "span_of"]
