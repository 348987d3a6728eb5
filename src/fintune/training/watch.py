"""Notices when a process of the run has failed or vanished, and ends this one in bounded time, with one voice.

Enters: a store that all processes reach. Each leaves a sign of life there, and the first that fails leaves its reason:
who comes second stays silent. A thread does it, because the trainer may hang in a collective that nobody joins.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

from fintune.schema.processes import Processes

INTERVAL_S = 1.0
LOST_AFTER_S = 120.0  # without a sign of life
GRACE_S = 20.0  # for this process to end by itself once another has failed
FAILED = "fintune/failed"
AGAIN = "Start the same command again; it goes on from the newest checkpoint."


class Watch:
    """Watches the others from a thread: the first process all of them, the rest the first.

    Args:
        store: a client of its own of the run's ``torch.distributed`` store.
        me: this process.
        lost_after_s: how long another may give no sign of life.
    """

    def __init__(self, store: Any, me: Processes, lost_after_s: float = LOST_AFTER_S) -> None:
        self.store = store
        self.me = me
        self.lost_after_s = lost_after_s
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="fintune-watch")
        started = time.monotonic()
        watched = range(1, me.world) if me.is_first else [0]
        self._heard = {rank: (b"", started) for rank in watched}

    def start(self) -> None:
        """Begins to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Ends watching: the run is complete."""
        self._stopped.set()
        self._thread.join()

    def fail(self, reason: str, *, wait_for_cause: bool) -> bool:
        """Notes that this process ends with an error.

        Args:
            reason: one sentence.
            wait_for_cause: the error may follow from that of another process, which gets a moment to say it.

        Returns:
            Whether this process is the one to say why.
        """
        deadline = time.monotonic() + 3
        try:
            while wait_for_cause and time.monotonic() < deadline and not self._others_failed():
                time.sleep(0.05)
            own = f"{self.me.rank}:{reason}"
            with self._lock:
                is_speaker: bool = self.store.compare_set(FAILED, "", own) == own.encode()
        except RuntimeError:  # the store has gone with the process that failed
            is_speaker = True
        return is_speaker

    def _others_failed(self) -> bool:
        with self._lock:
            return bool(self.store.check([FAILED]))

    def _watch(self) -> None:
        count = 0
        failed_at: float | None = None
        while not self._stopped.wait(INTERVAL_S):
            count += 1
            try:
                if failed_at is None and self._others_failed():
                    failed_at = time.monotonic()
                lost = self._lost(count) if failed_at is None else None
            except RuntimeError:
                if not self._stopped.wait(GRACE_S):  # else the run was complete
                    self._end("The process at which those of this run meet has gone.")
                return
            if lost is not None:
                self._end(f"Process {lost} of {self.me.world} has given no sign of life for {self.lost_after_s:.0f} s.")
            if failed_at is not None and time.monotonic() - failed_at > GRACE_S:
                os._exit(1)

    def _lost(self, count: int) -> int | None:
        """Gives a sign of life; the number of a process that has not for too long."""
        with self._lock:
            self.store.set(f"fintune/alive/{self.me.rank}", str(count))
            for rank, (before, since) in self._heard.items():
                key = f"fintune/alive/{rank}"
                now = self.store.get(key) if self.store.check([key]) else b""
                if now != before:
                    self._heard[rank] = now, time.monotonic()
                elif time.monotonic() - since > self.lost_after_s:
                    return rank
        return None

    def _end(self, sentence: str) -> None:
        if self.fail(sentence, wait_for_cause=False):
            sys.stderr.write(f"error: {sentence}\n{AGAIN}\n")
            sys.stderr.flush()
        os._exit(1)
