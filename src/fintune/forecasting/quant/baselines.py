"""What a model has to beat: random walks and n-grams, as distributions over the same bins.

::

    random walk, normal      changes are normal around 0, as large as the weighted mean of earlier ones
    random walk, empirical   that size, and the shape of all training changes: the bins' own shares
    own history              the ticker's last 250 changes, with some of the empirical ones mixed in
    n-gram                   what followed the last day's tokens in training, shorter contexts filling in

Enters: ``Targets``. Leaves: ``Forecasts``. What has a knob is given the value that is best on validation days.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from fintune.forecasting.quant.days import DayTable
from fintune.forecasting.quant.forecasts import Forecasts, Targets
from fintune.metrics.binned import from_cdf, log_scores, with_floor
from fintune.metrics.classification import Floats, Ints
from fintune.sources.quant.codec import CHANGE, FIELDS

HISTORY_DAYS = 250
MIXED_IN = (8.0, 32.0, 128.0, 512.0, 2048.0)
"""How many empirical changes are added to a ticker's own: tried on validation days."""
STRENGTHS = (32.0, 128.0, 512.0, 2048.0, 8192.0, 32768.0)
"""How many days of the shorter context an n-gram adds to what it counted: tried on validation days."""
LONGEST = 3
_Setting = TypeVar("_Setting")


def random_walk(targets: Targets) -> Forecasts:
    """Normal around 0 with the expected volatility."""
    from scipy.special import ndtr

    cdf = np.broadcast_to(ndtr(targets.edges), (len(targets.rows), len(targets.edges)))
    return Forecasts("random walk, normal", from_cdf(cdf))


def empirical(targets: Targets) -> Forecasts:
    """The bins' shares of all training days, whatever came before."""
    shares = np.broadcast_to(bin_shares(targets.days, targets.n_bins), (len(targets.rows), targets.n_bins))
    return Forecasts("random walk, empirical", with_floor(shares))


def own_history(targets: Targets, validation: Targets) -> Forecasts:
    """Counts of the ticker's last changes in today's bins, with empirical ones mixed in."""
    shares = bin_shares(targets.days, targets.n_bins)

    def mixed(counts: Floats, added: float) -> Floats:
        summed = counts + added * shares
        return with_floor(summed / summed.sum(1, keepdims=True))

    seen = past_counts(validation)
    best = _best(MIXED_IN, lambda added: mixed(seen, added), validation)
    return Forecasts("own history", mixed(past_counts(targets), best), f"{best:g} empirical changes mixed in")


def n_gram(targets: Targets, validation: Targets) -> Forecasts:
    """What followed the same level and the same last changes on training days, interpolated with shorter contexts.

    A context's counts are smoothed towards the next shorter context's distribution, of which so many days are added
    (MacKay and Peto 1995). How many, and how long the context is, validation days say.
    """
    settings = [(order, strength) for order in range(1, LONGEST + 1) for strength in STRENGTHS]
    tables = _tables(targets.days, targets.n_bins)

    def at(where: Targets) -> Callable[[tuple[int, float]], Floats]:
        return lambda setting: _interpolated(where, tables, *setting)

    order, strength = best = _best(settings, at(validation), validation)
    named = ("level", "level and last change", "level and last two changes")[order - 1]
    return Forecasts("n-gram", at(targets)(best), f"context: {named}; {strength:g} days of the shorter one")


def bin_shares(days: DayTable, n_bins: int) -> Floats:
    """Shares of the bins among training changes, one added to each."""
    counts = np.bincount(days.codes[days.in_split("train"), CHANGE], minlength=n_bins) + 1.0
    shares: Floats = counts / counts.sum()
    return shares


def past_counts(targets: Targets) -> Floats:
    """(N, K) how many of the ticker's last 250 changes lie in each of the day's bins."""
    counts = np.zeros((len(targets.rows), targets.n_bins))
    starts = np.array([rows.start for rows in targets.days.series()])
    first = starts[targets.days.ticker[targets.rows]]
    for place, (row, start, size) in enumerate(
        zip(targets.rows.tolist(), first.tolist(), targets.volatility.tolist(), strict=True)
    ):
        past = targets.days.change[max(start, row - HISTORY_DAYS) : row] / size
        counts[place] = np.bincount(np.searchsorted(targets.edges, past, side="right"), minlength=targets.n_bins)
    return counts


def contexts(days: DayTable, n_bins: int, order: int) -> Ints:
    """(D,) number of each day's context: its level, and the changes of up to two days before."""
    level = days.codes[:, FIELDS.index("level")]
    number = level.astype(np.int64)
    for back in range(1, order):
        earlier = np.full(len(days), n_bins, np.int64)  # no such day
        earlier[back:] = np.where(days.ticker[back:] == days.ticker[:-back], days.codes[:-back, CHANGE], n_bins)
        number = number * (n_bins + 1) + earlier
    return number


def _tables(days: DayTable, n_bins: int) -> list[tuple[Ints, Floats]]:
    """For each order every day's context, renumbered, and the training counts ``(C, K)`` of what followed each."""
    tables = []
    train = days.in_split("train")
    for order in range(1, LONGEST + 1):
        distinct, place = np.unique(contexts(days, n_bins, order), return_inverse=True)
        counts = np.zeros((len(distinct), n_bins))
        np.add.at(counts, (place[train], days.codes[train, CHANGE]), 1.0)
        tables.append((place.astype(np.int64), counts))
    return tables


def _interpolated(targets: Targets, tables: Sequence[tuple[Ints, Floats]], order: int, strength: float) -> Floats:
    shares = bin_shares(targets.days, targets.n_bins)
    found = np.broadcast_to(shares, (len(targets.rows), targets.n_bins))
    for place, counts in tables[:order]:
        seen = counts[place[targets.rows]]
        found = (seen + strength * found) / (seen.sum(1, keepdims=True) + strength)
    return with_floor(found)


def _best(settings: Sequence[_Setting], probabilities: Callable[[_Setting], Floats], validation: Targets) -> _Setting:
    """The setting under which validation days are likeliest."""
    return max(settings, key=lambda setting: float(log_scores(probabilities(setting), validation.code).mean()))
