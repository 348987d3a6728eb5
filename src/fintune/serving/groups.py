"""Groups of rows: what is scored together, is written together, and is done again after a stop.

A group always holds the same rows, whoever scores it: the numbers that come out depend in their last bits on what is
computed together, so only then is a file filled by many processes, or after many kills, the same to the byte.

Enters: a table and the groups that are done. Leaves: the texts of the others, in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

from fintune.serving.answers import as_text
from fintune.sources import TableStream


@dataclass(frozen=True)
class Group:
    """Rows that follow on one another.

    Attributes:
        start: number of the first.
        texts: what each is asked about; None where the cell is blank.
    """

    start: int
    texts: list[str | None]


@dataclass(frozen=True)
class Answered:
    """The values of the added columns for each row of a group."""

    start: int
    values: list[list[Any]]


Engine = Callable[[Iterator[Group]], Iterator[Answered]]
"""Answers groups as they come, in any order; it reads ahead of its answers by a few groups at most."""


def open_groups(stream: TableStream, text: str, size: int, done: Mapping[int, int]) -> Iterator[Group]:
    """The groups that are not done, in order.

    Args:
        stream: the table.
        text: its column with the text.
        size: rows of a group; the last may be shorter.
        done: groups that are: first row and one past the last.
    """
    start = 0
    while done.get(start) == start + size:
        start += size
    rows = stream.rows_from(start)
    while group := list(islice(rows, size)):
        if done.get(start) != start + len(group):
            yield Group(start, [as_text(row.get(text)) for row in group])
        start += len(group)


class Answers(Protocol):
    """What answers the texts of a group in two steps, the first of which needs no device."""

    def read(self, texts: Sequence[str | None]) -> Any:
        """The first step: may run in another thread beside ``values`` of an earlier group."""

    def values(self, read: Any) -> Iterator[list[Any]]:
        """The second step, from what ``read`` gave: the values of the added columns for each text, in order."""


def in_this_process(task: Answers) -> Engine:
    """The engine that answers one group after another, while a thread reads the next."""

    def engine(groups: Iterator[Group]) -> Iterator[Answered]:
        def following() -> tuple[int, Any] | None:
            group = next(groups, None)
            return None if group is None else (group.start, task.read(group.texts))

        with ThreadPoolExecutor(1) as ahead:
            coming = ahead.submit(following)
            while (ready := coming.result()) is not None:
                coming = ahead.submit(following)
                yield Answered(ready[0], list(task.values(ready[1])))

    return engine
