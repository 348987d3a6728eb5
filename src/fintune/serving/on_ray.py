"""Groups of rows answered past one machine, by Ray Data: actors that hold the model, wherever the cluster has room.

Enters: groups, which this process reads and puts into Ray's object store, one block each; the other machines need the
model, not the file. Leaves: their answers in any order. What a lost machine or actor had in hand is given to another,
as Ray Data does by itself: a group is answered the same way wherever that is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fintune.schema import errors
from fintune.schema.errors import DataError, DependencyError, FintuneError, RunError
from fintune.serving.groups import Answered, Group
from fintune.serving.posed import Posed
from fintune.serving.workers import AGAIN, Workers

if TYPE_CHECKING:
    import numpy as np


class GroupAnswerer:
    """What each actor runs: holds the model and answers one group a call."""

    def __init__(self, posed: Posed) -> None:
        self._question = posed.open()
        self._fingerprint = self._question.labeller.fingerprint(posed.task)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[str]]:
        """A batch of one row, the group as JSON, to one row, its answers as JSON."""
        (group,) = (json.loads(text) for text in batch["group"])
        try:
            found = {
                "start": group["start"],
                "values": list(self._question.values(self._question.read(group["texts"]))),
                "fingerprint": self._fingerprint,
            }
        except FintuneError as error:
            found = _as_json(error)
        return {"answer": [json.dumps(found)]}


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
        import ray.data
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
        known = _taken(ray.get(describe.remote(posed)))
        yield Workers(known, lambda groups: _answers(posed, count, share, known["fingerprint"], groups))
    except ray.exceptions.RayError as error:
        said = str(error).strip().splitlines()
        raise RunError(f"Ray could not go on: {said[-1] if said else type(error).__name__}", AGAIN) from error
    finally:
        if not was_there:
            ray.shutdown()


def _answers(
    posed: Posed, count: int, share: dict[str, int], fingerprint: dict[str, str], groups: Iterator[Group]
) -> Iterator[Answered]:
    import pyarrow as pa
    import ray
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # The store is that of this machine; what does not fit into its memory, Ray keeps on its disk.
    blocks = [ray.put(pa.table({"group": [json.dumps(asdict(group))]})) for group in groups]
    if not blocks:
        return
    data = ray.data.from_arrow_refs(blocks)
    answers = data.map_batches(
        GroupAnswerer,
        fn_constructor_args=(posed,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(count, len(blocks))),
        **share,
    )
    for row in answers.iter_rows():
        found = _taken(row["answer"])
        if found["fingerprint"] != fingerprint:
            raise DataError(
                f"The machines of the cluster hold different models at {posed.place}.",
                "Copy the same one to all of them, or name a place that all of them reach.",
            )
        yield Answered(found["start"], found["values"])


def _describe(posed: Posed) -> str:
    try:
        return json.dumps(posed.known(posed.open()))
    except FintuneError as error:
        return json.dumps(_as_json(error))


def _as_json(error: FintuneError) -> dict[str, Any]:
    return {"error": [type(error).__name__, error.message, error.remedy]}


def _taken(line: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(line)
    if "error" in found:
        kind, message, remedy = found["error"]
        raise getattr(errors, kind, FintuneError)(message, remedy)
    return found
