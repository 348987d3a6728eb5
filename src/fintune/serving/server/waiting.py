"""How much is asked for at the moment, and who still has room.

Enters: requests, from their arrival. Leaves: places, or a refusal. A place is given back when the engine has let go of
the answer, not when its client goes: what is still being computed still fills the server. For the event loop alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fintune.serving.server.problems import bad_request, too_busy


@dataclass
class Waiting:
    """The places of a server.

    Attributes:
        slots: answers written at once.
        most: answers that may wait for a slot.
        open: places taken.
        mean_s: running mean of the time that an answer takes.
    """

    slots: int
    most: int
    open: int = 0
    mean_s: float = 1.0

    @contextmanager
    def taken(self, n: int) -> Iterator[Places]:
        """Takes ``n`` places; those that the engine has not got when the block ends are given back.

        Raises:
            HttpProblem: 429 where too many others have theirs, 400 where there never are so many.
        """
        room = self.slots + self.most
        if n > room:
            raise bad_request(f"This server writes {room} answers at most at a time.", "too_many_answers")
        if self.open + n > room:
            wait_s = math.ceil(self.mean_s * (self.open + n - self.most) / self.slots)
            raise too_busy("Too many requests are waiting.", "overloaded", min(60, max(1, wait_s)))
        self.open += n
        places = Places(self, n)
        try:
            yield places
        finally:
            self.open -= places.own

    def finished(self, seconds: float) -> None:
        """Takes an answer's time into the running mean."""
        self.mean_s += 0.1 * (seconds - self.mean_s)


@dataclass
class Places:
    """The places of one request.

    Attributes:
        own: those that the engine has not got.
    """

    waiting: Waiting
    own: int

    def hand_over(self) -> Callable[[], None]:
        """Leaves one to the engine, which gives it back by calling, once, what is returned."""
        self.own -= 1
        return self._give_back

    def _give_back(self) -> None:
        self.waiting.open -= 1
