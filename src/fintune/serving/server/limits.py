"""Rates: how much a key may still ask for in this minute.

Enters: requests and their tokens. Leaves: nothing, or a 429 that says when to come back. Used from the event loop only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from fintune.serving.server.keys import ApiKey
from fintune.serving.server.problems import HttpProblem, bad_request, too_busy
from fintune.serving.server.settings import KeyLimits

Clock = Callable[[], float]


class Bucket:
    """A token bucket (RFC 2697's, with one rate): full at first, filled evenly over each minute.

    Args:
        per_minute: its size, and what flows in each minute.
        clock: seconds that never go back.
    """

    def __init__(self, per_minute: int, clock: Clock = time.monotonic) -> None:
        self.per_minute, self._clock = per_minute, clock
        self._level, self._at = float(per_minute), clock()
        # What was taken beyond a size that became smaller. It shuts nobody out, counts once the size grows again, and
        # is forgotten as fast as it was allowed.
        self._beyond, self._largest = 0.0, per_minute

    def take(self, amount: float) -> float:
        """Takes ``amount`` and returns 0, or takes nothing and returns the seconds until there is enough."""
        self._fill()
        if amount <= self._level:
            self._level -= amount
            return 0.0
        return (amount - self._level) * 60 / self.per_minute

    def _fill(self) -> None:
        now = self._clock()
        minutes, self._at = (now - self._at) / 60, now
        self._level = min(self.per_minute, self._level + minutes * self.per_minute)
        self._beyond = max(0.0, self._beyond - minutes * self._largest)

    def resize(self, per_minute: int) -> None:
        """Another size and rate; what was taken stays taken."""
        self._fill()
        level = self._level - self._beyond + per_minute - self.per_minute
        self._largest = max(per_minute, self._largest if self._beyond else self.per_minute)
        self._level, self._beyond = max(0.0, level), max(0.0, -level)
        self.per_minute = per_minute

    def give_back(self, amount: float) -> None:
        """Returns what was taken and not used."""
        self._level = min(self.per_minute, self._level + amount)


@dataclass
class Reservation:
    """Tokens that a request may take; ``used`` says how many it did."""

    most: int
    used: int = 0


@dataclass
class Account:
    """What one key has taken; requests keep it from their arrival to their end, whatever becomes of the limits.

    Attributes:
        clock: seconds that never go back.
        open: requests at the moment.
    """

    clock: Clock = time.monotonic
    open: int = 0
    _requests: Bucket | None = None
    _tokens: Bucket | None = None

    def allow(self, limits: KeyLimits) -> None:
        """Takes over the limits that hold from now on."""
        self._requests = self._resized(self._requests, limits.requests_per_minute)
        self._tokens = self._resized(self._tokens, limits.tokens_per_minute)

    def _resized(self, bucket: Bucket | None, rate: int | None) -> Bucket | None:
        if bucket is None or rate is None:
            return None if rate is None else Bucket(rate, self.clock)
        if rate != bucket.per_minute:
            bucket.resize(rate)
        return bucket

    def take_request(self) -> None:
        """Counts a request to the minute.

        Raises:
            HttpProblem: 429, as the key has asked too often.
        """
        bucket = self._requests
        if bucket is not None and (wait_s := bucket.take(1)):
            raise too_busy(f"This key may send {bucket.per_minute} requests a minute.", "rate_limit", wait_s)

    @contextmanager
    def tokens(self, most: int) -> Iterator[Reservation]:
        """Reserves ``most`` tokens while the block runs; what it did not use is given back.

        Raises:
            HttpProblem: 429 where the key must wait, 400 where so many are never allowed.
        """
        bucket, reserved = self._tokens, Reservation(most)
        if bucket is not None and (wait_s := bucket.take(most)):
            raise _too_many(most, bucket, wait_s)
        try:
            yield reserved
        finally:
            if bucket is not None:
                bucket.give_back(max(0, most - reserved.used))


@dataclass
class Limiter:
    """The accounts of all keys, by name."""

    clock: Clock = time.monotonic
    _accounts: dict[str, Account] = field(default_factory=dict)

    @contextmanager
    def request(self, key: ApiKey) -> Iterator[Account]:
        """Counts a request while the block runs, and gives the account of its key.

        Raises:
            HttpProblem: 429, as the key has asked too often or has too many requests open.
        """
        account = self._accounts.setdefault(key.name, Account(self.clock))
        account.allow(key.limits)
        most = key.limits.max_concurrent
        if most is not None and account.open >= most:
            raise too_busy(f"This key may have {most} requests open at once.", "too_many_open_requests", 1)
        account.take_request()
        account.open += 1
        try:
            yield account
        finally:
            account.open -= 1


def _too_many(most: int, bucket: Bucket, wait_s: float) -> HttpProblem:
    if most > bucket.per_minute:
        return bad_request(
            f"The request may take {most:,} tokens, and this key has {bucket.per_minute:,} a minute. "
            "Shorten the prompt, or lower max_tokens.",
            "tokens_never_allowed",
        )
    return too_busy(f"This key may take {bucket.per_minute:,} tokens a minute.", "token_limit", wait_s)
