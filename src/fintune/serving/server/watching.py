"""A folder whose sub-folders are adapters: each is served under its own name while it is there.

Enters: a folder. Leaves: what has come, changed or gone since the last look. A sub-folder counts once nothing in it has
changed between two looks, so that one that is still being copied is not read; names that begin with a dot never count.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fintune.serving.predictor import is_adapter
from fintune.serving.server.models import adapter_folder_of

log = logging.getLogger(__name__)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 600.0  # between tries of what failed: memory may be free again by then
Stamp = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class Change:
    """A sub-folder that is to be loaded, or whose model is to be taken away."""

    name: str
    place: Path
    gone: bool = False


@dataclass
class _Later:
    """A change that could not be made, and when it is told again."""

    change: Change
    pause_s: float
    at: float


@dataclass
class AdapterFolder:
    """What is known of a watched folder."""

    folder: Path
    clock: Callable[[], float] = time.monotonic
    _last: dict[str, Stamp] = field(default_factory=dict)
    _known: dict[str, Stamp] = field(default_factory=dict)
    _later: dict[str, _Later] = field(default_factory=dict)
    _closed: set[str] = field(default_factory=set)  # sub-folders that cannot be looked into

    def names(self) -> list[str]:
        """The sub-folders that hold an adapter now."""
        return list(self._look())

    def begin(self) -> list[Change]:
        """The adapters that are there at the start."""
        self._last = self._look()
        return self.changes()

    def changes(self) -> list[Change]:
        """What is to be done since the last time, each change once, and again what could not be done."""
        seen, last = self._look(), self._last
        self._last = seen
        found = [Change(name, self.folder / name, gone=True) for name in self._known if name not in seen]
        settled = {name: stamp for name, stamp in seen.items() if last.get(name) == stamp}
        changed = [name for name, stamp in settled.items() if self._known.get(name) != stamp]
        self._known = {name: stamp for name, stamp in self._known.items() if name in seen} | settled
        found += [Change(name, self.folder / name) for name in changed]
        for change in found:
            self._later.pop(change.name, None)
        return found + self._due(lambda change: change.name not in seen if change.gone else change.name in settled)

    def failed(self, change: Change) -> float:
        """Tells a change again, after pauses that double while nothing in the sub-folder changes.

        Returns:
            Seconds until then.
        """
        before = self._later.get(change.name)
        pause_s = FIRST_PAUSE_S if before is None else min(LONGEST_PAUSE_S, 2 * before.pause_s)
        self._later[change.name] = _Later(change, pause_s, self.clock() + pause_s)
        return pause_s

    def _due(self, is_settled: Callable[[Change], bool]) -> list[Change]:
        now, due = self.clock(), []
        for later in self._later.values():
            if later.at <= now and is_settled(later.change):
                due.append(later.change)
                later.at = math.inf  # until it fails again
        return due

    def _look(self) -> dict[str, Stamp]:
        try:
            inside = sorted(path for path in self.folder.iterdir() if NAME.fullmatch(path.name))
        except OSError:  # unmounted for a moment: nothing is taken away for that
            return dict(self._last)
        seen, closed = dict[str, Stamp](), set[str]()
        for path in inside:
            try:
                stamp = _stamp(path)
            except OSError as error:  # what is served goes on as it was read
                closed.add(path.name)
                stamp = self._known.get(path.name, ())
                if path.name not in self._closed:
                    log.warning("The sub-folder %s cannot be looked into (%s).", path, error.strerror or error)
            if stamp:
                seen[path.name] = stamp
        self._closed = closed
        return seen


def _stamp(folder: Path) -> Stamp:
    """Names, times and sizes of the adapter's files; empty where there is none.

    Raises:
        OSError: it cannot be looked into.
    """
    inside = adapter_folder_of(folder)
    if not is_adapter(inside):
        return ()
    try:
        files = [(path.name, path.stat()) for path in sorted(inside.iterdir()) if path.is_file()]
    except FileNotFoundError:  # it is being removed
        return ()
    return tuple((name, found.st_mtime_ns, found.st_size) for name, found in files)
