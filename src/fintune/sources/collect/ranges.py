"""Spans of days, and the parts they are asked for in.

Enters: a first and a last day. Leaves: parts that cover every day once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from fintune.schema.errors import RecipeError


@dataclass(frozen=True)
class Span:
    """Days from ``first`` to ``last``, both included."""

    first: date
    last: date

    @property
    def n_days(self) -> int:
        """How many days it has."""
        return (self.last - self.first).days + 1

    def parts(self, n_days: int) -> Iterator[Span]:
        """Consecutive spans of ``n_days`` days; the last may be shorter."""
        first = self.first
        while first <= self.last:
            yield Span(first, min(first + timedelta(days=n_days - 1), self.last))
            first += timedelta(days=n_days)

    def holds(self, moment: datetime) -> bool:
        """Whether a moment is on one of its days in UTC."""
        return self.first <= moment.astimezone(UTC).date() <= self.last


def span_of(first: date | str, last: date | str, today: date) -> Span:
    """The span that a user asked for.

    Raises:
        RecipeError: a date is none, the span is empty, or it is not over today.
    """
    span = Span(_as_date(first), _as_date(last))
    if span.n_days < 1:
        raise RecipeError(f"The first day, {span.first}, is after the last, {span.last}.", "Swap --from and --to.")
    if span.last > today:
        raise RecipeError(f"The last day, {span.last}, is yet to come.", f"Ask up to {today} at most.")
    return span


def _as_date(value: date | str) -> date:
    if isinstance(value, datetime):
        return value.date()
    if isinstance(value, date):
        return value
    try:
        return date.fromisoformat(value)
    except ValueError as error:
        raise RecipeError(f"{value!r} is no date.", "Write it as 2024-03-31.") from error
