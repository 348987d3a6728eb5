"""The steps from a draft to a clean document, each by its name, with what it dropped or changed.

Enters: drafts. Leaves: documents and a ``Tally``. Every function here looks at one document at a time, so that the same
steps run in a build on one machine and in a pipeline on many (``fintune.sources.corpus.datatrove``).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from fintune.sources.corpus.drafts import Draft
from fintune.sources.corpus.lines import without_lines
from fintune.sources.corpus.private import without_private
from fintune.sources.corpus.repair import repair
from fintune.sources.corpus.settings import Cleaning
from fintune.sources.corpus.tickers import tickers_in
from fintune.sources.text import latin_share, normalise_text

SPLITS = ("train", "validation", "test")
DROPPED, CHANGED = "dropped", "changed"


class Tally:
    """Counts by step and by what happened there."""

    def __init__(self, counts: Mapping[str, Mapping[str, int]] | None = None) -> None:
        self.counts: dict[str, Counter[str]] = {step: Counter(found) for step, found in (counts or {}).items()}

    def count(self, step: str, what: str, number: int = 1) -> None:
        """Adds to one count."""
        if number:
            self.counts.setdefault(step, Counter())[what] += number

    def add(self, counts: Mapping[str, Mapping[str, int]]) -> None:
        """Adds the counts of another tally."""
        for step, found in counts.items():
            for what, number in found.items():
                self.count(step, what, number)

    def plain(self) -> dict[str, dict[str, int]]:
        """The counts in order, as JSON has them."""
        return {step: dict(sorted(found.items())) for step, found in sorted(self.counts.items())}


@dataclass(frozen=True)
class Finished:
    """A clean document, before repeats are looked for.

    Attributes:
        draft: with the title as the first line of its text.
        identity: 16 hexadecimal digits of the text's SHA-256.
        split: train, validation or test.
    """

    draft: Draft
    identity: str
    split: str


def prepare(draft: Draft, cleaning: Cleaning, tally: Tally) -> Draft | None:
    """What one document alone decides: letters, HTML, line ends. None where nothing is left."""
    text, changed = repair(draft.text, html=cleaning.html, unwrap=cleaning.unwrap)
    title, _ = repair(draft.title, html=cleaning.html, unwrap=False)
    for step in changed:
        tally.count(step, CHANGED)
    if not text and not title:
        tally.count("no text", DROPPED)
        return None
    return replace(draft, text=text, title=" ".join(title.split()))


def finish(
    draft: Draft, cleaning: Cleaning, tally: Tally, *, repeated: Collection[bytes] = (), known: Collection[str] = ()
) -> Finished | None:
    """What the whole source was needed for, and the checks; None where the document is dropped.

    Args:
        draft: of ``prepare``.
        cleaning: limits.
        tally: counts what happens.
        repeated: keys of lines that many documents of the source have.
        known: tickers that count in brackets alone.
    """
    body, removed = without_lines(draft.text, repeated) if cleaning.boilerplate_share else (draft.text, 0)
    if removed:
        tally.count("boilerplate", CHANGED)
        tally.count("boilerplate", "lines", removed)
    text = _with_title(draft.title, body)
    if reason := unfit(text, cleaning):
        tally.count(reason, DROPPED)
        return None
    if not draft.date and cleaning.drops_undated:
        tally.count("undated", DROPPED)
        return None
    tickers = dict.fromkeys([*draft.tickers, *tickers_in(text, known)])
    title = draft.title
    if cleaning.private:
        text, kinds = without_private(text)
        title, _ = without_private(title)
        tally.count("private", CHANGED, int(bool(kinds)))
        for kind, number in kinds.items():
            tally.count("private", kind, number)
    identity = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    clean = replace(draft, text=text, title=title, tickers=tuple(tickers))
    return Finished(clean, identity, split_of(draft.date, identity, cleaning))


def unfit(text: str, cleaning: Cleaning) -> str:
    """The step that drops the text: short, long or script; '' where none does."""
    if len(text) < cleaning.min_characters:
        return "short"
    if len(text) > cleaning.max_characters:
        return "long"
    return "script" if cleaning.min_latin_share and latin_share(text) < cleaning.min_latin_share else ""


def split_of(day: str, identity: str, cleaning: Cleaning) -> str:
    """By day where a first day is named and the document has one, else by hash; ``finish`` may have dropped it."""
    if day and (cleaning.test_from or cleaning.validation_from):
        if cleaning.test_from and day >= cleaning.test_from:
            return "test"
        return "validation" if cleaning.validation_from and day >= cleaning.validation_from else "train"
    place = int(identity[:13], 16) / 16**13
    if place < cleaning.test_share:
        return "test"
    return "validation" if place < cleaning.test_share + cleaning.validation_share else "train"


def _with_title(title: str, body: str) -> str:
    if not title or normalise_text(body[: 2 * len(title) + 100]).startswith(normalise_text(title)):
        return body or title
    return f"{title}\n\n{body}" if body else title
