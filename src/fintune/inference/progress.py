"""A progress bar for scoring, on standard error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn


class Tracker:
    """Advances a bar, or does nothing when none is shown."""

    def __init__(self, bar: Progress | None = None, task: Any = None) -> None:
        self._bar, self._task = bar, task

    def expect(self, total: int) -> None:
        """There will be ``total`` units, which was not known before."""
        if self._bar is not None:
            self._bar.update(self._task, total=total)

    def advance(self, done: int) -> None:
        """Counts ``done`` more units."""
        if self._bar is not None:
            self._bar.advance(self._task, done)


@contextmanager
def tracking(description: str, total: int | None, *, shown: bool, done: int = 0) -> Iterator[Tracker]:
    """Shows a bar for ``total`` units (None: unknown), of which ``done`` are, while the block runs."""
    if not shown:
        yield Tracker()
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        yield Tracker(bar, bar.add_task(description, total=total, completed=done))
