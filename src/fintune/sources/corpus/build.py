"""From sources to documents on disk, in pieces that are there whole or not at all.

::

    read    each source once: columns, letters, HTML, line ends      .work/read/00-00000.arrow
    lines   lines that many documents of a source share              .work/lines/00.json
    clean   boilerplate, length, script, private data, tickers       .work/clean/000000.arrow, .digests, .bands
    repeats equal and similar documents of the whole corpus          .work/repeats/
    write   what stays, by split                                     documents/train-00000.parquet

Enters: opened sources and settings. Leaves: shards and counts. Every piece depends on the sources and settings alone,
so that a build that was killed goes on after its last whole piece and ends in the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fintune.schema.errors import DataError
from fintune.sources.corpus.drafts import Draft, draft_of
from fintune.sources.corpus.joining import Joined, joined_to, splits_of
from fintune.sources.corpus.lines import LineCounter, as_keys
from fintune.sources.corpus.pieces import (
    PIECE_CHARACTERS,
    PIECE_DOCUMENTS,
    Piece,
    read_record,
    write_array,
    write_piece,
    write_record,
)
from fintune.sources.corpus.reading import OpenedSource
from fintune.sources.corpus.repeats import EQUAL, KEPT, NEAR, Repeats
from fintune.sources.corpus.settings import Cleaning
from fintune.sources.corpus.shards import ShardRecord, plan_shards, write_shard
from fintune.sources.corpus.signatures import band_hashes, compared_by, digest_of, windows
from fintune.sources.corpus.steps import CHANGED, DROPPED, SPLITS, Finished, Tally, finish, prepare

Advance = Callable[[str, int], None]


@dataclass
class Documents:
    """What was written.

    Attributes:
        shards: every file of documents.
        counts: by source, step, and what happened there.
    """

    shards: list[ShardRecord]
    counts: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)


def build_documents(
    sources: Sequence[OpenedSource], cleaning: Cleaning, folder: Path, advance: Advance = lambda phase, n: None
) -> Documents:
    """Writes the documents of a corpus; goes on where an earlier call with the same arguments was stopped.

    Args:
        sources: in the order of the corpus; of equal documents the first stays, with the earliest day of them all.
        cleaning: steps and limits.
        folder: of the corpus.
        advance: told the phase and how many more documents it has done.

    Raises:
        DataError: a source cannot be read, or nothing is left.
        RunError: the folder cannot be written.
    """
    work = folder / ".work"
    tallies = {opened.source.label: Tally() for opened in sources}
    clean: list[Path] = []
    owners: list[str] = []
    for entry, opened in enumerate(sources):
        tally = tallies[opened.source.label]
        pieces = _read(opened, entry, cleaning, work, tally, lambda n: advance("reading", n))
        repeated = _repeated_lines(pieces, entry, cleaning, work)
        for piece in pieces:
            path = work / "clean" / f"{len(clean):06d}.arrow"
            tally.add(_clean(piece, path, opened, cleaning, repeated))
            clean.append(path)
            owners.append(opened.source.label)
            advance("cleaning", PIECE_DOCUMENTS)
    sizes = [int(_whole_record(path)["documents"]) for path in clean]
    repeats = Repeats(work / "repeats", clean, sizes)
    repeats.find(cleaning.near_duplicates, lambda n: advance("comparing", n))
    for number, owner in enumerate(owners):
        kinds = repeats.kinds(number)
        tallies[owner].count("equal", DROPPED, int((kinds == EQUAL).sum()))
        tallies[owner].count("near", DROPPED, int((kinds == NEAR).sum()))
        tallies[owner].count("documents", "out", int((kinds == KEPT).sum()))
    joined = joined_to(clean, sizes, repeats)
    for number, _ in (place for place, one in joined.items() if one.moved):
        tallies[owners[number]].count("day", CHANGED)
    shards = _write(clean, sizes, repeats, joined, cleaning, folder, advance)
    if not shards:
        raise _nothing_left(tallies)
    return Documents(shards, {label: tally.plain() for label, tally in tallies.items()})


def _read(
    opened: OpenedSource, entry: int, cleaning: Cleaning, work: Path, tally: Tally, advance: Callable[[int], None]
) -> list[Path]:
    """Pieces of a source after the steps that one document alone decides."""
    pieces: list[Path] = []
    rows: Iterator[Any] | None = None
    start = 0
    for number in count():
        path = work / "read" / f"{entry:02d}-{number:05d}.arrow"
        record = read_record(path.with_suffix(".json"))
        if record is None:
            rows = opened.rows_from(start) if rows is None else rows
            record = _read_piece(rows, start, path, opened, cleaning)
        tally.add(record["counts"])
        advance(record["end"] - start)
        start = record["end"]
        pieces.append(path)
        if record["last"]:
            return pieces
    raise AssertionError("the last piece says so")


def _read_piece(
    rows: Iterator[Any], start: int, path: Path, opened: OpenedSource, cleaning: Cleaning
) -> dict[str, Any]:
    tally, drafts = Tally(), list[Draft]()
    end, characters, last = start, 0, False
    while end - start < PIECE_DOCUMENTS and characters < PIECE_CHARACTERS:
        row = next(rows, None)
        if row is None:
            last = True
            break
        end += 1
        draft = _drafted(draft_of(row, opened.source, opened.roles), opened, cleaning, tally)
        if draft is not None:
            drafts.append(draft)
            characters += len(draft.text)
    tally.count("rows", "in", end - start)
    write_piece(path, drafts)
    record = {"end": end, "last": last, "counts": tally.plain()}
    write_record(path.with_suffix(".json"), record)
    return record


def _drafted(draft: Draft, opened: OpenedSource, cleaning: Cleaning, tally: Tally) -> Draft | None:
    if opened.ranked is not None and not opened.ranked.intersection(draft.tickers):
        tally.count("companies", DROPPED)
        return None
    return prepare(draft, cleaning, tally)


def _repeated_lines(pieces: Sequence[Path], entry: int, cleaning: Cleaning, work: Path) -> frozenset[bytes]:
    if not cleaning.boilerplate_share:
        return frozenset()
    path = work / "lines" / f"{entry:02d}.json"
    record = read_record(path)
    if record is None:
        counter = LineCounter()
        for text in _distinct(pieces):
            counter.add(text)
        record = {"lines": counter.repeated(cleaning.boilerplate_share)}
        write_record(path, record)
    return as_keys(record["lines"])


def _distinct(pieces: Sequence[Path]) -> Iterator[str]:
    """Each text once: an article that was collected for ten companies does not make its lines boilerplate."""
    digests = [np.asarray([digest_of(compared_by(text)) for text in Piece(piece).column("text")], np.uint64)
               for piece in pieces]  # fmt: skip
    _, firsts = np.unique(np.concatenate(digests), return_index=True)
    start = 0
    for piece, found in zip(pieces, digests, strict=True):
        rows = np.intersect1d(firsts, np.arange(start, start + len(found))) - start
        yield from Piece(piece).table.column("text").take(rows).to_pylist()
        start += len(found)


def _clean(
    piece: Path, path: Path, opened: OpenedSource, cleaning: Cleaning, repeated: frozenset[bytes]
) -> dict[str, dict[str, int]]:
    """One piece through the remaining steps of single documents, with what repeats are found by beside it."""
    record = read_record(path.with_suffix(".json"))
    if record is None:
        tally = Tally()
        found = [
            done
            for draft in Piece(piece).drafts()
            if (done := finish(draft, cleaning, tally, repeated=repeated, known=opened.known)) is not None
        ]
        _write_clean(path, found, cleaning)
        record = {"documents": len(found), "counts": tally.plain()}
        write_record(path.with_suffix(".json"), record)
    piece.unlink(missing_ok=True)  # its record stays
    counts: dict[str, dict[str, int]] = record["counts"]
    return counts


def _write_clean(path: Path, found: Sequence[Finished], cleaning: Cleaning) -> None:
    keys = [compared_by(one.draft.text) for one in found]
    write_array(path.with_suffix(".digests.npy"), np.asarray([digest_of(key) for key in keys], np.uint64))
    if cleaning.near_duplicates is not None:
        bands = [band_hashes(windows(key), cleaning.near_duplicates) for key in keys]
        empty = band_hashes(np.zeros(0, np.uint64), cleaning.near_duplicates)
        write_array(path.with_suffix(".bands.npy"), np.asarray([*bands, empty], np.uint64)[: len(bands)])
    splits = [SPLITS.index(one.split) for one in found]
    write_piece(path, [one.draft for one in found], id=[one.identity for one in found], split=splits)


def _write(
    clean: Sequence[Path],
    sizes: Sequence[int],
    repeats: Repeats,
    joined: Mapping[tuple[int, int], Joined],
    cleaning: Cleaning,
    folder: Path,
    advance: Advance,
) -> list[ShardRecord]:
    def kept() -> Iterator[tuple[int, npt.NDArray[np.uint8], npt.NDArray[np.bool_]]]:
        for number, path in enumerate(clean):
            if sizes[number]:
                yield number, splits_of(path, number, joined, cleaning), repeats.kinds(number) == KEPT

    shards = []
    for plan in plan_shards(kept(), cleaning.shard_documents):
        shards.append(write_shard(plan, folder / "documents", folder / ".work" / "written", clean, joined))
        advance("writing", shards[-1].documents)
    return shards


def _whole_record(path: Path) -> dict[str, Any]:
    record = read_record(path.with_suffix(".json"))
    assert record is not None, "every piece was written before"
    return record


def _nothing_left(tallies: dict[str, Tally]) -> DataError:
    drops = {step: found[DROPPED] for tally in tallies.values() for step, found in tally.counts.items()}
    step = max(drops, key=lambda one: drops[one], default="no text")
    return DataError(
        f"No document is left of {', '.join(tallies)}: most were dropped by the step {step!r}.",
        "Check which column holds the text, the limits, and for a .txt file how its documents are separated.",
    )
