"""Documents that repeat an earlier one, over a whole corpus, in bounded memory and in steps that a kill cannot undo.

Enters: for each document a digest and a number a band, in files. Leaves: for each document the one it repeats, itself
where it repeats none. Bands propose pairs, texts decide: a document is dropped only where its windows and those of an
earlier one that stays have the stated similarity. Numbers of documents are their places in the order of the sources.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fintune.schema.run_directory import flush_to_disk, write_json, writing
from fintune.sources.corpus.pieces import Piece, read_array, read_record, write_array
from fintune.sources.corpus.signatures import Hashes, compared_by, similarity, windows

KEPT, EQUAL, NEAR = 0, 1, 2
_AT_ONCE = 8_000_000
"""Hashes that are sorted in memory at once; more are sorted in parts, by their remainder."""
_OPEN_PIECES = 64
_HELD_BYTES = 64 * 1024**2
_LAGS = 32
"""Earlier documents of a band's run that a document is compared with, the latest ones, and the first of the run."""

Pairs = npt.NDArray[np.int64]
Columns = Callable[[], Iterator[tuple[int, Hashes]]]
"""Calls for the hashes of every piece, each with the number of its first document."""


class HeldWindows:
    """Windows of the documents that were asked for last, as many as fit into ``most`` bytes, and one at least."""

    def __init__(self, made: Callable[[int], Hashes], most: int = _HELD_BYTES) -> None:
        self._made = made
        self._most = most
        self._held: OrderedDict[int, Hashes] = OrderedDict()
        self.bytes = 0

    def __call__(self, document: int) -> Hashes:
        """(W,) windows of a document."""
        if document in self._held:
            self._held.move_to_end(document)
            return self._held[document]
        found = self._held[document] = self._made(document)
        self.bytes += found.nbytes
        while self.bytes > self._most and len(self._held) > 1:
            self.bytes -= self._held.popitem(last=False)[1].nbytes
        return found


class Repeats:
    """The state of the search, in files of one folder.

    Args:
        folder: where they are.
        pieces: paths of the pieces of clean documents, in order.
        sizes: documents of each.
    """

    def __init__(self, folder: Path, pieces: Sequence[Path], sizes: Sequence[int]) -> None:
        self._folder = folder
        self._pieces = pieces
        self._starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._piece = lru_cache(maxsize=_OPEN_PIECES)(lambda number: Piece(pieces[number]))
        self._windows = HeldWindows(lambda document: windows(compared_by(self.text(document))))

    def find(self, threshold: float | None, advance: Callable[[int], None] = lambda documents: None) -> None:
        """Finds equal documents and, with a threshold, similar ones; goes on where an earlier call was stopped.

        Args:
            threshold: Jaccard similarity from which a document repeats another.
            advance: told how many more documents are settled.

        Raises:
            RunError: a file cannot be written.
        """
        done = read_record(self._folder / "settled.json") or {"pieces": -1}
        if done["pieces"] < 0:
            self._settle_equal()
            done = {"pieces": 0}
        bands = self._write_runs(threshold)
        for number in range(len(self._pieces)):
            if number >= done["pieces"]:
                self._settle_near(number, bands, threshold)
            advance(int(self._starts[number + 1] - self._starts[number]))

    def roots(self, number: int) -> Pairs:
        """(D,) for each document of a piece the document it repeats, or itself."""
        found: Pairs = np.asarray(self._open("roots.i8", np.int64)[self._starts[number] : self._starts[number + 1]])
        return found

    def kinds(self, number: int) -> npt.NDArray[np.uint8]:
        """(D,) ``KEPT``, ``EQUAL`` or ``NEAR`` for each document of a piece."""
        found: npt.NDArray[np.uint8] = np.asarray(
            self._open("kinds.u1", np.uint8)[self._starts[number] : self._starts[number + 1]]
        )
        return found

    def final_root(self, document: int) -> int:
        """The document that stays for this one: what an equal one repeats may itself nearly repeat another."""
        roots = self._open("roots.i8", np.int64)
        while (root := int(roots[document])) != document:
            document = root
        return document

    def text(self, document: int) -> str:
        """The text of a document."""
        number = int(np.searchsorted(self._starts, document, side="right")) - 1
        return self._piece(number).text(document - int(self._starts[number]))

    def _settle_equal(self) -> None:
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            total = int(self._starts[-1])
            np.arange(total, dtype=np.int64).tofile(self._folder / "roots.i8")
            np.zeros(total, np.uint8).tofile(self._folder / "kinds.u1")
        pairs = first_of_equal(lambda: self._columns("digests"))
        if total:
            roots, kinds = self._open("roots.i8", np.int64, "r+"), self._open("kinds.u1", np.uint8, "r+")
            roots[pairs[:, 0]], kinds[pairs[:, 0]] = pairs[:, 1], EQUAL
        self._note(0)

    def _write_runs(self, threshold: float | None) -> list[Path]:
        """Of each band the documents that share a hash."""
        first = next((path for path in self._pieces), None)
        if threshold is None or first is None:
            return []
        n_bands = read_array(first.with_suffix(".bands.npy"), mapped=True).shape[1]
        files = [self._folder / f"band-{band:03d}.npy" for band in range(n_bands)]
        for band, file in enumerate(files):
            if not file.is_file():
                write_array(file, shared_runs(partial(self._columns, "bands", band)))
        return files

    def _columns(self, kind: str, band: int | None = None) -> Iterator[tuple[int, Hashes]]:
        """Hashes of every piece; 0 for a document that is not to be compared."""
        for number, path in enumerate(self._pieces):
            found = read_array(path.with_suffix(f".{kind}.npy"), mapped=True)
            column = np.asarray(found if band is None else found[:, band])
            if band is not None:
                column = np.where(self.kinds(number) == EQUAL, np.uint64(0), column)
            yield int(self._starts[number]), column

    def _settle_near(self, number: int, bands: Sequence[Path], threshold: float | None) -> None:
        """Settles the documents of a piece; those of earlier pieces are settled already."""
        if threshold is not None and self._starts[number + 1] > self._starts[number]:
            roots, kinds = self._open("roots.i8", np.int64, "r+"), self._open("kinds.u1", np.uint8, "r+")
            span = slice(int(self._starts[number]), int(self._starts[number + 1]))
            near = kinds[span] == NEAR  # of a settling that was killed
            roots[span][near], kinds[span][near] = np.arange(span.start, span.stop)[near], KEPT
            compared: set[tuple[int, int]] = set()
            for later, earlier in self._pairs_within(bands, span.start, span.stop):
                pair = later, int(roots[earlier])
                if kinds[later] != KEPT or pair in compared:
                    continue
                compared.add(pair)
                if similarity(*map(self._windows, pair)) >= threshold:
                    roots[later], kinds[later] = pair[1], NEAR
        self._note(number + 1)

    def _pairs_within(self, bands: Sequence[Path], start: int, stop: int) -> list[tuple[int, int]]:
        """Each pair once whose later document is in the range, by later and then by earlier document."""
        parts = [pairs_within(read_array(path, mapped=True), start, stop) for path in bands]
        return [] if not parts else list(map(tuple, np.unique(np.concatenate(parts), axis=0).tolist()))

    def _open(self, name: str, kind: type[np.generic], mode: Literal["r", "r+"] = "r") -> npt.NDArray[Any]:
        path = self._folder / name
        if not path.stat().st_size:
            return np.zeros(0, kind)
        return np.memmap(path, kind, mode=mode)

    def _note(self, pieces: int) -> None:
        """Says that so many pieces are settled, once the files that hold it are on disk."""
        with writing(self._folder):
            for name in ("roots.i8", "kinds.u1"):
                flush_to_disk(self._folder / name)
        write_json(self._folder / "settled.json", {"pieces": pieces})


