"""Groups of rows: what is scored together, is written together, and is done again after a stop.

A group always holds the same rows, whoever scores it: the numbers that come out depend in their last bits on what is
computed together, so only then is a file filled by many processes, or after many kills, the same to the byte.

Enters: a table and the groups that are done. Leaves: the texts of the others, in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

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


def in_this_process(values: Callable[[Sequence[str | None]], Iterator[list[Any]]]) -> Engine:
    """The engine that asks ``values`` about one group after another."""

    def engine(groups: Iterator[Group]) -> Iterator[Answered]:
        for group in groups:
            yield Answered(group.start, list(values(group.texts)))

    return engine
