"""The application: routes with their documentation, errors in one format, and what runs beside.

Enters: models, keys and settings. Leaves: an ASGI application for uvicorn.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from fintune.schema.errors import FintuneError
from fintune.serving.server import wire
from fintune.serving.server.changing import AdapterChanges
from fintune.serving.server.engine import Engine
from fintune.serving.server.guard import CLOSED, Guard
from fintune.serving.server.keys import KeyRing
from fintune.serving.server.limits import Limiter
from fintune.serving.server.logs import ServerLog
from fintune.serving.server.metrics import Metrics
from fintune.serving.server.models import ServedModels
from fintune.serving.server.problems import HttpProblem, bad_request
from fintune.serving.server.refusals import explained
from fintune.serving.server.routes import Routes
from fintune.serving.server.settings import ServerSettings
from fintune.serving.server.streams import ClientGone
from fintune.serving.server.waiting import Waiting
from fintune.serving.server.watching import AdapterFolder

log = logging.getLogger(__name__)
LOOK_S = 1.0  # between two looks at the key file and the adapters' folder
_ERRORS = {
    400: "The request is wrong, or cannot be answered as asked.",
    401: "The key is missing or unknown.",
    404: "There is no such model.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    429: "Too much, or too often; Retry-After says when to come back.",
    500: "The server's fault.",
    503: "The server is shutting down, or has too little memory.",
    504: "The answer took too long.",
}


@dataclass(eq=False)
class Service:
    """A server's parts.

    Attributes:
        models: what is served.
        settings: sizes and times.
        keys: the keys in force.
        server_log: where lines go.
        folder: adapters that come and go; None for none.
        slots: answers written at once.
    """

    models: ServedModels
    settings: ServerSettings
    keys: KeyRing
    server_log: ServerLog
    folder: AdapterFolder | None = None
    slots: int = 1

    def __post_init__(self) -> None:
        self.engine, self.metrics, limiter = Engine(), Metrics(), Limiter()
        self.waiting = Waiting(self.slots, self.settings.max_waiting)
        self.routes = Routes(
            self.models, self.engine, self.settings, self.metrics, self.waiting, lambda: self.guard.draining
        )
        self.changes = None
        if self.folder is not None:
            self.changes = AdapterChanges(self.folder, self.models, self.engine, self.metrics, self.server_log)
            self.changes.require_own_names()
        self.api = self._api()
        self.guard = Guard(self.api, self.settings, self.keys, limiter, self.metrics, self.server_log)
        self.metrics.watch("answers_open", "Answers being written or waiting.", lambda: self.waiting.open)
        self.metrics.watch("requests_open", "Requests being answered.", lambda: self.guard.open)
        self.metrics.watch("models", "Models that requests can name.", lambda: len(self.models.by_name))

    def _api(self) -> FastAPI:
        app = FastAPI(
            title="fintune serve",
            version="1",
            description="Chat, completion and classification with fine-tuned models.",
            docs_url=None,  # they fetch scripts from elsewhere
            redoc_url=None,
            redirect_slashes=False,  # a redirect would name whatever host the client says
            lifespan=self._lifespan,
        )
        routes, keyed = self.routes, [Depends(HTTPBearer(auto_error=False))] if self.keys.file is not None else []
        posts = (
            ("/v1/chat/completions", routes.chat, wire.ChatAnswer, True),
            ("/v1/completions", routes.completions, wire.CompletionAnswer, True),
            ("/v1/classify", routes.classify, wire.ClassifyAnswer, False),
        )
        for path, function, answer, streams in posts:
            told = _responses(*_ERRORS, streams=streams)
            app.add_api_route(
                path, function, methods=["POST"], response_model=answer, responses=told, dependencies=keyed
            )
        for path, reads, listed in (
            ("/v1/models", routes.list_models, wire.ModelList),
            ("/v1/models/{name:path}", routes.model, wire.ModelCard),
        ):
            told = _responses(401, 404, 503)
            app.add_api_route(path, reads, methods=["GET"], response_model=listed, responses=told, dependencies=keyed)
        unwell = {503: {"model": wire.Health, "description": "It drains, or its engine is stuck or has died."}}
        app.add_api_route("/health", routes.health, methods=["GET"], response_model=wire.Health, responses=unwell)
        page: dict[int | str, Any] = {200: {"content": {"text/plain": {}}}, **_responses(401, 503)}
        app.add_api_route(
            "/metrics",
            routes.metrics_page,
            methods=["GET"],
            responses=page,
            response_class=Response,
            dependencies=keyed,
        )
        for kind, handler in _HANDLERS.items():
            app.add_exception_handler(kind, handler)
        return app

    @asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        self.engine.start()
        looks: list[Callable[[], Awaitable[None]]] = [partial(asyncio.to_thread, self.keys.refresh)]
        if self.changes is not None:
            await self.changes.begin()
            looks.append(self.changes.look)
        looking = [asyncio.ensure_future(_now_and_then(look)) for look in looks]
        self.server_log.event("started", models=list(self.models.by_name), slots=self.slots)
        try:
            yield
        finally:
            for task in looking:
                task.cancel()
            await asyncio.gather(*looking, return_exceptions=True)
            await self.engine.stop()
            self.routes.reader.stop()
            self.server_log.event("stopped")


async def _now_and_then(look: Callable[[], Awaitable[None]]) -> None:
    """Takes over what has changed; keys do not wait for adapters that take long to load."""
    while True:
        await asyncio.sleep(LOOK_S)
        try:
            await look()
        except Exception:
            log.exception("Keys or adapters could not be looked at.")


def _responses(*codes: int, streams: bool = False) -> dict[int | str, dict[str, Any]]:
    told: dict[int | str, dict[str, Any]] = {
        code: {"model": wire.ErrorAnswer, "description": _ERRORS[code]} for code in codes
    }
    if streams:
        event = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
        told[200] = {"content": {"text/event-stream": {"schema": event}}, "description": "Whole, or as events."}
    return told


async def _told(request: Request, error: Exception) -> Response:
    """Any error as a response in OpenAI's format."""
    problem = _problem(error)
    if isinstance(error, ClientGone):
        request.state.facts.told["client_gone"] = True
    return Response(problem.encoded(), problem.status, problem.headers, "application/json")


def _problem(error: Exception) -> HttpProblem:
    match error:
        case HttpProblem():
            return error
        case RequestValidationError():
            return bad_request(explained(error.errors(), error.body), "invalid_request")
        case HTTPException():
            code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
            return HttpProblem(error.status_code, f"{error.detail}.", code, dict(error.headers or {}))
        case FintuneError():
            return bad_request(str(error)) if error.exit_code == 2 else HttpProblem(500, str(error), "failed")
        case _:
            return HttpProblem(CLOSED, "The client has gone.", "client_gone")


Handler = Callable[[Request, Exception], Any]
_HANDLERS: dict[type[Exception], Handler] = dict.fromkeys(
    (HttpProblem, RequestValidationError, HTTPException, FintuneError, ClientGone), _told
)
