"""Named adapters on disk, as they are read: where each version lies, what is known of where it came from.

::

    <home>/adapters/
      sentiment/
        1/  record.json   adapter/   a version is whole or absent, and never changes
        2/  record.json   adapter/
        .gone-3                      a removed version, whose number is not given again

Enters: a name, ``NAME@VERSION`` or a path. Leaves: ``StoredAdapter``. ``models.adapter_registry`` writes what is here.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from fintune.schema.errors import AdapterError
from fintune.schema.run_directory import adapter_folder

log = logging.getLogger(__name__)

RECORD = "record.json"
ADAPTER = "adapter"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_REFERENCE = re.compile(rf"({NAME.pattern})(?:@(\d{{1,9}}))?")
_VERSION = re.compile(r"[1-9]\d{0,8}")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Parent(_Frozen):
    """An adapter that another was made from.

    Attributes:
        name: of the adapter; its path, where it was never added.
        version: None for one that was never added.
        content_hash: SHA-256 of its weights; None where it was never added and is no longer at its path.
        weight: its share in a combination.
    """

    name: str
    version: int | None
    content_hash: str | None
    weight: float | None = None

    @property
    def reference(self) -> str:
        """``NAME@VERSION``, or the path."""
        return self.name if self.version is None else f"{self.name}@{self.version}"


class RecordedScore(_Frozen):
    """The primary score of one task, with its interval and the number of documents it was measured on."""

    task: str
    metric: str
    value: float
    low: float | None
    high: float | None
    n: int


class AdapterRecord(_Frozen):
    """One version of a named adapter, and where it came from.

    Attributes:
        name: of the adapter.
        version: counted from 1.
        added: date and time, UTC.
        base: the base model as the recipe named it; likewise its revision and the SHA-256 of its weights, each None
            where the adapter does not say it.
        content_hash: SHA-256 of the adapter's weights.
        files: SHA-256 of every file of the adapter.
        left_out: what lay beside it and was not copied: folders and pickled files.
        run: run directory it was copied from, None for a folder that belongs to no run.
        recipe_hash: SHA-256 of the recipe it was trained by; None without one.
        data_hash: over the hashes of all training rows; None where they are not known.
        method: ``training``, or how it was combined.
        parents: adapters it was made from.
        gap: of a combination, the distance of its update from the weighted sum of its parents', relative to that sum.
        scores: of the tuned model, where its run was evaluated.
    """

    name: str
    version: int
    added: str
    base: str
    base_revision: str | None
    base_content_hash: str | None
    content_hash: str
    files: dict[str, str]
    left_out: tuple[str, ...] = ()
    run: str | None = None
    recipe_hash: str | None = None
    data_hash: str | None = None
    method: str = "training"
    parents: tuple[Parent, ...] = ()
    gap: float | None = None
    scores: tuple[RecordedScore, ...] = ()

    @property
    def reference(self) -> str:
        """``NAME@VERSION``."""
        return f"{self.name}@{self.version}"

    def as_parent(self, weight: float | None = None) -> Parent:
        """This version as the lineage of another names it."""
        return Parent(name=self.name, version=self.version, content_hash=self.content_hash, weight=weight)


@dataclass(frozen=True)
class StoredAdapter:
    """A version on disk: its record, and the folder of the adapter itself."""

    record: AdapterRecord
    path: Path


def home_dir() -> Path:
    """Where fintune keeps what is not to be lost: ``FINTUNE_HOME``, or the user's data folder of this system."""
    override = os.environ.get("FINTUNE_HOME")
    if override:
        return Path(override).expanduser()
    from platformdirs import user_data_dir

    return Path(user_data_dir("fintune"))


def registry_root() -> Path:
    """The folder of named adapters."""
    return home_dir() / "adapters"


def names(root: Path) -> list[str]:
    """The names that have a version."""
    if not root.is_dir():
        return []
    return sorted(path.name for path in root.iterdir() if NAME.fullmatch(path.name) and versions(root, path.name))


def versions(root: Path, name: str) -> list[int]:
    """The versions of a name that are there, oldest first."""
    folder = root / name
    found = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(entry) for entry in found if _VERSION.fullmatch(entry))


def read_stored(root: Path, name: str, version: int) -> StoredAdapter:
    """One version.

    Raises:
        AdapterError: its record is missing or damaged.
    """
    folder = root / name / str(version)
    try:
        record = AdapterRecord.model_validate_json((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise AdapterError(
            f"{folder / RECORD} is missing or damaged ({type(exc).__name__}).",
            f"Add the adapter again, and remove this version: fintune adapters remove {name}@{version}.",
        ) from exc
    return StoredAdapter(record, folder / ADAPTER)


def stored_adapters(root: Path) -> Iterator[StoredAdapter]:
    """All versions of all names; a damaged one is logged and left out."""
    for name in names(root):
        for version in versions(root, name):
            try:
                yield read_stored(root, name, version)
            except AdapterError as exc:
                log.warning("%s", exc)


def find_stored(root: Path, reference: str) -> StoredAdapter | None:
    """The version that ``NAME`` (the newest) or ``NAME@VERSION`` names; None for a plain word that names none.

    Raises:
        AdapterError: ``NAME@VERSION`` names none, or the version is damaged.
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        return None
    name, wanted = match[1], match[2]
    known = versions(root, name)
    if not known or (wanted is not None and int(wanted) not in known):
        if wanted is None:
            return None
        raise unknown_adapter(root, reference)
    return read_stored(root, name, int(wanted) if wanted is not None else known[-1])


def get_stored(root: Path, reference: str) -> StoredAdapter:
    """As ``find_stored``; whatever is not there is an ``AdapterError`` with the nearest names."""
    found = find_stored(root, reference)
    if found is None:
        raise unknown_adapter(root, reference)
    return found


def unknown_adapter(root: Path, reference: str) -> AdapterError:
    """One sentence on a reference that names nothing."""
    name = reference.partition("@")[0]
    known, own = names(root), versions(root, name) if NAME.fullmatch(name) else []
    if own:
        return AdapterError(
            f"The adapter {name} has no version {reference.partition('@')[2]}.",
            f"Its versions are {', '.join(map(str, own))}.",
        )
    near = get_close_matches(name, known, n=3, cutoff=0.4) or known[:3]
    hint = f"The nearest are {', '.join(near)}." if near else "None is there yet: fintune adapters add RUN NAME."
    return AdapterError(f"There is no adapter called {reference}.", hint)


def adapter_place(given: str | Path) -> Path:
    """A path as it is where it exists; else the folder of the named adapter, where there is one of that name.

    Raises:
        AdapterError: ``NAME@VERSION`` names nothing.
    """
    path = Path(given)
    if _REFERENCE.fullmatch(str(given)) is None or path.exists():
        return path
    found = find_stored(registry_root(), str(given))
    return found.path if found is not None else path


def given_adapter(given: str | Path) -> Path:
    """The adapter folder behind a path, a run directory or the name of a stored adapter.

    Raises:
        AdapterError: no adapter is stored under that name.
    """
    return adapter_folder(require_place(given))


def require_place(given: str | Path) -> Path:
    """``adapter_place`` where nothing but an adapter is meant: a bare name that is unknown is an error."""
    place = adapter_place(given)
    if not place.exists() and _REFERENCE.fullmatch(str(given)):
        raise unknown_adapter(registry_root(), str(given))
    return place
