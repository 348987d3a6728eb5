"""Rows that were measured, in a file of JSON lines, so that a command that starts again goes on.

Enters: rows, and what a variant is asked to do. Leaves: the rows that answer it, of this start and of earlier ones.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpt_runs.settings import Job

Row = dict[str, Any]
_OF_A_RACE = ("steps", "validate_every", "validation_rows")


class Kept:
    """Rows without errors that are in a file already, and new ones, appended as they are made.

    Args:
        file: JSON lines; None keeps nothing.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._earlier: list[Row] = []
        if file is None or not file.exists():
            return
        text = file.read_text(encoding="utf-8")
        if text and not text.endswith("\n"):  # a kill cut the last row
            file.write_text(text := text[: text.rfind("\n") + 1], encoding="utf-8")
        self._earlier = [row for row in map(json.loads, text.splitlines()) if "error" not in row]

    def earlier(self, asked: Row) -> list[Row]:
        """What earlier starts measured of the same."""
        return [row for row in self._earlier if row.get("asked") == asked]

    def add(self, row: Row) -> None:
        """Appends in one write, since commands on other cards may share the file."""
        if self._file is not None:
            with self._file.open("ab", buffering=0) as stream:
                stream.write((json.dumps(row) + "\n").encode())


def asked(measure: str, job: Job, **windows: int) -> Row:
    """What a row answers, as JSON gives it back: the job without places, and how it is measured."""
    values = asdict(job)
    left_out = ("folder", "peers", *(_OF_A_RACE if measure == "speed" else ()))
    own = {name: value for name, value in values.items() if name not in left_out}
    read: Row = json.loads(json.dumps({**own, "tokens": Path(job.tokens).name, "measure": measure, **windows}))
    return read
