"""A lane: the answers that one adapter writes at once, in slots that go from finished answers to waiting prompts.

Enters: jobs, at any time. Leaves: their tokens, a step at a time. Where memory runs out, the lane goes on with half of
its slots, and with what was written so far; an answer that does not fit alone ends. An idle lane has all slots again.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from itertools import count
from typing import TYPE_CHECKING, Protocol

from fintune.inference.continuous import SlotWriter
from fintune.inference.drafts import Draft
from fintune.inference.out_of_memory import empty_caches, is_out_of_memory
from fintune.inference.slots import register
from fintune.serving.predictor import Predictor
from fintune.serving.server.jobs import Job, JobChooser, JobTaker
from fintune.serving.server.problems import HttpProblem

if TYPE_CHECKING:
    from fintune.serving.server.models import ServedModel

log = logging.getLogger(__name__)


class Lane(Protocol):
    """What writes jobs: slots of our own, or vLLM; used by the engine's thread alone."""

    def add(self, job: Job) -> None:
        """Queues a job."""

    def using(self) -> AbstractContextManager[object]:
        """What ``step`` is to be called in."""

    def step(self) -> None:
        """Goes on with all jobs by about a token."""

    @property
    def is_idle(self) -> bool:
        """No job is queued or being written."""

    def uses(self, model: ServedModel) -> bool:
        """Whether a job of this model is queued or being written."""

    def fail_all(self, problem: HttpProblem) -> None:
        """Ends all jobs without an answer."""

    def forget(self, model: ServedModel) -> None:
        """Frees what is kept for a model that writes no more."""


class SlotLane:
    """A lane of our own generator.

    Args:
        predictor: the adapter that writes.
        slots: answers written at once.
    """

    def __init__(self, predictor: Predictor, slots: int) -> None:
        register()
        self._predictor, self._most_slots, self._slots = predictor, slots, slots
        self._jobs: dict[int, Job] = {}
        self._drafts: dict[int, Draft] = {}
        self._numbers = count()
        self._writer: SlotWriter | None = None

    def add(self, job: Job) -> None:
        """Queues a job."""
        number = next(self._numbers)
        self._jobs[number] = job
        self._drafts[number] = Draft(number, job.prompt, job.manner.limit)
        if self._writer is not None:
            self._writer.waiting.append(self._drafts[number])

    def using(self) -> AbstractContextManager[object]:
        """The adapter in use."""
        return self._predictor.using()

    @property
    def is_idle(self) -> bool:
        """No job is queued or being written."""
        return not self._jobs

    def uses(self, model: ServedModel) -> bool:
        """Whether a job of this model is queued or being written."""
        return any(job.model is model for job in self._jobs.values())

    def step(self) -> None:
        """Reads prompts, or writes a token of each answer; an idle lane keeps no memory."""
        writer = self._writer or self._new_writer()
        try:
            self._drop_cancelled(writer)
            writer.step()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self._writer, alone = None, self._alone(writer)
            del writer
            self._halve(alone)
        self._forget_done()

    def _new_writer(self) -> SlotWriter:
        scorer = self._predictor.scorer
        self._writer = SlotWriter(
            scorer.model,
            list(self._drafts.values()),
            JobTaker(self._jobs, scorer.chat.end_ids),
            JobChooser(self._jobs),
            slots=self._slots,
            tokens_per_batch=scorer.tokens_per_batch,
            packing=scorer.packing,
            on_done=lambda finished: None,
        )
        return self._writer

    def _drop_cancelled(self, writer: SlotWriter) -> None:
        for number, job in self._jobs.items():
            if job.cancelled:
                job.drop()
                self._drafts[number].done = True
        writer.waiting = [draft for draft in writer.waiting if not draft.done]
        writer.drop_done()

    def _forget_done(self) -> None:
        for number in [number for number, job in self._jobs.items() if job.done]:
            del self._jobs[number], self._drafts[number]
        if not self._jobs:
            self._writer, self._slots = None, self._most_slots

    def _alone(self, writer: SlotWriter) -> Job | None:
        """The job that one slot was for: it is being written, or its prompt was being read and waits no more."""
        waiting = {draft.index for draft in writer.waiting}
        taken = [job for number, job in self._jobs.items() if number not in waiting and not job.done]
        return taken[0] if self._slots == 1 and len(taken) == 1 else None

    def _halve(self, alone: Job | None) -> None:
        empty_caches()
        problem = HttpProblem(503, "Memory ran out while this answer was written alone.", "out_of_memory")
        if alone is not None:
            alone.fail(problem)
            return
        if self._slots == 1:
            self.fail_all(problem)
            return
        self._slots //= 2
        log.warning("Memory ran out; going on with %d answers at once.", self._slots)

    def fail_all(self, problem: HttpProblem) -> None:
        """Ends all jobs without an answer."""
        self._writer = None
        for job in self._jobs.values():
            if not job.done:
                job.fail(problem)
        self._jobs.clear()
        self._drafts.clear()

    def forget(self, model: ServedModel) -> None:
        """Nothing is kept beyond the jobs."""