def shared_runs(columns: Columns) -> Pairs:
    """Runs of documents that share a hash, what ``pairs_within`` reads.

    Returns:
        (4, M) for the M documents that share one: documents by run; where the run of each begins; places of the
        documents in their own order; documents in their own order.
    """
    runs, begins, length = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], 0
    for documents, same, firsts in _runs(columns):
        shared = np.append(False, same)[: len(documents)] | np.append(same, False)[: len(documents)]
        members, starts = documents[shared], firsts[shared]
        new = np.flatnonzero(members == starts)  # the first of a run
        begins.append(np.repeat(new, np.diff(np.append(new, len(members)))) + length)
        runs.append(members)
        length += len(members)
    documents = np.concatenate(runs)
    order = np.argsort(documents, kind="stable")
    found: Pairs = np.stack([documents, np.concatenate(begins), order, documents[order]])
    return found


def pairs_within(runs: Pairs, start: int, stop: int) -> Pairs:
    """(P, 2) later and earlier document: each of the range with the latest ones of its run before it, and the first."""
    first, end = np.searchsorted(runs[3], [start, stop])
    places, later = np.asarray(runs[2, first:end]), np.asarray(runs[3, first:end])
    begins = runs[1][places]
    found = [np.stack([later, runs[0][begins]], axis=1)[begins < places]]
    for lag in range(1, _LAGS + 1):
        there = places - lag >= begins
        found.append(np.stack([later[there], runs[0][places[there] - lag]], axis=1))
    pairs: Pairs = np.concatenate(found)
    return pairs


def first_of_equal(columns: Columns) -> Pairs:
    """(P, 2) each document whose hash occurred before, and the first that has it."""
    found = [np.zeros((0, 2), np.int64)]
    for documents, same, firsts in _runs(columns):
        found.append(np.stack([documents[1:][same], firsts[1:][same]], axis=1))
    pairs: Pairs = np.concatenate(found)
    return pairs


def _runs(columns: Columns) -> Iterator[tuple[Pairs, npt.NDArray[np.bool_], Pairs]]:
    """Documents sorted by hash, where each agrees with the one before it, and the first of its run."""
    total = sum(len(hashes) for _, hashes in columns())
    parts = np.uint64(total // _AT_ONCE + 1)
    for part in range(int(parts)):
        hashes, documents = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
        for start, column in columns():
            rows = np.flatnonzero((column % parts == np.uint64(part)) & (column != 0))
            hashes.append(column[rows])
            documents.append(rows + start)
        joined = np.concatenate(hashes)
        order = np.argsort(joined, kind="stable")
        sorted_hashes, numbers = joined[order], np.concatenate(documents)[order]
        same = sorted_hashes[1:] == sorted_hashes[:-1]
        begins = np.concatenate([[True], ~same])[: len(numbers)]
        places = np.maximum.accumulate(np.where(begins, np.arange(len(numbers)), 0))
        yield numbers, same, numbers[places]
