"""Runs named for a comparison: from ``RUN`` or ``RUN:SYSTEM``, with patterns, to results and records.

Without ``:SYSTEM`` a run stands for its system of the given name, or else for its tuned one, or else for the base.
Enters: paths as a user writes them. Leaves: ``RunOfSystem``.
"""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path

from fintune.evaluation.between_runs import RunOfSystem
from fintune.schema.errors import RunError
from fintune.schema.run_directory import RunDirectory


def read_runs(runs: Mapping[str, str | Path | Sequence[str | Path]]) -> list[RunOfSystem]:
    """The runs behind each name, in order; those a pattern finds are sorted by name.

    Raises:
        RunError: a run is missing, was not evaluated, or is named twice; or a name has no run.
    """
    found, seen = [], set[tuple[Path, str]]()
    for name, given in runs.items():
        places = [given] if isinstance(given, (str, Path)) else given
        if not name or not places:
            raise RunError(
                f"The system {name!r} has no name or no run.", "Write NAME=RUN, such as tuned=runs/two-epochs."
            )
        for run in (_read(name, path, system) for place in places for path, system in _places(str(place))):
            key = (Path(run.place).resolve(), run.system)
            if key in seen:
                raise RunError(f"{run.place} is named twice.", "Name each run once; a pattern may hold it already.")
            seen.add(key)
            found.append(run)
    return found


def _places(given: str) -> list[tuple[Path, str]]:
    """Folders that ``given`` stands for, each with the system that is named after a colon ('' for none)."""
    path, _, system = given.rpartition(":") if not Path(given).exists() and ":" in given else (given, "", "")
    if not glob.has_magic(path):
        return [(Path(path), system)]
    matched = sorted(place for place in map(Path, glob.glob(path)) if RunDirectory(place).results.is_file())
    if not matched:
        raise RunError(f"No evaluated run matches {path}.", "Check the pattern; a run is a folder with results.json.")
    return [(place, system) for place in matched]


def _read(name: str, path: Path, system: str) -> RunOfSystem:
    run = RunDirectory(path)
    if not path.is_dir():
        raise RunError(f"There is no run {path}.", "Check the path; a run is a folder with results.json.")
    results = run.read_results()
    systems = {result.system for result in results.results}
    chosen = system or next((known for known in (name, "tuned") if known in systems), "base")
    return RunOfSystem(name, str(path), chosen, results, run.read_records())
