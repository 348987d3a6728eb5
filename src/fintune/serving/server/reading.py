"""The thread that makes requests into tokens: one at a time, the shortest first.

Enters: functions that read a request, with its length. Leaves: what they return. Rust tokenizers take one caller at a
time, and a long prompt takes a second; a short one behind many long ones waits for one of them, not for all. A request
whose client has gone, or whose time is over, is not read any more.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from itertools import count
from queue import PriorityQueue
from typing import Any, TypeVar

T = TypeVar("T")


class Reader:
    """Reads requests in a thread of its own, which is made with the first."""

    def __init__(self) -> None:
        self._queue: PriorityQueue[tuple[int, int, Callable[[], Any] | None, Future[Any]]] = PriorityQueue()
        self._numbers = count()
        self._thread: threading.Thread | None = None

    async def read(self, n_characters: int, function: Callable[[], T], until: float) -> T:
        """What the function returns or raises.

        Args:
            n_characters: length of what it reads.
            function: called in the thread, unless whoever waits has been cancelled before.
            until: on ``time.monotonic``.

        Raises:
            TimeoutError: it was not read by then.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="fintune-reader", daemon=True)
            self._thread.start()
        found: Future[T] = Future()
        self._queue.put((n_characters, next(self._numbers), function, found))
        async with asyncio.timeout(until - time.monotonic()):
            return await asyncio.wrap_future(found)  # passes a cancellation on

    def stop(self) -> None:
        """Reads nothing any more."""
        self._queue.put((-1, next(self._numbers), None, Future()))

    def _run(self) -> None:
        while (entry := self._queue.get())[2] is not None:
            _, _, function, found = entry
            if function is None or not found.set_running_or_notify_cancel():
                continue
            try:
                found.set_result(function())
            except BaseException as error:  # the tokenizer's Rust panics with one that is no Exception
                found.set_exception(error if isinstance(error, Exception) else RuntimeError(repr(error)))
