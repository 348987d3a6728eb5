"""How often a provider may be asked.

Enters: the moments of requests. Leaves: how long to wait before the next one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Limit:
    """At most ``calls`` requests in any ``seconds``."""

    calls: int
    seconds: float


class Pace:
    """Remembers the moments of requests, so that none of the limits is passed in any window of its length."""

    def __init__(self, limits: Sequence[Limit]) -> None:
        self._limits = tuple(limits)
        self._asked: deque[float] = deque(maxlen=max((limit.calls for limit in limits), default=1))

    def wait_s(self, now: float) -> float:
        """Seconds until the next request is within all limits."""
        return max((self._wait_for(limit, now) for limit in self._limits), default=0.0)

    def note(self, now: float) -> None:
        """A request goes out now."""
        self._asked.append(now)

    def _wait_for(self, limit: Limit, now: float) -> float:
        if len(self._asked) < limit.calls:
            return 0.0
        return max(0.0, self._asked[-limit.calls] + limit.seconds - now)
