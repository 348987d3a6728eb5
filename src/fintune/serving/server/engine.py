"""The thread that owns the model: it writes in all lanes in turn, classifies in between, and changes adapters.

::

    event loop ── submit ──▶ inbox ──▶ │ engine thread: lane a ▸ lane b ▸ classify ▸ lane a … │
               ◀── pieces, together after each step ── outbox ◀──┘

Enters: jobs and classifications. Leaves: pieces and probabilities, handed over in the event loop. An error in a lane
ends the jobs of that lane; the thread goes on.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import torch

from fintune.serving.server.classifying import Classification, ClassificationQueue, Told
from fintune.serving.server.jobs import Job
from fintune.serving.server.lanes import Lane
from fintune.serving.server.problems import HttpProblem
from fintune.trees.encoded import EncodedExample
from fintune.trees.prefix_tree import FloatArray

if TYPE_CHECKING:
    from fintune.serving.server.models import ServedModel

log = logging.getLogger(__name__)
TURN = 4  # steps of one lane before what has arrived, and other lanes, are looked at: switching adapters takes time
_FAILED = "The answer could not be written; the server's log says why."
Task = Callable[[], None]


class Engine:
    """Writes and classifies with the models of one base."""

    def __init__(self) -> None:
        self._inbox: SimpleQueue[Task | None] = SimpleQueue()
        self._outbox: list[Task] = []
        self._lanes: list[Lane] = []
        self._classifying = ClassificationQueue()
        self._retired: list[tuple[ServedModel, Callable[[], None]]] = []
        self._thread = threading.Thread(target=self._run, name="fintune-engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stepped: float | None = None  # when, while there is something to do

    def start(self) -> None:
        """Begins to work, for the event loop that is running."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        """Ends after the current step; jobs that are still open get no answer."""
        self._inbox.put(None)
        await asyncio.to_thread(self._thread.join)

    @property
    def is_alive(self) -> bool:
        """Whether the thread is at work."""
        return self._thread.is_alive()

    @property
    def stuck_s(self) -> float:
        """Seconds since the thread last got a step further; 0 while it has nothing to do."""
        stepped = self._stepped
        return 0.0 if stepped is None else time.monotonic() - stepped

    def submit(self, make: Callable[[Callable[[Any], None]], Job], receive: Callable[[Any], None]) -> Job:
        """Queues a job; ``receive`` gets its pieces in the event loop.

        Args:
            make: makes the job, given where it is to put its pieces.
            receive: called with each piece.
        """
        job = make(lambda piece: self._outbox.append(partial(receive, piece)))
        self._inbox.put(partial(self._take_job, job))
        return job

    def classify(
        self, model: ServedModel, texts: tuple[EncodedExample, ...], released: Callable[[], None]
    ) -> tuple[Classification, asyncio.Future[list[FloatArray]]]:
        """Queues a classification; whoever no longer waits for it cancels it.

        Args:
            model: what is asked.
            texts: with their choices.
            released: called in the event loop once the engine has let go of them.

        Returns:
            The classification, and the probabilities of each text's choices to wait for.
        """
        assert self._loop is not None, "start the engine first"
        found = self._loop.create_future()

        def receive(told: Told) -> None:
            released()
            if isinstance(told, HttpProblem):
                _settle(found, error=told)
            elif told is not None:
                _settle(found, told)

        asked = Classification(model, texts, lambda told: self._outbox.append(partial(receive, told)))
        self._inbox.put(partial(self._take_classification, asked))
        return asked, found

    async def call(self, function: Callable[[], Any]) -> Any:
        """Runs a function in the engine's thread, between two steps, and returns what it returns."""
        assert self._loop is not None, "start the engine first"
        found = self._loop.create_future()
        self._inbox.put(partial(self._call, function, found))
        return await found

    def _run(self) -> None:
        with torch.no_grad():  # of this thread alone
            while self._receive(block=self._is_idle):
                self._stepped = time.monotonic()
                try:
                    self._turn()
                except Exception:  # of the engine itself: the jobs of the lanes have their own handling
                    log.exception("The engine goes on after an error of its own.")
                self._hand_out()

    @property
    def _is_idle(self) -> bool:
        return not self._retired and not self._classifying and not self._lanes

    def _receive(self, *, block: bool) -> bool:
        """Runs what has arrived; False when it is time to end."""
        self._stepped = None if block else self._stepped
        try:
            while (task := self._inbox.get(block=block)) is not None:
                block, self._stepped = False, time.monotonic()
                try:
                    task()
                except Exception:
                    log.exception("The engine goes on after an error of its own.")
                self._hand_out()
            return False
        except Empty:
            return True

    def _turn(self) -> None:
        for lane in list(self._lanes):
            try:
                self._write(lane)
            except Exception:
                lane.fail_all(HttpProblem(500, _FAILED, "failed"))
                log.exception("A lane failed; its answers ended here.")
            self._stepped = time.monotonic()
        self._classifying.turn()
        self._sweep()

    def _write(self, lane: Lane) -> None:
        with lane.using():
            for step in range(10 * TURN):
                lane.step()
                self._stepped = time.monotonic()
                self._hand_out()
                others = self._classifying or len(self._lanes) > 1 or not self._inbox.empty()
                if lane.is_idle or (others and step + 1 >= TURN):
                    return

    def _take_job(self, job: Job) -> None:
        if job.model.retired:
            job.fail(HttpProblem(404, f"The model {job.model.name} was taken away.", "model_not_found"))
            return
        try:
            job.model.lane.add(job)
        except Exception:
            job.fail(HttpProblem(500, _FAILED, "failed"))
            log.exception("An answer could not be queued.")
            return
        if job.model.lane not in self._lanes:
            self._lanes.append(job.model.lane)

    def _take_classification(self, asked: Classification) -> None:
        if asked.model.retired:
            asked.tell(HttpProblem(404, f"The model {asked.model.name} was taken away.", "model_not_found"))
            return
        asked.model.predictor.scorer.model.model.eval()
        self._classifying.add(asked)

    def _call(self, function: Callable[[], Any], found: asyncio.Future[Any]) -> None:
        try:
            settle = partial(_settle, found, function())
        except Exception as error:
            settle = partial(_settle, found, error=error)
        self._outbox.append(settle)

    def retire(self, model: ServedModel, forget: Callable[[], None]) -> None:
        """Takes no more jobs for a model but those submitted by now, and calls ``forget`` once all of them are done."""
        self._inbox.put(partial(self._retire, model, forget))

    def _retire(self, model: ServedModel, forget: Callable[[], None]) -> None:
        model.retired = True
        self._retired.append((model, forget))

    def _sweep(self) -> None:
        """Leaves idle lanes alone, and forgets retired models that nothing uses any more."""
        self._lanes = [lane for lane in self._lanes if not lane.is_idle]
        for entry in list(self._retired):
            model, forget = entry
            if not model.lane.uses(model) and not self._classifying.uses(model):
                self._retired.remove(entry)
                forget()

    def _hand_out(self) -> None:
        """Hands over, in the event loop, what there is."""
        if not self._outbox or self._loop is None:
            return
        ready, self._outbox = self._outbox, []
        try:
            self._loop.call_soon_threadsafe(_run_all, ready)
        except RuntimeError:  # the loop has ended, and with it everyone who waits
            log.debug("Nobody waits for %d results any more.", len(ready))


def _run_all(tasks: list[Task]) -> None:
    for task in tasks:
        task()


def _settle(found: asyncio.Future[Any], value: Any = None, error: Exception | None = None) -> None:
    if found.done():  # whoever waited has gone
        return
    if error is not None:
        found.set_exception(error)
    else:
        found.set_result(value)
