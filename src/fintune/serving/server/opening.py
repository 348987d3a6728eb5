"""A server from what the command was given.

Enters: a place, adapters, limits. Leaves: a service that is ready to run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch

from fintune.evaluation.scoring import generation_batch
from fintune.schema.errors import AdapterError, DependencyError
from fintune.serving.predictor import Predictor
from fintune.serving.server.lanes import Lane, SlotLane
from fintune.serving.server.logs import ServerLog
from fintune.serving.server.models import open_models
from fintune.serving.server.settings import ServerSettings
from fintune.serving.server.vllm_lane import VllmLane

NEEDED = ("fastapi", "uvicorn", "prometheus_client", "llguidance")


@dataclass(frozen=True)
class Served:
    """What is to be served.

    Attributes:
        place: run directory, adapter folder or name, or base model.
        adapters: further adapters on its base, by name.
        folder: folder whose sub-folders are served as adapters while they are there.
        name: what requests call ``place``.
        quantization: how the base is held; None as the adapters were trained.
        engine: what writes.
    """

    place: str
    adapters: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None
    name: str | None = None
    quantization: str | None = None
    engine: Literal["fintune", "vllm"] = "fintune"


def require_libraries() -> None:
    """Raises DependencyError where a library of the extra is not installed, before anything slow happens."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise DependencyError(
            f"The server needs {', '.join(missing)}, which is not installed.", "pip install 'fintune[serve]'"
        )


def open_service(  # type: ignore[no-untyped-def]  # returns a class of a module that needs the extra
    served: Served, settings: ServerSettings, keys: Path | None, *, device: torch.device, server_log: ServerLog
):
    """Loads what the command names and puts a server together; the adapters of the folder follow when it starts.

    Raises:
        FintuneError: something is missing, damaged or does not fit.
    """
    require_libraries()
    from fintune.serving.server.app import Service
    from fintune.serving.server.keys import KeyRing
    from fintune.serving.server.watching import AdapterFolder

    ring = KeyRing(keys, settings.limits)
    slots = generation_batch(settings.slots, device)
    folder = None
    if served.folder is not None:
        if not served.folder.is_dir():
            raise AdapterError(f"The folder {served.folder} does not exist.", "Make it, or check --adapters.")
        folder = AdapterFolder(served.folder)

    shared = VllmLane(slots) if served.engine == "vllm" else None

    def make_lane(predictor: Predictor) -> Lane:
        return shared.of(predictor) if shared is not None else SlotLane(predictor, slots)

    models = open_models(
        served.place,
        served.adapters,
        device=device,
        make_lane=make_lane,
        name=served.name,
        quantization=served.quantization,
        batches=served.engine == "fintune",
        watched=[folder.folder / name for name in folder.names()] if folder is not None else [],
    )
    if shared is not None:
        shared.open(models.host.loaded)
    return Service(models, settings, ring, server_log, folder, slots)
