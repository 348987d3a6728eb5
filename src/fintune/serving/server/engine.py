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
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import torch

from fintune.inference.likelihood import choice_log_likelihoods, softmax
from fintune.serving.server.jobs import Job
from fintune.serving.server.lanes import Lane
from fintune.serving.server.problems import HttpProblem
from fintune.trees.encoded import EncodedExample
from fintune.trees.prefix_tree import FloatArray

if TYPE_CHECKING:
    from fintune.serving.server.models import ServedModel

log = logging.getLogger(__name__)
TURN = 4  # steps of one lane before what has arrived, and other lanes, are looked at: switching adapters takes time
CHUNK = 16  # texts classified before the writing goes on
_FAILED = "The answer could not be written; the server's log says why."
Task = Callable[[], None]


@dataclass(eq=False)
class Classification:
    """Texts to be classified, and the probabilities of their choices as far as they are known."""

    model: ServedModel
    texts: tuple[EncodedExample, ...]
    found: asyncio.Future[list[FloatArray]]
    known: list[FloatArray]
    cancelled: bool = False


class Engine:
    """Writes and classifies with the models of one base."""

    def __init__(self) -> None:
        self._inbox: SimpleQueue[Task | None] = SimpleQueue()
        self._outbox: list[Task] = []
        self._lanes: list[Lane] = []
        self._classifying: deque[Classification] = deque()
        self._retired: list[tuple[ServedModel, Callable[[], None]]] = []
        self._thread = threading.Thread(target=self._run, name="fintune-engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

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

    def submit(self, make: Callable[[Callable[[Any], None]], Job], receive: Callable[[Any], None]) -> Job:
        """Queues a job; ``receive`` gets its pieces in the event loop.

        Args:
            make: makes the job, given where it is to put its pieces.
            receive: called with each piece.
        """
        job = make(lambda piece: self._outbox.append(partial(receive, piece)))
        self._inbox.put(partial(self._take_job, job))
        return job

    async def classify(self, model: ServedModel, texts: tuple[EncodedExample, ...]) -> list[FloatArray]:
        """For each text the probabilities of its choices."""
        assert self._loop is not None, "start the engine first"
        asked = Classification(model, texts, self._loop.create_future(), [])
        self._inbox.put(partial(self._take_classification, asked))
        try:
            return await asked.found
        finally:
            asked.cancelled = True

    async def call(self, function: Callable[[], Any]) -> Any:
        """Runs a function in the engine's thread, between two steps, and returns what it returns."""
        assert self._loop is not None, "start the engine first"
        found = self._loop.create_future()
        self._inbox.put(partial(self._call, function, found))
        return await found

    def _run(self) -> None:
        with torch.no_grad():  # of this thread alone
            while self._receive(block=self._is_idle):
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
        try:
            while (task := self._inbox.get(block=block)) is not None:
                block = False
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
                log.exception("A lane failed; its answers end here.")
                lane.fail_all(HttpProblem(500, _FAILED, "failed"))
        self._classify()
        self._sweep()

    def _write(self, lane: Lane) -> None:
        with lane.using():
            for step in range(10 * TURN):
                lane.step()
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
            log.exception("An answer could not be queued.")
            job.fail(HttpProblem(500, _FAILED, "failed"))
            return
        if job.model.lane not in self._lanes:
            self._lanes.append(job.model.lane)

    def _take_classification(self, asked: Classification) -> None:
        if asked.model.retired:
            problem = HttpProblem(404, f"The model {asked.model.name} was taken away.", "model_not_found")
            self._outbox.append(partial(_settle, asked.found, error=problem))
            return
        asked.model.predictor.scorer.model.model.eval()
        self._classifying.append(asked)

    def _classify(self) -> None:
        """Classifies a few texts, of several requests where they ask the same adapter."""
        while self._classifying and self._classifying[0].cancelled:
            self._classifying.popleft()
        if not self._classifying:
            return
        first = self._classifying[0]
        chosen: list[tuple[Classification, EncodedExample]] = []
        for asked in self._classifying:
            if asked.model is first.model and not asked.cancelled:
                left = asked.texts[len(asked.known) : len(asked.known) + CHUNK - len(chosen)]
                chosen += [(asked, text) for text in left]
        try:
            found = self._probabilities(first.model, [text for _, text in chosen])
        except Exception:
            log.exception("A classification failed.")
            problem = HttpProblem(500, "The texts could not be classified; the server's log says why.", "failed")
            for asked in dict.fromkeys(asked for asked, _ in chosen):
                self._classifying.remove(asked)
                self._outbox.append(partial(_settle, asked.found, error=problem))
            return
        for (asked, _), probabilities in zip(chosen, found, strict=True):
            asked.known.append(probabilities)
        for asked in dict.fromkeys(asked for asked, _ in chosen):
            if len(asked.known) == len(asked.texts):
                self._classifying.remove(asked)
                self._outbox.append(partial(_settle, asked.found, asked.known))

    def _probabilities(self, model: ServedModel, texts: list[EncodedExample]) -> list[FloatArray]:
        scorer = model.predictor.scorer
        with model.predictor.using():
            scores = choice_log_likelihoods(
                scorer.model, texts, tokens_per_batch=scorer.tokens_per_batch, packing=scorer.packing
            )
        return [softmax(score) for score in scores]

    def _call(self, function: Callable[[], Any], found: asyncio.Future[Any]) -> None:
        try:
            settle = partial(_settle, found, function())
        except Exception as error:
            settle = partial(_settle, found, error=error)
        self._outbox.append(settle)

    def retire(self, model: ServedModel, forget: Callable[[], None]) -> None:
        """Takes no more jobs for a model, and calls ``forget`` once those it has are done; for use inside ``call``."""
        model.retired = True
        self._retired.append((model, forget))

    def _sweep(self) -> None:
        """Leaves idle lanes alone, and forgets retired models that nothing uses any more."""
        self._lanes = [lane for lane in self._lanes if not lane.is_idle]
        classified = {id(asked.model) for asked in self._classifying}
        for entry in list(self._retired):
            model, forget = entry
            if not model.lane.uses(model) and id(model) not in classified:
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
