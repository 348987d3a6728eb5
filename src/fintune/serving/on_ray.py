"""Groups of rows answered past one machine, on a Ray cluster: how many actors there are, and what each may use.

Enters: the question. Leaves: ``Workers``. This process reads the groups and sends them; the other machines need the
model, not the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from fintune.schema.errors import DataError, DependencyError, RunError
from fintune.serving.posed import Posed
from fintune.serving.ray_pool import GroupAnswerer, answers, last_line, said_in_json, taken
from fintune.serving.workers import AGAIN, Workers


@contextmanager
def ray_workers(posed: Posed, count: int | None, *, gpus: bool = False) -> Iterator[Workers]:
    """Joins the cluster that ``RAY_ADDRESS`` names, or starts one on this machine, and leaves it with the block.

    Args:
        posed: the question; its place must lead to the same model on every machine.
        count: actors that hold the model; as many as the cluster has GPUs, else one a machine, when None.
        gpus: each gets a GPU of its own.

    Raises:
        DependencyError: Ray is not installed.
        RunError: the cluster cannot do it.
        FintuneError: what an actor could not do, as it would be raised here.
    """
    try:
        import ray
    except ImportError as error:
        raise DependencyError("Ray is not installed.", "Run: pip install 'fintune[ray]'") from error

    was_there = ray.is_initialized()
    if not was_there:
        ray.init(log_to_driver=False, configure_logging=False, include_dashboard=False)
    try:
        resources = ray.cluster_resources()
        gpus = gpus or (count is None and resources.get("GPU", 0) >= 1)
        count = count or int(resources.get("GPU", 0) if gpus else sum(node["Alive"] for node in ray.nodes()))
        if gpus and resources.get("GPU", 0) < count:
            raise RunError(
                f"{count} GPUs were asked for, but the cluster has {resources.get('GPU', 0):g}.", "Ask for fewer."
            )
        share = {"num_cpus": max(1, int(resources.get("CPU", 1)) // count), "num_gpus": 1 if gpus else 0}
        # A process of its own that ends with the task, so that its memory is free again.
        describe = ray.remote(max_calls=1, **share)(_describe)
        known = taken(ray.get(describe.remote(posed)))
        actors: Any = ray.remote(**share, max_restarts=0, max_task_retries=0)(GroupAnswerer)
        check = partial(_require_same, posed, known)
        yield Workers(known, partial(answers, partial(actors.remote, posed), count, check))
    except ray.exceptions.RayError as error:
        raise RunError(f"Ray could not go on: {last_line(error)}", AGAIN) from error
    finally:
        if not was_there:
            ray.shutdown()


def _describe(posed: Posed) -> str:
    return said_in_json(lambda: posed.known(posed.open()))


def _require_same(posed: Posed, known: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    if found["fingerprint"] != known["fingerprint"]:
        raise DataError(
            f"The machines of the cluster hold different models at {posed.place}.",
            "Copy the same one to all of them, or name a place that all of them reach.",
        )
