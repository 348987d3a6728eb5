"""The documents that stay, in Parquet files by split, with what there is to count about them.

Enters: clean pieces and which of their documents stay. Leaves: ``documents/train-00000.parquet`` and so on, each
written whole or not at all and the same bytes every time, and a ``ShardRecord`` for each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import file_digest
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fintune.sources.corpus.joining import Joined
from fintune.sources.corpus.pieces import Piece, aside, read_record, write_record
from fintune.sources.corpus.steps import SPLITS

COLUMNS = ("text", "title", "date", "source", "tickers", "id")
LENGTH_EDGES = tuple(10 ** (power / 4) for power in range(4, 25))
"""Characters at which a class of lengths ends: four a power of ten, from 10 to a million."""


@dataclass(frozen=True)
class ShardPlan:
    """One file to write: its name, its split, and the rows of pieces that go into it in order."""

    name: str
    split: str
    rows: tuple[tuple[int, npt.NDArray[np.int32]], ...]


@dataclass
class ShardRecord:
    """What a shard holds.

    Attributes:
        name: such as ``train-00000``.
        documents: how many.
        characters: of all texts.
        text_bytes: UTF-8 bytes of all texts.
        undated: documents without a day.
        with_tickers: documents that name a company.
        first_day: earliest day, '' without any.
        last_day: latest day.
        years: documents by year.
        sources: documents by publisher.
        lengths: documents by class of ``LENGTH_EDGES``; the last holds all longer ones.
        sha256: of the file.
        size: bytes of the file.
    """

    name: str
    documents: int = 0
    characters: int = 0
    text_bytes: int = 0
    undated: int = 0
    with_tickers: int = 0
    first_day: str = ""
    last_day: str = ""
    years: dict[str, int] = field(default_factory=dict)
    sources: dict[str, int] = field(default_factory=dict)
    lengths: list[int] = field(default_factory=lambda: [0] * (len(LENGTH_EDGES) + 1))
    sha256: str = ""
    size: int = 0


def plan_shards(kept: Iterator[tuple[int, npt.NDArray[np.uint8], npt.NDArray[np.bool_]]], most: int) -> list[ShardPlan]:
    """Which rows go where: documents stay in order, and a file holds at most ``most``.

    Args:
        kept: for each piece its number, the split of each document, and whether it stays.
        most: documents a file.
    """
    rows: dict[tuple[str, int], list[tuple[int, npt.NDArray[np.int32]]]] = {}
    counts: Counter[str] = Counter()
    for number, splits, stays in kept:
        for code, split in enumerate(SPLITS):
            chosen = np.flatnonzero((splits == code) & stays).astype(np.int32)
            while len(chosen):
                shard, room = counts[split] // most, most - counts[split] % most
                rows.setdefault((split, shard), []).append((number, chosen[:room]))
                counts[split] += len(chosen[:room])
                chosen = chosen[room:]
    ordered = sorted(rows.items(), key=lambda item: (SPLITS.index(item[0][0]), item[0][1]))
    return [ShardPlan(f"{split}-{shard:05d}", split, tuple(found)) for (split, shard), found in ordered]


def write_shard(
    plan: ShardPlan, folder: Path, records: Path, pieces: Sequence[Path], joined: Mapping[tuple[int, int], Joined]
) -> ShardRecord:
    """Writes a shard, or finds that it was written.

    Args:
        plan: what goes into it.
        folder: where the files are.
        records: where it is noted that they are whole.
        pieces: paths of the clean pieces.
        joined: what repeats leave, by piece and row of the document that stays.

    Raises:
        RunError: it cannot be written.
    """
    path, note = folder / f"{plan.name}.parquet", records / f"{plan.name}.json"
    before = read_record(note)
    if before is not None and path.is_file() and path.stat().st_size == before["size"]:
        return ShardRecord(**before)
    record = ShardRecord(plan.name)
    _write(path, plan, pieces, joined, record)
    with path.open("rb") as stream:
        record.sha256 = file_digest(stream, "sha256").hexdigest()
    record.size = path.stat().st_size
    write_record(note, asdict(record))
    return record


def _write(
    path: Path,
    plan: ShardPlan,
    pieces: Sequence[Path],
    joined: Mapping[tuple[int, int], Joined],
    record: ShardRecord,
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = [pa.string(), pa.string(), pa.string(), pa.string(), pa.list_(pa.string()), pa.string()]
    schema = pa.schema(list(zip(COLUMNS, kinds, strict=True)))
    years: Counter[str] = Counter()
    sources: Counter[str] = Counter()
    with aside(path) as partial, pq.ParquetWriter(partial, schema, compression="zstd") as writer:
        for number, rows in plan.rows:
            found = Piece(pieces[number]).table.select(COLUMNS).take(rows).to_pylist()
            for row, document in zip(rows.tolist(), found, strict=True):
                if (one := joined.get((number, row))) is not None:
                    document["tickers"], document["date"] = [*document["tickers"], *one.tickers], one.day
                document["tickers"] = list(dict.fromkeys(document["tickers"]))
                document["date"] = document["date"] or None
                _count(document, record, years, sources)
            writer.write_table(pa.Table.from_pylist(found, schema=schema))
    record.years, record.sources = dict(sorted(years.items())), dict(sorted(sources.items()))


def _count(document: Mapping[str, Any], record: ShardRecord, years: Counter[str], sources: Counter[str]) -> None:
    text, day = document["text"], document["date"]
    record.documents += 1
    record.characters += len(text)
    record.text_bytes += len(text.encode("utf-8", "surrogatepass"))
    record.with_tickers += bool(document["tickers"])
    record.lengths[int(np.searchsorted(LENGTH_EDGES, len(text), side="right"))] += 1
    sources[document["source"]] += 1
    if day is None:
        record.undated += 1
        return
    years[day[:4]] += 1
    record.first_day = min(record.first_day or day, day)
    record.last_day = max(record.last_day, day)
