"""A news corpus for continued pretraining: any sources in, clean documents without repeats out, split by date.

Enters: ``CorpusSource`` objects and a ``Cleaning``. Leaves: Parquet files with text, title, date, source, tickers and
id, and counts of everything that was dropped or changed.
"""

from fintune.sources.corpus.build import Documents, build_documents
from fintune.sources.corpus.plain import read_plain, write_plain
from fintune.sources.corpus.reading import OpenedSource, open_source, require_days
from fintune.sources.corpus.settings import FORMAT_VERSION, Cleaning, CorpusSource, sources_of
from fintune.sources.corpus.shards import LENGTH_EDGES, ShardRecord

__all__ = [
    "FORMAT_VERSION",
    "LENGTH_EDGES",
    "Cleaning",
    "CorpusSource",
    "Documents",
    "OpenedSource",
    "ShardRecord",
    "build_documents",
    "open_source",
    "read_plain",
    "require_days",
    "sources_of",
    "write_plain",
]
