"""A news corpus for continued pretraining: any sources in, clean documents without repeats out, split by date.

Enters: ``CorpusSource`` objects and a ``Cleaning``. Leaves: Parquet files with text, title, date, source, tickers and
id, and counts of everything that was dropped or changed.
"""

from fintune.sources.corpus.build import FORMAT_VERSION, Documents, build_documents
from fintune.sources.corpus.plain import read_plain, write_plain
from fintune.sources.corpus.reading import OpenedSource, open_source
from fintune.sources.corpus.settings import Cleaning, CorpusSource, sources_of
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
    "sources_of",
    "write_plain",
]
