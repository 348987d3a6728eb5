"""Any source as a stream of rows: files, folders, what ``fintune collect`` wrote, and what ``datasets`` reads.

Enters: a ``CorpusSource``. Leaves: an ``OpenedSource``, whose rows can be read from any row on, with a fingerprint of
what it holds. No source is in memory as a whole.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import file_digest
from itertools import islice
from pathlib import Path

from fintune.schema.errors import DataError
from fintune.schema.network import is_offline
from fintune.sources.collect.tables import FILES, REPORT, UNIVERSE
from fintune.sources.corpus.drafts import Roles, draft_of, find_roles
from fintune.sources.corpus.plain import read_plain
from fintune.sources.corpus.settings import Cleaning, CorpusSource
from fintune.sources.documents import holds_documents, read_documents
from fintune.sources.files import FILE_SUFFIXES, existing_file, open_stream
from fintune.sources.hub import looks_like_hub_id, resolve_commit
from fintune.sources.opening import COMPRESSED_SUFFIXES, first_line
from fintune.sources.stream import Row, RowsFrom
from fintune.sources.text import is_blank, without_lone_surrogates

_NEWS = Roles(("text",), ("headline",), ("published",), ("source",), ("ticker",))
_LOOKED_AT = 100
"""First rows whose columns say what a source has; a row further on may have others."""


@dataclass(frozen=True)
class OpenedSource:
    """A source that is ready to be read.

    Attributes:
        source: as it was asked for.
        roles: names that the columns of each role may have.
        rows_from: rows from a start row on; each call reads afresh.
        fingerprint: what it holds: names and SHA-256 of files, or the commit of a data set.
        known: tickers that count in a text in brackets alone.
        ranked: the companies that are wanted; None for all.
    """

    source: CorpusSource
    roles: Roles
    rows_from: RowsFrom
    fingerprint: dict[str, str]
    known: frozenset[str] = frozenset()
    ranked: frozenset[str] | None = None


def open_source(source: CorpusSource, *, most_characters: int, companies: int | None) -> OpenedSource:
    """Opens a source and looks at its first rows.

    Args:
        source: what to open.
        most_characters: longer documents need not be whole.
        companies: of a collected folder, only this many companies, by market capitalisation.

    Raises:
        DataError: it is not there, cannot be read, or has no column of text.
    """
    path = Path(source.place).expanduser()
    if source.datasets or (not path.exists() and looks_like_hub_id(source.place)):
        return _of_datasets(source, path)
    if path.is_dir() and (path / REPORT).is_file():
        return _collected(source, path, companies)
    if path.is_dir() and holds_documents(path):
        return _text_folder(source, path)
    if not path.is_dir() and _kind(path) == ".txt":
        return _plain(source, existing_file(path), most_characters)
    files = _data_files(path) if path.is_dir() else [existing_file(path)]
    return _tables(source, path, files)


def require_days(sources: Sequence[OpenedSource], cleaning: Cleaning) -> None:
    """Sees that not every document would be dropped for want of a day; reads on until it has found one.

    Raises:
        DataError: no row of any source has a day, and such documents are dropped.
    """
    if not cleaning.drops_undated:
        return
    starts = (day for one in sources for day in _days(one, _LOOKED_AT))
    if any(starts) or any(day for one in sources for day in _days(one, None)):
        return
    first = cleaning.validation_from or cleaning.test_from
    raise DataError(
        f"No document of {', '.join(one.source.label for one in sources)} has a day, but splits begin on {first}.",
        "Name the column, --date COLUMN; or split by hash: --undated hash, or without first days.",
    )


def _days(opened: OpenedSource, most: int | None) -> Iterator[str]:
    return (draft_of(row, opened.source, opened.roles).date for row in islice(opened.rows_from(0), most))


def _tables(source: CorpusSource, path: Path, files: list[Path]) -> OpenedSource:
    def rows() -> Iterator[Row]:
        for file in files:
            stream = open_stream(file, delimiter=source.delimiter, encoding=source.encoding)
            yield from _named(source, file, stream.columns, stream.rows_from(0))

    return _opened(source, rows, _hashes(path, files))


def _named(source: CorpusSource, file: Path, header: tuple[str, ...], rows: Iterator[Row]) -> Iterator[Row]:
    """The rows under the names that the source gives; then what was read as the header is a row too."""
    if not source.columns:
        yield from rows
        return
    if len(source.columns) != len(header):
        raise DataError(
            f"{file} has {len(header)} columns, but {len(source.columns)} names are given.", "Name every column once."
        )
    yield dict(zip(source.columns, header, strict=True))
    for row in rows:
        yield dict(zip(source.columns, row.values(), strict=True))


def _plain(source: CorpusSource, file: Path, most_characters: int) -> OpenedSource:
    def rows() -> Iterator[Row]:
        for text in read_plain(file, source.encoding, source.separated_by, most_characters):
            yield {"text": without_lone_surrogates(text)}

    return _opened(source, rows, _hashes(file, [file]))


def _text_folder(source: CorpusSource, folder: Path) -> OpenedSource:
    files = [file for file in sorted(folder.iterdir()) if not file.name.startswith(".")]

    def rows() -> Iterator[Row]:
        for file in files:
            if file.stat().st_size:
                yield from map(dict, read_documents(file, source.encoding).rows)

    return _opened(source, rows, _hashes(folder, files))


def _collected(source: CorpusSource, folder: Path, companies: int | None) -> OpenedSource:
    """News of a collection: the article, or where there is none the summary."""
    news = folder / FILES["news"]
    if not news.is_file():
        raise DataError(f"The collection {folder} holds no news.", "Collect them: fintune collect ... --what news")
    capitalised = _companies(folder / UNIVERSE)
    ranked = None if companies is None else _largest(folder, capitalised, companies)

    def rows() -> Iterator[Row]:
        for row in open_stream(news).rows_from(0):
            yield {**row, "text": row.get("text") or row.get("summary") or ""}

    files = [file for file in (news, folder / UNIVERSE) if file.is_file()]
    return OpenedSource(source, _NEWS, _skipping(rows), _hashes(folder, files), frozenset(capitalised), ranked)


def _companies(universe: Path) -> dict[str, float | None]:
    """Market capitalisation by ticker."""
    if not universe.is_file():
        return {}
    with universe.open(encoding="utf-8", newline="") as stream:
        found: dict[str, float | None] = {}
        for row in csv.DictReader(stream):
            found[row["ticker"]] = float(row["market_cap"]) if row.get("market_cap") else found.get(row["ticker"])
    return found


def _largest(folder: Path, capitalised: dict[str, float | None], companies: int) -> frozenset[str]:
    known = {ticker: cap for ticker, cap in capitalised.items() if cap is not None}
    if not known:
        raise DataError(
            f"The collection {folder} does not say how large its companies are.",
            "Collect sp500, whose tables have the market capitalisation, or leave --companies out.",
        )
    return frozenset(sorted(known, key=lambda ticker: (-known[ticker], ticker))[:companies])


def _of_datasets(source: CorpusSource, path: Path) -> OpenedSource:
    """What ``datasets`` reads, one row at a time."""
    local = path.exists()
    commit = None if local else resolve_commit(source.place, source.revision)
    if not local and commit is None:
        why = "offline is set" if is_offline() else "the hub is not reachable"
        raise DataError(f"Data set {source.place} cannot be streamed: {why}.", "Name a local file or folder.")

    def rows() -> Iterator[Row]:
        import datasets

        try:
            loaded = datasets.load_dataset(
                str(path) if local else source.place, source.config, split=source.split, revision=commit, streaming=True
            )
            parts = [loaded[name] for name in sorted(loaded)] if isinstance(loaded, dict) else [loaded]
            for part in parts:
                yield from map(without_lone_surrogates, part)
        except Exception as error:  # the library raises a dozen unrelated types; all mean "not loadable"
            raise DataError(
                f"Data set {source.place} cannot be streamed: {first_line(error)}.", "Check its id, config and split."
            ) from error

    if not local:
        return _opened(source, rows, {"commit": str(commit)})
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return _opened(source, rows, _hashes(path, files))


def _opened(source: CorpusSource, rows: Callable[[], Iterator[Row]], fingerprint: dict[str, str]) -> OpenedSource:
    columns = [column for row in islice(rows(), _LOOKED_AT) for column in _flat(row)]
    if not columns:
        raise DataError(f"{source.place} has no rows.", "Check that the right file is named and that it is complete.")
    return OpenedSource(source, find_roles(source, columns), _skipping(lambda: map(_flat, rows())), fingerprint)


def _flat(row: Row) -> Row:
    """The row with what its metadata says beside it, as datatrove and some data sets write it."""
    inner = row.get("metadata")
    if not isinstance(inner, dict):
        return row
    return {**row, **{name: value for name, value in inner.items() if is_blank(row.get(name))}}


def _skipping(rows: Callable[[], Iterator[Row]]) -> RowsFrom:
    return lambda start: islice(rows(), start, None)


def _data_files(folder: Path) -> list[Path]:
    """Tables of the folder by name; a text file among them is a note, not data."""
    files = [
        file
        for file in sorted(folder.iterdir())
        if file.is_file() and not file.name.startswith(".") and file.suffix.lower() in FILE_SUFFIXES
    ]
    tables = [file for file in files if _kind(file) not in {".txt", ""}]
    if not tables:
        raise DataError(f"Folder {folder} holds no data files.", "Put .jsonl, .csv, .parquet or only .txt files there.")
    return tables


def _kind(file: Path) -> str:
    suffixes = [suffix.lower() for suffix in file.suffixes] or [""]
    return suffixes[-2] if suffixes[-1] in COMPRESSED_SUFFIXES and len(suffixes) > 1 else suffixes[-1]


def _hashes(place: Path, files: list[Path]) -> dict[str, str]:
    found = {}
    for file in files:
        name = str(file.relative_to(place)) if place.is_dir() else file.name
        with file.open("rb") as stream:
            found[name] = file_digest(stream, "sha256").hexdigest()
    return found
