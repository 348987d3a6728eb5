"""A run on disk: where each file of a run lies, and how it is written so that a crash leaves the old or the new.

::

    runs/quickstart/
      recipe.yaml          resolved: revisions and hashes pinned; reproduces the run
      environment.json     versions and hardware
      data_report.json     what was found in the rows
      metrics.jsonl        one line per logged step
      logs/                rank-N.log and rank-N.jsonl, where several processes trained
      checkpoints/         checkpoint-N, each with a manifest of hashes
      adapter/             adapter (safetensors), tokenizer, model card
      predictions.jsonl    one record per document and system
      results.json         aggregates with intervals
      report.html, report.md, tables.tex, figures/
      stages.json          of a run with stages: their order, and what it was chosen by
      stages/1-NAME/       of a run with stages: each is a run of its own
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fintune.schema.errors import RunError
from fintune.schema.results import DocumentRecord, EvaluationResults

# What reports compute with; a number, or nothing where it is not known.
_NUMBERS_OF_FACTS = (
    "all_parameters",
    "peak_bytes",
    "sample_tokens",
    "trainable_parameters",
    "training_seconds",
    "weight_bytes",
)
_NUMBERS_OF_STEPS = (
    "step",
    "loss",
    "eval_loss",
    "eval_macro_f1",
    "eval_accuracy",
    "learning_rate",
    "grad_norm",
    "gpu_utilization_percent",
    "gpu_memory_bytes",
    "gpu_power_w",
    "gpu_temperature_c",
    "tokens_per_s",
    "mfu",
)


@dataclass(frozen=True)
class RunDirectory:
    """Paths and files of one run."""

    path: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def environment(self) -> Path:
        """Versions and hardware."""
        return self.path / "environment.json"

    @property
    def facts(self) -> Path:
        """What the run measured about itself: parameters, tokens, seconds, bytes."""
        return self.path / "facts.json"

    @property
    def metrics(self) -> Path:
        """One JSON line per logged step."""
        return self.path / "metrics.jsonl"

    def metrics_of(self, rank: int) -> Path:
        """What one of several processes measured of itself, a line per logged step; the first has ``metrics``."""
        return self.metrics if rank == 0 else self.path / "logs" / f"rank-{rank}.jsonl"

    def rank_log(self, rank: int) -> Path:
        """What a process of several said while it trained."""
        return self.path / "logs" / f"rank-{rank}.log"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        """The trained adapter with its tokenizer; written when training is complete."""
        return self.path / "adapter"

    @property
    def data_report(self) -> Path:
        """What was found in the rows, by task."""
        return self.path / "data_report.json"

    @property
    def predictions(self) -> Path:
        """One JSON record per document and system."""
        return self.path / "predictions.jsonl"

    @property
    def results(self) -> Path:
        """Aggregates with intervals."""
        return self.path / "results.json"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard event files."""
        return self.path / "tensorboard"

    @property
    def stages(self) -> Path:
        """The order of the stages, and what it was chosen by."""
        return self.path / "stages.json"

    def read_facts(self) -> dict[str, Any]:
        """What the run has measured about itself so far.

        Raises:
            RunError: the file is damaged.
        """
        if not self.facts.is_file():
            return {}
        remedy = "Put it back from a copy, or remove it: reports then leave out what it says."
        try:
            facts = json.loads(self.facts.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as exc:
            raise RunError(f"{self.facts} is not JSON.", remedy) from exc
        if not isinstance(facts, dict):
            raise RunError(f"{self.facts} is no JSON object.", remedy)
        for key in _NUMBERS_OF_FACTS:
            if not _is_number(facts.get(key)):
                raise RunError(f"{self.facts} says {facts[key]!r:.60} of {key}, which is no number.", remedy)
        return facts

    def read_results(self) -> EvaluationResults:
        """The aggregates of a finished evaluation.

        Raises:
            RunError: the run was not evaluated or the file is damaged.
        """
        if not self.results.is_file():
            raise RunError(f"{self.path} has no results.json.", "Finish the run with `fintune train`, then try again.")
        try:
            return EvaluationResults.model_validate_json(self.results.read_text(encoding="utf-8"))
        except ValueError as exc:
            raise RunError(f"{self.results} is damaged.", "Evaluate the run again with `fintune train`.") from exc

    def read_records(self) -> list[DocumentRecord]:
        """The per-document records; empty when there are none.

        Raises:
            RunError: a line is no record.
        """
        try:
            return [DocumentRecord.model_validate(row) for row in read_jsonl(self.predictions)]
        except ValueError as exc:
            raise RunError(f"{self.predictions} has a line that is no record.", "Evaluate the run again.") from exc

    def read_history(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a last line cut short by a crash is left out.

        Raises:
            RunError: a line is damaged.
        """
        return _read_steps(self.metrics)

    def read_other_ranks(self) -> dict[int, list[dict[str, Any]]]:
        """The same of the other processes of a run on several GPUs, by rank.

        Raises:
            RunError: a line is damaged.
        """
        found = {int(path.stem.removeprefix("rank-")): path for path in self.path.glob("logs/rank-[0-9]*.jsonl")}
        return {rank: _read_steps(path) for rank, path in sorted(found.items())}


def _read_steps(path: Path) -> list[dict[str, Any]]:
    rows = list(read_jsonl(path))
    for number, row in enumerate(rows, start=1):
        for key in _NUMBERS_OF_STEPS:
            if not _is_number(row.get(key)):
                raise RunError(
                    f"Line {number} of {path} says {row[key]!r:.60} of {key}, which is no number.", "Remove that line."
                )
    return rows


def _is_number(value: object) -> bool:
    """Whether a value can be computed with; nothing, which stands for what is not known, can."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def adapter_folder(path: str | Path) -> Path:
    """The adapter of a run directory, or the folder itself."""
    folder = Path(path)
    inside = RunDirectory(folder).adapter
    return inside if inside.is_dir() else folder


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Makes a full disk, or a place that may not be written to, one sentence about ``path``.

    Raises:
        RunError: the block failed with an ``OSError``.
    """
    try:
        yield
    except OSError as exc:
        raise RunError(
            f"{path} could not be written ({exc.strerror or exc}).",
            "Free some space, or make its folder writable, and start the same command again; what is there is kept.",
        ) from exc


@contextmanager
def only_process(folder: Path, verb: str) -> Iterator[None]:
    """Makes ``folder``, and keeps every other process out that would ``verb`` (``builds``, say) into it.

    Raises:
        RunError: another process has it, or it cannot be made.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RunError(f"Another process {verb} into {folder}.", "Wait for it, or name another folder.") from None
    try:
        yield
    finally:
        lock.release()


def write_text_atomically(path: Path, text: str) -> None:
    """Writes aside, flushes to disk, then renames over ``path``.

    Raises:
        RunError: it cannot be written; what was there before is untouched.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with aside.open("w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)


def flush_to_disk(path: Path) -> None:
    """Makes a file, or the entries of a folder, survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def clear_leftovers(run: RunDirectory) -> None:
    """Removes what a killed process was still writing aside; nothing of it had taken its place."""
    for partial in run.path.glob(".*.partial"):
        partial.unlink(missing_ok=True)
    for folder in run.path.glob(".adapter-*"):
        shutil.rmtree(folder, ignore_errors=True)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes one JSON object atomically."""
    write_text_atomically(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def write_records(path: Path, records: Iterable[DocumentRecord]) -> None:
    """Writes one JSON line per record, atomically."""
    write_text_atomically(path, "".join(record.model_dump_json() + "\n" for record in records))


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file, line by line; a missing file has none, an incomplete last line is skipped.

    Raises:
        RunError: a line other than the last is not JSON, or one is no object.
    """
    if not path.is_file():
        return
    lines = path.read_bytes().split(b"\n")  # splitlines of a text would also part it at U+2028
    lines = lines[:-1] if lines[-1] == b"" else lines
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as exc:
            if number == len(lines):
                return
            raise RunError(f"Line {number} of {path} is not JSON.", "Remove that line.") from exc
        if not isinstance(row, dict):  # the beginning of an object is never a value of its own
            raise RunError(f"Line {number} of {path} is no JSON object.", "Remove that line.")
        yield row
