"""Checkpoints that are whole or absent: written aside, hashed, verified, then renamed into place."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from fintune.inference.out_of_memory import is_out_of_memory
from fintune.schema.errors import RunError
from fintune.schema.run_directory import flush_to_disk

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_NAME = re.compile(r"^checkpoint-(\d+)$")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its folder and the optimiser step after which it was taken."""

    path: Path
    step: int

    def manifest(self) -> dict[str, Any]:
        """What was written beside the file hashes."""
        content: dict[str, Any] = json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))
        return content


def list_checkpoints(folder: Path) -> list[Checkpoint]:
    """Checkpoints in ``folder``, oldest first, whether or not they are intact."""
    if not folder.is_dir():
        return []
    found = [(match, path) for path in folder.iterdir() if (match := _NAME.match(path.name))]
    return sorted((Checkpoint(path, int(match[1])) for match, path in found), key=lambda c: c.step)


def is_intact(checkpoint: Checkpoint) -> bool:
    """Whether every file of the manifest is there with the hash it was written with."""
    try:
        files: dict[str, str] = checkpoint.manifest()["files"]
        return bool(files) and all(_sha256(checkpoint.path / name) == digest for name, digest in files.items())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return False


def newest_intact(folder: Path, wanted: Callable[[Checkpoint], bool] = lambda _: True) -> Checkpoint | None:
    """The newest ``wanted`` checkpoint whose files are all as written; damaged ones are logged and passed over."""
    for checkpoint in filter(wanted, reversed(list_checkpoints(folder))):
        if is_intact(checkpoint):
            return checkpoint
        log.warning("%s is incomplete or damaged; going on from an older checkpoint.", checkpoint.path)
    return None


@contextmanager
def staged_checkpoint(folder: Path, step: int, facts: dict[str, Any]) -> Iterator[Path]:
    """Yields a folder to write a checkpoint into; it appears as ``checkpoint-<step>`` only when complete.

    Args:
        folder: folder of checkpoints.
        step: optimiser step the checkpoint belongs to.
        facts: written into the manifest beside the file hashes.

    Raises:
        RunError: writing failed (a full disk, say); earlier checkpoints are untouched.
    """
    final = folder / f"checkpoint-{step}"
    staging = folder / f".staging-{step}"
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        yield staging
        files = {str(p.relative_to(staging)): _sha256(p) for p in sorted(staging.rglob("*")) if p.is_file()}
        (staging / MANIFEST).write_text(json.dumps({"step": step, **facts, "files": files}, indent=2), encoding="utf-8")
        for path in [*staging.rglob("*"), staging]:
            flush_to_disk(path)
        if final.exists():
            shutil.rmtree(final)
        staging.rename(final)
        flush_to_disk(folder)
    except (OSError, RuntimeError, SafetensorError) as exc:  # torch and safetensors report a full disk as their own
        if is_out_of_memory(exc):
            raise
        reason = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
        raise RunError(
            f"The checkpoint of step {step} could not be written to {folder} ({reason}).",
            "Free some space and start the same command again; it goes on from the last complete checkpoint.",
        ) from exc
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def discard_after(folder: Path, step: int) -> None:
    """Removes checkpoints later than the one a run resumes from: they are damaged, or they would be written again."""
    for checkpoint in list_checkpoints(folder):
        if checkpoint.step > step:
            shutil.rmtree(checkpoint.path, ignore_errors=True)


def rotate(folder: Path, keep: int, save_steps: int, best_step: int | None) -> None:
    """Deletes all but the newest ``keep`` regular checkpoints, the newest of all and the best one, and leftovers.

    Regular are multiples of ``save_steps``. One that a signal caused takes no place of theirs, so that after a resume
    the same ones are there as if nothing had happened.
    """
    checkpoints = list_checkpoints(folder)
    regular = [checkpoint.step for checkpoint in checkpoints if checkpoint.step % save_steps == 0]
    kept = {*regular[-keep:], *(checkpoint.step for checkpoint in checkpoints[-1:]), best_step}
    for checkpoint in checkpoints:
        if checkpoint.step not in kept:
            # Renamed first, so that a crash half-way leaves no folder that looks like a checkpoint.
            doomed = checkpoint.path.with_name(f".old-{checkpoint.step}")
            checkpoint.path.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)
    for leftover in [*folder.glob(".old-*"), *folder.glob(".staging-*")]:
        shutil.rmtree(leftover, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
