"""Output that survives a kill at any moment: parts written whole beside the output, joined when all rows are there.

::

    scored.parquet.parts/
      job.json                                what is being done; another job may not go on here
      rows-000000000000-000000008192.parquet  a part appears under its name only when it is complete
      finished.json                           the output is about to take its place; with it there, only this is left

Enters: lists of rows in order. Leaves: one file with every row once. Going on means starting after the last part.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fintune.schema.errors import DataError, RunError
from fintune.schema.run_directory import flush_to_disk, write_json, writing
from fintune.serving.formats import WRITERS, Layout, Row, part_rows, write_part

_JOB = "job.json"
_FINISHED = "finished.json"
_PART = re.compile(r"rows-(\d{12})-(\d{12})\.(?:jsonl|parquet)")


@dataclass(frozen=True)
class PartStore:
    """The parts of one output.

    Attributes:
        output: the file that is written in the end: .csv, .jsonl or .parquet.
        layout: its columns.
        job: what is being done; work on another job is not gone on with.
    """

    output: Path
    layout: Layout
    job: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        """Where the parts lie."""
        return self.output.with_name(f"{self.output.name}.parts")

    def finished(self) -> dict[str, Any] | None:
        """The summary of this job if it wrote the output and was stopped while it tidied up, which is done now."""
        try:
            marker = json.loads((self.folder / _FINISHED).read_text(encoding="utf-8"))
            same = marker["job"] == dict(self.job) and marker["bytes"] == self.output.stat().st_size
            summary = dict(marker["summary"])
        except (OSError, ValueError, TypeError, KeyError):
            return None
        if not same:
            return None
        self._remove()
        return summary

    @contextmanager
    def claimed(self) -> Iterator[int]:
        """Holds the folder while the block runs; gives the number of rows that are done.

        Raises:
            DataError: the output exists already, the folder belongs to another job or holds something else, or
                another process is at work.
            RunError: what the folder holds is damaged.
        """
        self._require_no_output()
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / "lock").acquire(timeout=0):
                self._require_no_output()  # another process may have finished it just now
                self._require_own()
                parts = self._parts()
                yield parts[-1][1] if parts else 0
        except Timeout:
            raise DataError(
                f"Another process is writing {self.output}.", "Wait for it, or choose another --output."
            ) from None

    def write(self, start: int, rows: Sequence[Row]) -> None:
        """Writes the rows from ``start`` on as one part, aside first."""
        name = f"rows-{start:012d}-{start + len(rows):012d}.{self.layout.part_suffix}"
        aside = self.folder / f".{name}"
        with writing(self.folder):
            write_part(aside, rows, self.layout)
            flush_to_disk(aside)
            aside.replace(self.folder / name)

    def rows(self) -> Iterator[dict[str, Any]]:
        """All rows written so far, in order."""
        for _, _, part in self._parts():
            yield from part_rows(part)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Writes the output from the parts in one go, then removes them; the summary outlives a stop in between."""
        aside = self.output.with_name(f".{self.output.name}.partial")
        with writing(self.output):
            try:
                WRITERS[self.output.suffix.lower()](aside, [part for _, _, part in self._parts()], self.layout)
                flush_to_disk(aside)
                marker = {"job": dict(self.job), "bytes": aside.stat().st_size, "summary": dict(summary)}
                write_json(self.folder / _FINISHED, marker)
                aside.replace(self.output)
            finally:
                aside.unlink(missing_ok=True)
        self._remove()

    def _remove(self) -> None:
        """Removes the folder, the marker last: until then the next start knows that the output is complete."""
        with suppress(OSError):  # the output is there; what cannot be removed must not look like a failure
            for path in sorted(self.folder.iterdir(), key=lambda path: path.name == _FINISHED):
                _unlink(path)
            self.folder.rmdir()

    def _require_no_output(self) -> None:
        if self.output.exists():
            raise DataError(f"{self.output} exists already.", "Remove it, or choose another --output.")

    def _require_own(self) -> None:
        """Makes sure that the folder is this job's, and removes what was still being written when a job stopped."""
        for path in self.folder.iterdir():
            if path.is_dir():
                raise DataError(f"{path} is no part of unfinished work.", f"Remove it, or all of {self.folder}.")
            if path.name.startswith("."):
                _unlink(path)
        note = self.folder / _JOB
        if not note.exists():
            write_json(note, self.job)
            return
        try:
            before = dict(json.loads(note.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise RunError(f"{note} is damaged.", f"Remove {self.folder} to start afresh.") from error
        if changed := sorted(key for key in self.job.keys() | before.keys() if self.job.get(key) != before.get(key)):
            raise DataError(
                f"{self.folder} holds unfinished work with another {', '.join(changed)}.",
                "Choose another --output, or remove that folder to start afresh.",
            )

    def _parts(self) -> list[tuple[int, int, Path]]:
        """Parts that follow on one another from row 0, with their first row and the one after their last."""
        found = sorted(
            (int(match[1]), int(match[2]), path)
            for path in self.folder.iterdir()
            if (match := _PART.fullmatch(path.name))
        )
        for (_, stop, _), (start, _, path) in zip([(0, 0, None), *found], found, strict=False):
            if start != stop:
                raise RunError(f"Rows {stop} to {start} are missing before {path}.", f"Remove {self.folder}.")
        return found


def check_output(path: Path) -> None:
    """Raises a ``DataError`` where no output can be written under that name."""
    if path.suffix.lower() not in WRITERS:
        raise DataError(
            f"{path} has the unknown suffix {path.suffix or '(none)'}.", f"Use one of {', '.join(WRITERS)}."
        )


def _unlink(path: Path) -> None:
    path.unlink(missing_ok=True)
