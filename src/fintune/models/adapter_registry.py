"""Named adapters written: added as copies, removed, checked. Several processes may do so at once, or be killed in it.

Enters: a run or an adapter folder. Leaves: versions as ``schema.adapter_records`` reads them. A version is copied into
a folder aside, flushed to disk and renamed into its place, so that it is whole or absent.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from fintune.models.adapter_files import AdapterInfo, read_adapter_info
from fintune.models.files import PICKLED_SUFFIXES, content_hash, sha256_of
from fintune.models.locate import ALIASES
from fintune.schema.adapter_records import (
    ADAPTER,
    NAME,
    RECORD,
    AdapterRecord,
    Parent,
    RecordedScore,
    StoredAdapter,
    get_stored,
    names,
    read_stored,
    registry_root,
    stored_adapters,
    unknown_adapter,
    versions,
)
from fintune.schema.errors import AdapterError, RunError
from fintune.schema.loading import load_recipe
from fintune.schema.run_directory import RunDirectory, flush_to_disk, writing

LOCK_SECONDS = 600.0  # copying a large adapter from a slow disk takes a while
_ADDING, _REMOVED, _GONE = ".adding-", ".removed-", ".gone-"


@dataclass(frozen=True)
class Origin:
    """How an adapter was made, where that was not by training.

    Attributes:
        method: ``training``, or how it was combined.
        parents: adapters it was made from.
        gap: of a combination, as ``AdapterRecord`` has it.
    """

    method: str = "training"
    parents: tuple[Parent, ...] = ()
    gap: float | None = None


@dataclass(frozen=True)
class Damage:
    """Something about a stored adapter that is not as it was written."""

    reference: str
    problem: str


def add_adapter(source: Path, name: str, *, origin: Origin | None = None, root: Path | None = None) -> StoredAdapter:
    """Copies an adapter into the registry as the next version of ``name``.

    Args:
        source: a finished run, or an adapter folder.
        name: letters, digits, dot, dash and underscore.
        origin: parents and method; trained, with no parents, when None.
        root: folder of the registry; that of this user when None.

    Raises:
        AdapterError: the name cannot be used, or ``source`` holds no LoRA adapter in safetensors form.
        RunError: the run is not trained to its end, or the disk refuses.
    """
    root = registry_root() if root is None else root
    _require_name(name)
    folder, run = _adapter_and_run(source)
    info = read_adapter_info(folder)
    if info.kind != "lora":
        raise AdapterError(
            f"{folder} holds a wholly trained model, which is no adapter.", "Use it by its path, as model.base."
        )
    with _changing(root), writing(root / name):
        aside = root / f"{_ADDING}{uuid.uuid4().hex}"
        try:
            left_out = _copy(folder, aside / ADAPTER)
            if content_hash(aside / ADAPTER, remember=False) != info.content_hash:
                raise AdapterError(f"{folder} changed while it was copied.", "Add it again once it is complete.")
            version = _next_version(root, name)
            record = _record(name, version, info, aside / ADAPTER, left_out, run, origin or Origin())
            _write(aside / RECORD, record.model_dump_json(indent=2) + "\n")
            for place in (aside / ADAPTER, aside):
                flush_to_disk(place)
            (root / name).mkdir(exist_ok=True)
            aside.rename(root / name / str(version))
            flush_to_disk(root / name)
            flush_to_disk(root)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return read_stored(root, name, version)


def remove_adapter(reference: str, *, force: bool = False, root: Path | None = None) -> tuple[str, ...]:
    """Removes a version, or with a bare name all of them; returns what was removed.

    Args:
        reference: ``NAME`` or ``NAME@VERSION``.
        force: remove it even if the lineage of others names it.
        root: as in ``add_adapter``.

    Raises:
        AdapterError: nothing has that name, or others have it as a parent.
    """
    root = registry_root() if root is None else root
    name, _, wanted = reference.partition("@")
    with _changing(root), writing(root):
        known = versions(root, name) if NAME.fullmatch(name) else []
        doomed = [version for version in known if wanted in ("", str(version))]
        if not doomed:
            raise unknown_adapter(root, reference)
        if not force:
            _require_childless(root, name, doomed)
        for version in doomed:
            (root / name / f"{_GONE}{version}").touch()
            flush_to_disk(root / name)
            aside = root / f"{_REMOVED}{uuid.uuid4().hex}"
            (root / name / str(version)).rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
    return tuple(f"{name}@{version}" for version in doomed)


def verify_adapters(reference: str | None = None, *, root: Path | None = None) -> tuple[tuple[str, ...], list[Damage]]:
    """Reads every byte of the stored adapters again.

    Args:
        reference: one version, or the newest of a name; all of all names when None.
        root: as in ``add_adapter``.

    Returns:
        What was checked, and what was found.
    """
    root = registry_root() if root is None else root
    if reference is not None:
        one = get_stored(root, reference)
        return (one.record.reference,), list(_damage(one))
    checked: list[str] = []
    found: list[Damage] = []
    for name in names(root):
        for version in versions(root, name):
            checked.append(f"{name}@{version}")
            try:
                found += _damage(read_stored(root, name, version))
            except AdapterError as exc:
                found.append(Damage(checked[-1], exc.message))
    return tuple(checked), found


def _damage(stored: StoredAdapter) -> Iterator[Damage]:
    expected, reference = stored.record.files, stored.record.reference
    there = {path.name for path in stored.path.iterdir()} if stored.path.is_dir() else set()
    for name, digest in expected.items():
        if name not in there:
            yield Damage(reference, f"{stored.path / name} is missing.")
        elif sha256_of(stored.path / name) != digest:
            yield Damage(reference, f"{stored.path / name} has changed since it was added.")
    for name in sorted(there - expected.keys()):
        yield Damage(reference, f"{stored.path / name} was not there when the adapter was added.")


def _require_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise AdapterError(
            f"{name!r:.80} cannot be the name of an adapter.",
            "Begin with a letter or digit, and use only these, dot, dash and underscore, 64 at most.",
        )
    if name in ALIASES:
        raise AdapterError(f"{name} is the name of a base model.", "Choose another name for the adapter.")


def _require_childless(root: Path, name: str, doomed: Sequence[int]) -> None:
    for stored in stored_adapters(root):
        record = stored.record
        if record.name == name and record.version in doomed:
            continue
        for parent in record.parents:
            if parent.name == name and parent.version in doomed:
                raise AdapterError(
                    f"{parent.reference} is a parent of {record.reference}, whose lineage would lead nowhere.",
                    f"Remove {record.reference} first, or force it.",
                )


@contextmanager
def _changing(root: Path) -> Iterator[None]:
    """One process at a time changes the registry; what a killed one left half-done is removed."""
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / ".lock")
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout:
        raise AdapterError(
            f"Another process is changing {root}.", "Wait for it, then give the same command again."
        ) from None
    except OSError as exc:
        raise RunError(f"{root} could not be written ({exc.strerror or exc}).", "Make it writable.") from exc
    try:
        for leftover in [*root.glob(f"{_ADDING}*"), *root.glob(f"{_REMOVED}*")]:
            shutil.rmtree(leftover, ignore_errors=True)
        yield
    finally:
        lock.release()


def _adapter_and_run(source: Path) -> tuple[Path, RunDirectory | None]:
    run = RunDirectory(source)
    if run.adapter.is_dir():
        return run.adapter, run
    if run.checkpoints.is_dir():
        raise RunError(f"The run {source} is not trained to its end.", "Finish it with `fintune train` first.")
    around = RunDirectory(source.resolve().parent)
    return source, around if around.adapter == source.resolve() and around.recipe.is_file() else None


def _copy(source: Path, target: Path) -> tuple[str, ...]:
    """Copies the files of an adapter folder to disk; what is no part of an adapter is named, not copied."""
    target.mkdir(parents=True)
    left_out = []
    for path in sorted(source.iterdir()):
        if not path.is_file() or path.suffix in PICKLED_SUFFIXES or path.name.startswith("."):
            left_out.append(path.name)
            continue
        shutil.copyfile(path, target / path.name)
        flush_to_disk(target / path.name)
    return tuple(left_out)


def _record(
    name: str,
    version: int,
    info: AdapterInfo,
    copied: Path,
    left_out: tuple[str, ...],
    run: RunDirectory | None,
    origin: Origin,
) -> AdapterRecord:
    recipe = RunDirectory(info.path).recipe
    return AdapterRecord(
        name=name,
        version=version,
        added=datetime.now(UTC).isoformat(timespec="seconds"),
        base=info.base,
        base_revision=info.base_revision,
        base_content_hash=info.base_content_hash,
        content_hash=info.content_hash,
        files={path.name: sha256_of(path) for path in sorted(copied.iterdir())},
        left_out=left_out,
        run=str(run.path.resolve()) if run is not None else None,
        recipe_hash=sha256_of(recipe) if recipe.is_file() else None,
        data_hash=_data_hash(recipe) if recipe.is_file() else None,
        method=origin.method,
        parents=origin.parents,
        gap=origin.gap,
        scores=_scores(run) if run is not None else (),
    )


def _data_hash(recipe: Path) -> str | None:
    rows = [(task.name, task.content_hash) for task in load_recipe(recipe).data.tasks]
    if any(digest is None for _, digest in rows):
        return None
    return hashlib.sha256(json.dumps(sorted(rows)).encode()).hexdigest()


def _scores(run: RunDirectory) -> tuple[RecordedScore, ...]:
    if not run.results.is_file():
        return ()
    found = [result for result in run.read_results().under("robust") if result.system == "tuned"]
    return tuple(
        RecordedScore(task=r.task, metric=r.primary, value=estimate.value, low=estimate.low, high=estimate.high, n=r.n)
        for r in found
        if (estimate := r.metrics.get(r.primary)) is not None
    )


def _next_version(root: Path, name: str) -> int:
    folder = root / name
    gone = [int(path.name.removeprefix(_GONE)) for path in folder.glob(f"{_GONE}*")] if folder.is_dir() else []
    return 1 + max([*versions(root, name), *gone], default=0)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    flush_to_disk(path)
