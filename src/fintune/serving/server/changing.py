"""Adapters that come, change and go while the server runs.

Enters: what a watched folder says has changed. Leaves: models that requests can name; each change is a line in the log
and counted. What cannot be done is said and tried again later; nothing of it ends the server, and no
sub-folder takes a name that the command gave.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from fintune.schema.errors import AdapterError, FintuneError
from fintune.serving.server.engine import Engine
from fintune.serving.server.logs import ServerLog
from fintune.serving.server.metrics import Metrics
from fintune.serving.server.models import ServedModel, ServedModels
from fintune.serving.server.watching import AdapterFolder, Change

log = logging.getLogger(__name__)


@dataclass
class AdapterChanges:
    """Makes the changes of a folder.

    Attributes:
        folder: what is watched.
        models: where the adapters go.
        engine: whose thread changes the model in memory.
        metrics: where changes are counted.
        server_log: where they are noted.
    """

    folder: AdapterFolder
    models: ServedModels
    engine: Engine
    metrics: Metrics
    server_log: ServerLog

    def require_own_names(self) -> None:
        """Raises AdapterError where a sub-folder has the name of a model that the command named."""
        for name in self.folder.names():
            if name in self.models.reserved:
                raise AdapterError(
                    f"Two models are called {name}: one that the command names, and {self.folder.folder / name}.",
                    "Rename the sub-folder, or give the other one another name (--name, --adapter NAME=PLACE).",
                )

    async def begin(self) -> None:
        """Loads the adapters that are there at the start."""
        for change in self.folder.begin():
            await self._make(change)

    async def look(self) -> None:
        """Makes the changes since the last time."""
        for change in await asyncio.to_thread(self.folder.changes):
            await self._make(change)

    async def _make(self, change: Change) -> None:
        if change.name in self.models.reserved:
            result, message = "ignored", None if change.gone else "The command gave this name to another model."
        else:
            result, message = await self._result(change)
        self.server_log.event("adapter", model=change.name, result=result, message=message)
        self.metrics.loads.labels(result).inc()

    async def _result(self, change: Change) -> tuple[str, str | None]:
        try:
            result, before = await self.engine.call(lambda: self._made(change))
        except Exception as error:
            pause_s = self.folder.failed(change)
            if not isinstance(error, FintuneError):
                log.exception("The adapter %s could not be changed.", change.name)
            said = str(error) or type(error).__name__
            return "failed", f"{said} The next try is in {pause_s:.0f} seconds, or once something in it changes."
        if before is not None:  # requests that found it in the list before it was changed end with it
            self.models.when_let_go(before, lambda: self.engine.retire(before, lambda: self.models.forget(before)))
        return result, None

    def _made(self, change: Change) -> tuple[str, ServedModel | None]:
        """What was done, and the model that is no longer in the list; runs in the engine's thread."""
        models = self.models
        if change.gone and change.name not in models.by_name:
            return "ignored", None
        before = models.unlist(change.name) if change.gone else models.add(change.name, change.place)
        return "removed" if change.gone else "loaded", before
