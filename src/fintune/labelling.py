"""``fintune.predict_file``: a file of any size through a model, in one process, in several, or on a Ray cluster.

Enters: where a model lies, and a file. Leaves: the file's rows in their order, with the model's answers in further
columns; the same bytes however many processes took part, and however often they were stopped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fintune.schema.errors import DataError

if TYPE_CHECKING:
    from fintune.metrics.abstention import Abstention
    from fintune.serving.files import FileOutcome

Engine = Literal["local", "ray"]


def predict_file(
    place: str | Path,
    source: str | Path,
    text: str,
    output: str | Path,
    *,
    task: str | None = None,
    abstain: float | None = None,
    processes: int | None = None,
    gpus: int | None = None,
    engine: Engine = "local",
    device: str | None = None,
    quantization: str | None = None,
    bf16_products: bool = False,
    progress: bool = False,
    on_threshold: Callable[[Abstention], None] | None = None,
    **reading: str | None,
) -> FileOutcome:
    """Labels the rows of a file into another file; a run that was stopped goes on where it was.

    Args:
        place: run directory, adapter folder or name, or base model.
        source: CSV, JSONL, Parquet or Excel file.
        text: column with the text.
        output: .csv, .jsonl or .parquet file that is written.
        task: task whose prompt and labels to use; the first trained one when None.
        abstain: accuracy that the answers should have; the others are marked in the column abstained.
        processes: that many hold the model and share the processor; with ``ray``, over the whole cluster. When None:
            one; with ``ray``, one for each GPU of the cluster, else for each machine.
        gpus: that many processes, each with a GPU of its own.
        engine: ``local`` works on this machine, ``ray`` on the cluster that RAY_ADDRESS names, or on a new local one.
        device: torch device; a GPU if there is one, when None. Not with ``gpus``.
        quantization: none, nf4, int8 or fp8; what the run was trained with, when None.
        bf16_products: as ``load`` takes it.
        progress: show progress on standard error.
        on_threshold: is told the threshold that ``abstain`` leads to.
        reading: delimiter, encoding or sheet, where detection fails.

    Raises:
        DataError: the file cannot be read, lacks the column, or ``output`` exists already; or arguments contradict one
            another.
        ModelError: the model cannot be loaded, or there is no such device or quantization.
        RunError: there are fewer GPUs than asked for; or a process died, the others were stopped, and what was done is
            kept.
        DependencyError: Ray was asked for and is not installed.
    """
    from fintune.serving.files import label_file
    from fintune.serving.posed import Posed, question_elsewhere
    from fintune.serving.workers import require_gpus, workers_for

    count = _count(processes, gpus, device)
    named: dict[str, Any] = {"progress": progress, "reading": reading}
    posed = Posed(_found_anywhere(place), task, abstain, quantization, device, bf16_products)
    if engine == "local" and gpus is not None:
        require_gpus(gpus)
        posed = replace(posed, device="cuda")
    if engine == "local" and (count or 1) == 1:
        question = posed.open()
        known = posed.known(question)
        _tell(on_threshold, question_elsewhere(posed, known)[1])
        return label_file(question, Path(source), text, Path(output), **named)
    if engine == "ray":
        from fintune.serving.on_ray import ray_workers

        staff = ray_workers(posed, count, gpus=gpus is not None)
    else:
        staff = workers_for(posed, count or 1, gpus=gpus is not None)
    with staff as workers:
        question, found = question_elsewhere(posed, workers.known)
        _tell(on_threshold, found)
        return label_file(question, Path(source), text, Path(output), engine=workers.engine, **named)


def _count(processes: int | None, gpus: int | None, device: str | None) -> int | None:
    """How many processes are asked for; None where that is left to the engine."""
    if processes is not None and gpus is not None:
        raise DataError("processes and gpus both say how many processes there are.", "Give one of them.")
    if device is not None and gpus is not None:
        raise DataError("device and gpus both say where the model is held.", "Give one of them.")
    for name, count in (("processes", processes), ("gpus", gpus)):
        if count is not None and count < 1:
            raise DataError(f"{name} is {count}.", "Give 1 or more, or leave it out.")
    return processes if gpus is None else gpus


def _found_anywhere(place: str | Path) -> str:
    """A place that is here as an absolute path: the processes of a cluster work in other folders."""
    path = Path(place).expanduser()
    return str(path.absolute()) if path.exists() else str(place)


def _tell(listener: Callable[[Abstention], None] | None, found: Abstention | None) -> None:
    if listener is not None and found is not None:
        listener(found)
