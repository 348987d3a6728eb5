"""The routes: what each request is answered with.

Enters: requests that passed the guard. Leaves: answers in OpenAI's format, whole or as events.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar, cast

from fastapi import Request, Response

from fintune.serving.server import wire
from fintune.serving.server.asking import Prompted, Questions, read_chat, read_completion, read_questions
from fintune.serving.server.engine import Engine
from fintune.serving.server.guard import Facts
from fintune.serving.server.jobs import Job, Piece
from fintune.serving.server.limits import Reservation
from fintune.serving.server.metrics import CONTENT_TYPE, Metrics
from fintune.serving.server.models import ServedModel, ServedModels
from fintune.serving.server.problems import HttpProblem, bad_request
from fintune.serving.server.reading import Reader
from fintune.serving.server.settings import ServerSettings
from fintune.serving.server.shapes import CHAT, COMPLETION, Shape, events, usage_of
from fintune.serving.server.streams import ClientGone, EventStream, until_gone
from fintune.serving.server.waiting import Places, Waiting
from fintune.serving.server.wire import ChatRequest, ClassifyRequest, CompletionRequest
from fintune.trees.prefix_tree import FloatArray

T = TypeVar("T")
Writing = ChatRequest | CompletionRequest


@dataclass
class Routes:
    """What the routes work with.

    Attributes:
        models: by name.
        engine: writes and classifies.
        settings: sizes and times.
        metrics: what is counted.
        waiting: how much is asked for.
        is_draining: whether new requests are refused.
    """

    models: ServedModels
    engine: Engine
    settings: ServerSettings
    metrics: Metrics
    waiting: Waiting
    is_draining: Callable[[], bool] = lambda: False
    reader: Reader = field(default_factory=Reader)

    async def chat(self, body: ChatRequest, request: Request) -> Any:
        """Answers a conversation."""
        facts: Facts = request.state.facts
        with self.models.holding(body.model) as model:
            read = partial(read_chat, body, model, self.settings, facts.key.limits)
            return await self._write(body, model, read, request, CHAT)

    async def completions(self, body: CompletionRequest, request: Request) -> Any:
        """Goes on with texts."""
        facts: Facts = request.state.facts
        with self.models.holding(body.model) as model:
            read = partial(read_completion, body, model, self.settings, facts.key.limits)
            return await self._write(body, model, read, request, COMPLETION)

    async def _write(
        self, body: Writing, model: ServedModel, read: Callable[[], Prompted], request: Request, shape: Shape
    ) -> Any:
        facts: Facts = request.state.facts
        facts.told["model"] = model.name
        if self.settings.log_text:
            facts.told["asked"] = body.model_dump(include={"messages", "prompt"})
        if body.n_answers > self.settings.max_answers:
            raise bad_request(f"One request may ask for {self.settings.max_answers} answers.", "too_many_answers")
        with self.waiting.taken(body.n_answers) as places:
            prompted = await self._read(body, read, request)
            answers = self._answers(model, prompted, places, facts)
            await anext(answers)  # the engine has the jobs; what is refused is refused with a status code
        head = {"id": f"{shape.prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": model.name}
        if body.stream:
            with_usage = bool(body.stream_options and body.stream_options.include_usage)
            return EventStream(events(answers, head, shape, prompted, with_usage), self.settings.send_timeout_s)
        return await _unless_gone(request, self._whole(answers, head, shape, prompted))

    async def _whole(
        self, answers: AsyncGenerator[Piece | None, None], head: dict[str, Any], shape: Shape, prompted: Prompted
    ) -> Any:
        last: dict[int, Piece] = {}
        try:
            async for piece in answers:
                if piece is not None and piece.problem is not None:
                    raise piece.problem
                if piece is not None:
                    last[piece.index] = piece
        finally:
            await answers.aclose()
        choices = [shape.choice(last[index]) for index in sorted(last)]
        usage = usage_of(prompted.prompt_tokens, sum(piece.n_tokens for piece in last.values()))
        return shape.answer(**head, choices=choices, usage=usage)

    async def _answers(
        self, model: ServedModel, prompted: Prompted, places: Places, facts: Facts
    ) -> AsyncGenerator[Piece | None, None]:
        """None once the request is taken, then the pieces of all answers as they come, to the end of each."""
        began, pieces = time.perf_counter(), asyncio.Queue[Piece]()
        if self.settings.log_text:
            facts.told["answers"] = [""] * len(prompted.prompts)
        with facts.account.tokens(prompted.most_tokens) as reserved:
            reserved.used = prompted.prompt_tokens
            with self._jobs(model, prompted, places, pieces) as jobs:
                yield None
                try:
                    async for piece in self._until_late(pieces, len(jobs), facts):
                        self._note(piece, model, facts)
                        yield piece
                finally:
                    self._account(model, prompted, jobs, facts, reserved)
        self.waiting.finished(time.perf_counter() - began)

    async def _until_late(self, pieces: asyncio.Queue[Piece], left: int, facts: Facts) -> AsyncIterator[Piece]:
        """The pieces of ``left`` answers, to the end of each or until the request has taken too long.

        Each wait has its own timeout, as the steps of a stream run in tasks of their own.
        """
        until = self._until(facts)
        while left:
            try:
                piece = await asyncio.wait_for(pieces.get(), until - time.monotonic())
            except TimeoutError:
                yield Piece(0, "", 0, problem=_too_late())
                return
            left -= piece.is_last
            yield piece

    def _note(self, piece: Piece, model: ServedModel, facts: Facts) -> None:
        if piece.first_token_s is not None and "first_token_s" not in facts.told:
            facts.told["first_token_s"] = piece.first_token_s
            self.metrics.first_token.labels(model.name).observe(piece.first_token_s)
        if self.settings.log_text:
            facts.told["answers"][piece.index] += piece.text
        if piece.is_last:
            ended = piece.ended or (piece.problem.code if piece.problem is not None else "failed")
            facts.told["ended"] = ended
            self.metrics.answers.labels(model.name, ended).inc()

    def _account(
        self, model: ServedModel, prompted: Prompted, jobs: list[Job], facts: Facts, reserved: Reservation
    ) -> None:
        written = sum(job.n_tokens for job in jobs)
        reserved.used = prompted.prompt_tokens + written
        self.metrics.tokens.labels(model.name, "prompt").inc(prompted.prompt_tokens)
        self.metrics.tokens.labels(model.name, "completion").inc(written)
        facts.told |= {"prompt_tokens": prompted.prompt_tokens, "completion_tokens": written}

    @contextmanager
    def _jobs(
        self, model: ServedModel, prompted: Prompted, places: Places, pieces: asyncio.Queue[Piece]
    ) -> Iterator[list[Job]]:
        """Jobs at work while the block runs; the engine holds the place of each until it has let go of it."""
        jobs: list[Job] = []
        try:
            for index, (prompt, manner) in enumerate(zip(prompted.prompts, prompted.manners, strict=True)):
                make = partial(Job, model, prompt, manner, index=index)
                jobs.append(self.engine.submit(make, partial(_receive, pieces, places.hand_over())))
            yield jobs
        finally:
            for job in jobs:
                job.cancelled = True

    def _until(self, facts: Facts) -> float:
        """When a request that is not answered by then ends."""
        return facts.arrived + self.settings.request_timeout_s

    async def _read(self, body: Writing | ClassifyRequest, read: Callable[[], T], request: Request) -> T:
        """What ``read`` makes of the body, in the reader's thread."""
        reading = self.reader.read(body.n_characters, read, self._until(request.state.facts))
        try:
            return cast(T, await _unless_gone(request, reading))
        except TimeoutError:
            raise _too_late() from None

    async def classify(self, body: ClassifyRequest, request: Request) -> Any:
        """Labels texts with probabilities."""
        with self.models.holding(body.model) as model:
            return await self._classify(body, model, request)

    async def _classify(self, body: ClassifyRequest, model: ServedModel, request: Request) -> Any:
        facts: Facts = request.state.facts
        facts.told["model"] = model.name
        with self.waiting.taken(1) as places:
            questions = await self._read(body, partial(read_questions, body, model, self.settings), request)
            with facts.account.tokens(questions.n_tokens) as reserved:
                reserved.used = questions.n_tokens
                found = await self._classified(model, questions, places, request)
        self.metrics.tokens.labels(model.name, "prompt").inc(questions.n_tokens)
        facts.told |= {"prompt_tokens": questions.n_tokens, "texts": len(found)}
        data = []
        for index, (example, text, row) in enumerate(zip(questions.examples, questions.encoded, found, strict=True)):
            by_label = dict(zip(example.choices, map(float, row), strict=True))
            label = max(by_label, key=lambda name: by_label[name])
            data.append(wire.Classified(index=index, label=label, probabilities=by_label, shortened=text.truncated))
        head = {"id": f"classify-{secrets.token_hex(12)}", "created": int(time.time()), "model": model.name}
        return wire.ClassifyAnswer(**head, data=data, usage=usage_of(questions.n_tokens, 0))

    async def _classified(
        self, model: ServedModel, questions: Questions, places: Places, request: Request
    ) -> list[FloatArray]:
        asked, found = self.engine.classify(model, questions.encoded, places.hand_over())
        try:
            async with asyncio.timeout(self._until(request.state.facts) - time.monotonic()):
                return cast(list[FloatArray], await _unless_gone(request, found))
        except TimeoutError:
            raise _too_late() from None
        finally:
            asked.cancelled = True

    async def list_models(self) -> Any:
        """All models that requests can name."""
        return wire.ModelList(data=[_card(model) for model in self.models.by_name.values()])

    async def model(self, name: str) -> Any:
        """One of them."""
        return _card(self.models.get(name))

    async def health(self, response: Response) -> Any:
        """Whether requests are taken: 200, or 503 while the server drains, or its engine is stuck or has died."""
        status = "failed" if not self.engine.is_alive else "draining" if self.is_draining() else "ok"
        if status == "ok" and self.engine.stuck_s > self.settings.stuck_s:
            status = "stuck"
        response.status_code = 200 if status == "ok" else 503
        return wire.Health(status=status, models=len(self.models.by_name), waiting=self.waiting.open)

    async def metrics_page(self) -> Response:
        """The figures for Prometheus."""
        return Response(self.metrics.page(), headers={"content-type": CONTENT_TYPE})


def _too_late() -> HttpProblem:
    return HttpProblem(504, "The answer took too long.", "timeout")


def _receive(pieces: asyncio.Queue[Piece], released: Callable[[], None], piece: Piece) -> None:
    if piece.is_last:
        released()
    pieces.put_nowait(piece)


async def _unless_gone(request: Request, work: Any) -> Any:
    """The result of the work, which is cancelled when the client closes the connection.

    Raises:
        ClientGone: it did.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(until_gone(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def _card(model: ServedModel) -> wire.ModelCard:
    return wire.ModelCard(id=model.name, created=model.created, parent=model.parent)
