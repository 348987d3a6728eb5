"""Work that survives a kill at any moment: answers to groups of rows, each written whole beside the output.

::

    scored.parquet.parts/
      job.json                              what is being done; another job may not go on here
      rows-000000000000-000000008192.jsonl  answers to these rows; it has this name only when it is complete
      rows-000000016384-000000024576.jsonl  groups may come in any order: several processes are at work
      finished.json                         the output is about to take its place; with it there, only this is left

Enters: the answers to groups of rows. Leaves: all answers in the order of the rows, and one file, written in one go.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fintune.schema.errors import DataError, RunError
from fintune.schema.run_directory import flush_to_disk, write_json, writing
from fintune.serving.formats import WRITERS

_JOB = "job.json"
_FINISHED = "finished.json"
_PART = re.compile(r"rows-(\d{12})-(\d{12})\.jsonl")


@dataclass(frozen=True)
class PartStore:
    """The parts of one output.

    Attributes:
        output: the file that is written in the end: .csv, .jsonl or .parquet.
        job: what is being done; work on another job is not gone on with.
    """

    output: Path
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

    def noted(self, key: str) -> Any:
        """What unfinished work of any job says under ``key``; None where there is none, or it cannot be read."""
        for file, path in ((_JOB, ()), (_FINISHED, ("job",))):
            try:
                found = json.loads((self.folder / file).read_text(encoding="utf-8"))
                for name in path:
                    found = found[name]
                return found[key]
            except (OSError, ValueError, TypeError, KeyError):
                continue
        return None

    @contextmanager
    def claimed(self) -> Iterator[dict[int, int]]:
        """Holds the folder while the block runs; gives the groups that are done: first row and one past the last.

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
                yield {start: stop for start, stop, _ in self._parts()}
        except Timeout:
            raise DataError(
                f"Another process is writing {self.output}.", "Wait for it, or choose another --output."
            ) from None

    def write(self, start: int, answers: Sequence[Sequence[Any]]) -> None:
        """Writes the answers to the rows from ``start`` on as one part, aside first."""
        name = f"rows-{start:012d}-{start + len(answers):012d}.jsonl"
        aside = self.folder / f".{name}"
        with writing(self.folder):
            write_part(aside, answers)
            flush_to_disk(aside)
            aside.replace(self.folder / name)

    def answers(self) -> Iterator[list[Any]]:
        """The answer to every row, in order.

        Raises:
            RunError: a part is missing or damaged.
        """
        reached = 0
        for start, stop, part in self._parts():
            if start != reached:
                raise RunError(
                    f"Rows {reached} to {start} are missing before {part}.",
                    f"Start the same command again, or remove {self.folder} to start afresh.",
                )
            count = 0
            try:
                for answer in part_answers(part):
                    count += 1
                    yield answer
            except (ValueError, TypeError) as error:
                raise _damaged(part) from error
            if count != stop - start:
                raise _damaged(part)
            reached = stop

    def finish(self, summary: Mapping[str, Any], write: Callable[[Path], None]) -> None:
        """Puts what ``write`` writes in the output's place, then removes the parts; the summary outlives a stop."""
        aside = self.output.with_name(f".{self.output.name}.partial")
        with writing(self.output):
            try:
                write(aside)
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
        """Complete parts by their first row, with the row after their last."""
        return sorted(
            (int(match[1]), int(match[2]), path)
            for path in self.folder.iterdir()
            if (match := _PART.fullmatch(path.name))
        )


def write_part(path: Path, answers: Sequence[Sequence[Any]]) -> None:
    """One answer a line; JSON gives floats back to the bit."""
    path.write_text("".join(json.dumps(list(answer)) + "\n" for answer in answers), encoding="ascii")


def part_answers(part: Path) -> Iterator[list[Any]]:
    """The answers of a part."""
    with part.open(encoding="ascii", newline="\n") as stream:
        for line in stream:
            yield json.loads(line)


def _damaged(part: Path) -> RunError:
    return RunError(f"{part} is damaged.", "Remove it and start the same command again: its rows are answered anew.")


def check_output(path: Path) -> None:
    """Raises a ``DataError`` where no output can be written under that name."""
    if path.suffix.lower() not in WRITERS:
        raise DataError(
            f"{path} has the unknown suffix {path.suffix or '(none)'}.", f"Use one of {', '.join(WRITERS)}."
        )


def _unlink(path: Path) -> None:
    path.unlink(missing_ok=True)
