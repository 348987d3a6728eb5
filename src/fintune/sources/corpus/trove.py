"""The steps of single documents as a step of a ``datatrove`` pipeline, for corpora past one machine.

Enters: ``datatrove`` documents whose metadata may hold title, date, source and ticker by any name that a build knows.
Leaves: clean documents with the columns of a corpus beside their other metadata, and the same counts in the pipeline's
statistics. Lines repeated over a source and repeats over the corpus need all documents: build a corpus from what the
pipeline wrote. Needs ``fintune[datatrove]``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fintune.schema.errors import DependencyError
from fintune.sources.corpus.drafts import ROLES, Draft, Roles, columns_of, draft_of
from fintune.sources.corpus.private import without_private
from fintune.sources.corpus.settings import Cleaning, CorpusSource
from fintune.sources.corpus.steps import Tally, finish, prepare

try:
    from datatrove.data import Document, DocumentsPipeline
    from datatrove.pipeline.base import PipelineStep
except ImportError as error:
    raise DependencyError(
        "Pipelines of datatrove need the package datatrove, which is not installed.",
        "Run: pip install 'fintune[datatrove]'",
    ) from error

_ROLES = Roles()
_REPLACED = tuple(name for role, names in ROLES.items() if role != "text" for name in names)
"""Metadata that was read, and stands under the names of a corpus afterwards."""


class CleanDocuments(PipelineStep):  # type: ignore[misc]  # datatrove ships no types
    """Cleans each document, and drops and counts those that are unfit.

    Args:
        name: what documents say they are from where their metadata has no source.
        cleaning: steps and limits; boilerplate is left to the corpus that is built of the result.
        known: tickers that count in brackets alone.
    """

    name = "corpus cleaning"
    type = "🧼 - CLEAN"

    def __init__(self, name: str, cleaning: Cleaning | None = None, known: Iterable[str] = ()) -> None:
        super().__init__()
        self._source = CorpusSource(name, name=name)
        self._cleaning = cleaning or Cleaning()
        self._known = frozenset(known)

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Yields the clean documents of ``data``; each worker has a share of its own."""
        for document in data:
            with self.track_time():
                tally = Tally()
                clean = self._cleaned(document, tally)
            for step, counts in tally.plain().items():
                for what, number in counts.items():
                    self.stat_update(f"{step} {what}", value=number)
            if clean is not None:
                self.stat_update("documents out")
                yield clean

    def _cleaned(self, document: Any, tally: Tally) -> Any | None:
        row = {**document.metadata, "text": document.text}
        draft = prepare(draft_of(row, self._source, _ROLES), self._cleaning, tally)
        done = None if draft is None else finish(draft, self._cleaning, tally, known=self._known)
        if done is None:
            return None
        return Document(text=done.draft.text, id=done.identity, metadata=self._metadata(document, done.draft))

    def _metadata(self, document: Any, draft: Draft) -> dict[str, Any]:
        """The columns of a corpus, and what else the document came with; private data is replaced there too."""
        read = columns_of(document.metadata, _REPLACED)
        other = {name: value for name, value in document.metadata.items() if name not in read}
        if self._cleaning.private:
            other = {
                name: without_private(value)[0] if isinstance(value, str) else value for name, value in other.items()
            }
        found = {"title": draft.title, "date": draft.date or None, "source": draft.source}
        return {**other, **found, "tickers": list(draft.tickers)}
