"""API keys: a file with their hashes, and the keys in force while a server runs.

::

    {"keys": [{"name": "desk", "sha256": "9f86…", "created": "2026-01-02", "requests_per_minute": 60, …}]}

Enters: names and limits. Leaves: a new key, shown once. A key is 256 random bits, so one SHA-256 protects it: what
slow hashes guard against is guessing, and there is nothing to guess from.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from fintune.schema.errors import DataError
from fintune.schema.run_directory import write_text_atomically, writing
from fintune.serving.server.settings import KeyLimits

log = logging.getLogger(__name__)
NO_LIMITS = KeyLimits()
PREFIX = "sk-fintune-"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ApiKey:
    """A key without its secret.

    Attributes:
        name: whom it belongs to; it appears in logs and metrics.
        sha256: hex digest of the whole key.
        created: day it was made.
        limits: what it may ask for.
    """

    name: str
    sha256: str
    created: str
    limits: KeyLimits = KeyLimits()


def digest(secret: str) -> str:
    """The hash a key is known by."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def read_keys(file: Path) -> list[ApiKey]:
    """The keys of a file.

    Raises:
        DataError: it cannot be read, or is not as ``add_key`` writes it.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        hint = f"Make a key: fintune keys add {file} NAME"
        raise DataError(f"{file} cannot be read: {error.strerror or error}.", hint) from error
    except ValueError as error:
        raise DataError(f"{file} is not JSON ({error}).", "Correct it, or make the keys again.") from error
    entries = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(entries, list):
        raise DataError(f'{file} has no list "keys".', "Make keys with `fintune keys add`.")
    keys = [_key(file, number, entry) for number, entry in enumerate(entries)]
    if len({key.name for key in keys}) < len(keys):
        raise DataError(f"{file} holds a name twice.", "Remove one of them.")
    return keys


def _key(file: Path, number: int, entry: Any) -> ApiKey:
    named = [item.name for item in fields(KeyLimits)]
    given = dict(entry) if isinstance(entry, dict) else {}
    limits = {name: given.pop(name, None) for name in named}
    wrong = [name for name, value in limits.items() if value is not None and (type(value) is not int or value < 1)]
    name, sha256, created = (given.pop(word, None) for word in ("name", "sha256", "created"))
    is_named = isinstance(name, str) and _NAME.fullmatch(name)
    is_hashed = isinstance(sha256, str) and _HASH.fullmatch(sha256)
    if not is_named or not is_hashed or wrong or given:
        what = ", ".join([*wrong, *given]) or ("name" if not is_named else "sha256")
        raise DataError(f"Key {number} of {file} has a bad entry: {what}.", "Make it again with `fintune keys add`.")
    return ApiKey(str(name), str(sha256), str(created or ""), KeyLimits(**limits))


def add_key(file: Path, name: str, limits: KeyLimits = NO_LIMITS) -> str:
    """Makes a key and writes its hash to the file, which is made where there is none; returns the key.

    Raises:
        DataError: the name is taken or is no name, or the file is damaged.
    """
    if not _NAME.fullmatch(name):
        raise DataError(f"{name!r} is no name for a key.", "Use up to 64 letters, digits, dots, dashes, underscores.")
    secret = PREFIX + secrets.token_urlsafe(32)
    with _alone(file):
        keys = read_keys(file) if file.exists() else []
        if any(key.name == name for key in keys):
            raise DataError(f"{file} holds a key called {name} already.", "Remove it first, or choose another name.")
        _write(file, [*keys, ApiKey(name, digest(secret), datetime.now(UTC).date().isoformat(), limits)])
    return secret


def remove_key(file: Path, name: str) -> None:
    """Takes a key out of the file; a running server refuses it within a second.

    Raises:
        DataError: there is none of that name.
    """
    with _alone(file):
        keys = read_keys(file)
        if all(key.name != name for key in keys):
            known = ", ".join(key.name for key in keys) or "none"
            raise DataError(f"{file} holds no key called {name}.", f"It holds: {known}.")
        _write(file, [key for key in keys if key.name != name])


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Two that change the file at once must not lose each other's keys."""
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_name(f".{file.name}.lock")):
            yield


def _write(file: Path, keys: list[ApiKey]) -> None:
    entries = [
        {"name": key.name, "sha256": key.sha256, "created": key.created}
        | {name: value for name, value in asdict(key.limits).items() if value is not None}
        for key in keys
    ]
    write_text_atomically(file, json.dumps({"keys": entries}, indent=2) + "\n")
    file.chmod(0o600)


class KeyRing:
    """The keys in force: those of the file, read again when it changes.

    Args:
        file: the key file; None lets everyone in under the name ``anyone``.
        defaults: limits for what a key leaves open.
    """

    def __init__(self, file: Path | None, defaults: KeyLimits) -> None:
        self.file, self._defaults = file, defaults
        self._anyone = ApiKey("anyone", "", "", defaults)
        self._stamp: tuple[int, int] | None = None
        self._by_hash: Mapping[str, ApiKey] = {}
        if file is not None:
            self._by_hash = self._read(file)
            self._stamp = _stamp(file)

    def find(self, secret: str | None) -> ApiKey | None:
        """The key behind a secret; None where it is unknown."""
        if self.file is None:
            return self._anyone
        return self._by_hash.get(digest(secret)) if secret else None

    def refresh(self) -> None:
        """Reads the file again if it has changed; one that cannot be read leaves the keys as they were."""
        if self.file is None or (stamp := _stamp(self.file)) == self._stamp:
            return
        self._stamp = stamp
        try:
            self._by_hash = self._read(self.file)
        except DataError as error:
            log.warning("%s The keys stay as they were.", error)

    def _read(self, file: Path) -> Mapping[str, ApiKey]:
        return {key.sha256: replace(key, limits=_filled(key.limits, self._defaults)) for key in read_keys(file)}


def _filled(limits: KeyLimits, defaults: KeyLimits) -> KeyLimits:
    given = {name: value for name, value in asdict(limits).items() if value is not None}
    return replace(defaults, **given)


def _stamp(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
