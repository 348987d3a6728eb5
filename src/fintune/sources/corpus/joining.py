"""What documents that go leave to the one that stays: their tickers, and the earliest of their days.

Enters: clean pieces and which document repeats which. Leaves: for each document that others repeat its tickers and day.
An article about two companies was collected for each; and a text that was out in the time of train is train text, in
whichever source a later copy stands first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fintune.sources.corpus.pieces import Piece
from fintune.sources.corpus.repeats import KEPT, Repeats
from fintune.sources.corpus.settings import Cleaning
from fintune.sources.corpus.steps import SPLITS, split_of


@dataclass
class Joined:
    """What a document that stays takes over.

    Attributes:
        tickers: of its repeats; one may be there twice.
        day: the earliest known of its own and theirs, '' where none is.
        moved: whether that is not its own.
    """

    tickers: list[str] = field(default_factory=list)
    day: str = ""
    moved: bool = False


def joined_to(clean: Sequence[Path], sizes: Sequence[int], repeats: Repeats) -> dict[tuple[int, int], Joined]:
    """By piece and row of the document that stays."""
    starts = np.concatenate([[0], np.cumsum(sizes)])
    found: dict[tuple[int, int], Joined] = {}
    for number, path in enumerate(clean):
        gone = np.flatnonzero(repeats.kinds(number) != KEPT)
        if not len(gone):
            continue
        rows = Piece(path).table.select(["tickers", "date"]).take(gone).to_pylist()
        for row, document in zip(gone.tolist(), rows, strict=True):
            root = repeats.final_root(int(starts[number]) + row)
            piece = int(np.searchsorted(starts, root, side="right")) - 1
            one = found.setdefault((piece, root - int(starts[piece])), Joined())
            one.tickers.extend(document["tickers"])
            one.day = _earliest(one.day, document["date"])
    _compare_with_own(clean, found)
    return found


def splits_of(piece: Path, number: int, joined: Mapping[tuple[int, int], Joined], cleaning: Cleaning,
              ) -> npt.NDArray[np.uint8]:  # fmt: skip
    """(D,) the split of each document of a piece, by the earliest day of it and its repeats."""
    table = Piece(piece).table
    splits: npt.NDArray[np.uint8] = table.column("split").to_numpy().astype(np.uint8)
    for row in range(len(splits)):
        one = joined.get((number, row))
        if one is not None and one.moved:
            splits[row] = SPLITS.index(split_of(one.day, table.column("id")[row].as_py(), cleaning))
    return splits


def _compare_with_own(clean: Sequence[Path], found: Mapping[tuple[int, int], Joined]) -> None:
    by_piece: dict[int, list[int]] = {}
    for number, row in found:
        by_piece.setdefault(number, []).append(row)
    for number, rows in by_piece.items():
        days = Piece(clean[number]).table.column("date").take(rows).to_pylist()
        for row, own in zip(rows, days, strict=True):
            one = found[number, row]
            one.day = _earliest(own, one.day)
            one.moved = one.day != own


def _earliest(*days: str) -> str:
    return min(filter(None, days), default="")
