"""Documents that two sets share: exactly, after normalising, nearly, or as rows about one document or ticker-week.

Enters: training and held-out examples. Leaves: the training examples without such twins, and counts for every pair of
sets. Empty normalised texts (a tweet that is only a link) are compared exactly, else all such tweets would be one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import Any

from fintune.schema.errors import InternalError
from fintune.schema.example import Example
from fintune.schema.results import OverlapReport
from fintune.sources.near import NearSearch
from fintune.sources.text import normalise_text

_TELLING = 40
"""Letters and digits from which on an answer is its own; shorter ones, such as a year, answer many questions."""


def count_overlap(
    train: Sequence[Example], heldout: Sequence[Example], *, threshold: float | None = None
) -> OverlapReport:
    """Counts held-out documents that also occur in ``train``; removes nothing."""
    return remove_overlap(train, heldout, threshold=threshold)[1].model_copy(update={"removed_from_train": 0})


def remove_overlap(
    train: Sequence[Example],
    heldout: Sequence[Example] | HeldOut,
    *,
    threshold: float | None = None,
    same_document: bool = True,
) -> tuple[tuple[Example, ...], OverlapReport]:
    """Drops training examples whose document is also held out.

    Args:
        train: examples to be trained on.
        heldout: validation and test examples; all of them stay. As ``HeldOut`` they are indexed once for many calls.
        threshold: Jaccard similarity of shingles from which two documents count as near-duplicates; None compares
            exact and normalised texts only. ``HeldOut`` has its own.
        same_document: drop questions about a report page that held-out questions are about too, and conversations of
            which half of the answers (of the shorter one's) stand in a held-out conversation.

    Returns:
        The kept training examples, in order, and the report; ``removed_from_train`` counts dropped examples.
    """
    index = heldout if isinstance(heldout, HeldOut) else HeldOut(heldout, threshold=threshold)
    side = _Side(train)
    is_twin = index.twins_of(side, same_document=same_document)
    kept = tuple(example for example, twin in zip(train, is_twin, strict=True) if not twin)
    name = next((example.task for example in (*train, *index.examples)), "")
    return kept, index.report(side, name).model_copy(update={"removed_from_train": sum(is_twin)})


def overlap_pairs(
    train: Mapping[str, Sequence[Example]],
    tests: Mapping[str, Sequence[Example]],
    heldout: HeldOut,
    *,
    same_document: bool = True,
) -> list[OverlapReport]:
    """The overlap of every pair of a trained and a tested task.

    Args:
        train: training examples by task, as read.
        tests: test examples by task, all of them in ``heldout``.
        heldout: everything held out; its index serves all pairs.
        same_document: as in ``remove_overlap``.
    """
    sides = {name: _Side(rows) for name, rows in train.items()}
    reports = []
    for tested, rows in tests.items():
        index = heldout.among(rows)
        for trained, side in sides.items():
            removed = sum(index.twins_of(side, same_document=same_document))
            found = {"trained_on": trained, "removed_from_train": removed}
            reports.append(index.report(side, tested).model_copy(update=found))
    return reports


class HeldOut:
    """Held-out examples, to be compared with any number of training sets.

    Args:
        examples: validation and test examples.
        threshold: similarity of near-duplicates; None looks for none.
        search: an index of these examples' texts and more, instead of one of their own.
    """

    def __init__(
        self, examples: Sequence[Example], *, threshold: float | None = None, search: NearSearch | None = None
    ) -> None:
        self.examples = examples
        self.threshold = threshold
        self.side = _Side(examples)
        self.search = search or (None if threshold is None else NearSearch(self.side.keys, threshold))
        if self.search is not None and not self.side.keys <= self.search.corpus.keys():
            raise InternalError("Examples were looked for in an index of held-out texts that lacks them.")

    def among(self, examples: Sequence[Example]) -> HeldOut:
        """Some of the examples; near-duplicates are looked up in the same index."""
        return HeldOut(examples, threshold=self.threshold, search=self.search)

    def twins_of(self, train: _Side, *, same_document: bool) -> list[bool]:
        """For each training example, whether its document is held out; see ``remove_overlap``."""
        near = self._near(train)
        repeats = _share_exchanges(train.marks, self.side.marks) if same_document else [False] * len(train.marks)
        return [
            repeated
            or mark.text in self.side.texts
            or mark.key in self.side.keys
            or not near[mark.key].isdisjoint(self.side.keys)
            or (same_document and mark.page is not None and mark.page in self.side.pages)
            for mark, repeated in zip(train.marks, repeats, strict=True)
        ]

    def report(self, train: _Side, task: str) -> OverlapReport:
        """How many held-out documents also occur in ``train``."""
        twins = frozenset().union(*self._near(train).values())
        exact = [mark.text in train.texts for mark in self.side.marks]
        normalised = [same or mark.key in train.keys for same, mark in zip(exact, self.side.marks, strict=True)]
        near = [same or mark.key in twins for same, mark in zip(normalised, self.side.marks, strict=True)]
        return OverlapReport(
            task=task,
            n_train=len(train.marks),
            n_test=len(self.side.marks),
            exact=sum(exact),
            normalised=sum(normalised),
            removed_from_train=0,
            near=0 if self.threshold is None else sum(near),
            near_threshold=self.threshold,
            same_document=_shared([mark.document for mark in self.side.marks], train.documents),
            same_ticker_week=_shared([mark.week for mark in self.side.marks], train.weeks),
            same_exchanges=self._same_exchanges(train),
        )

    def _same_exchanges(self, train: _Side) -> int | None:
        if not all(any(mark.exchanges for mark in marks) for marks in (train.marks, self.side.marks)):
            return None
        return sum(_share_exchanges(self.side.marks, train.marks))

    def _near(self, train: _Side) -> Mapping[str, frozenset[str]]:
        if self.search is None:
            return dict.fromkeys([*train.keys, ""], frozenset())
        return self.search.twins([*train.keys, ""])


@dataclass(frozen=True)
class _Mark:
    """What one example is compared by; None where its metadata does not say.

    Attributes:
        text: its document.
        key: the document after normalising, maybe empty.
        document: the page or filing it is from.
        page: that page, where a question is asked about it.
        week: ticker, ISO year and ISO week.
        exchanges: of a conversation, what tells each of its answers.
    """

    text: str
    key: str
    document: str | None
    page: str | None
    week: tuple[str, int, int] | None
    exchanges: frozenset[str] = frozenset()


class _Side:
    """One of the two sets that are compared."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.marks = [_mark(example) for example in examples]

    @cached_property
    def texts(self) -> set[str]:
        return {mark.text for mark in self.marks}

    @cached_property
    def keys(self) -> set[str]:
        return {mark.key for mark in self.marks if mark.key}

    @cached_property
    def documents(self) -> set[str]:
        return {mark.document for mark in self.marks if mark.document is not None}

    @cached_property
    def pages(self) -> set[str]:
        return {mark.page for mark in self.marks if mark.page is not None}

    @cached_property
    def weeks(self) -> set[tuple[str, int, int]]:
        return {mark.week for mark in self.marks if mark.week is not None}


def _mark(example: Example) -> _Mark:
    text, metadata = example.document, example.metadata
    name = str(metadata.get("document_id") or "").strip()
    # A bare number is one in its own data set only; names such as MRO/2007/page_134.pdf are shared between several.
    document = (f"{example.task}/{name}" if name.isdecimal() else name) or None
    page = document if metadata.get("question") else None
    return _Mark(text, normalise_text(text), document, page, _ticker_week(metadata), _exchanges(example))


def _exchanges(example: Example) -> frozenset[str]:
    """Each answer, which may stand under other wordings of its question; short ones only with the question."""
    if example.learnt != "turns":
        return frozenset()
    said = [normalise_text(message.content) for message in example.messages if message.role != "system"]
    said.append(normalise_text(example.target))
    pairs = zip(said[::2], said[1::2], strict=False)
    return frozenset(answer if len(answer) >= _TELLING else f"{question} {answer}" for question, answer in pairs)


def _share_exchanges(marks: Sequence[_Mark], others: Sequence[_Mark]) -> list[bool]:
    """For each mark, whether another has half of its answers, or it has half of the other's, which may be fewer."""
    places: dict[str, list[int]] = {}
    for number, other in enumerate(others):
        for exchange in other.exchanges:
            places.setdefault(exchange, []).append(number)
    found = []
    for mark in marks:
        shared = Counter(number for exchange in mark.exchanges for number in places.get(exchange, ()))
        found.append(any(2 * n >= min(len(mark.exchanges), len(others[at].exchanges)) for at, n in shared.items()))
    return found


def _ticker_week(metadata: Mapping[str, Any]) -> tuple[str, int, int] | None:
    ticker = str(metadata.get("ticker") or "").strip().upper()
    try:
        day = date.fromisoformat(str(metadata.get("date") or "")[:10])
    except ValueError:
        return None
    year, week, _ = day.isocalendar()
    return (ticker, year, week) if ticker else None


def _shared(heldout: Sequence[object], train: set[Any]) -> int | None:
    """Held-out values that are in ``train`` too; None where one of the two has none at all."""
    if not train or all(value is None for value in heldout):
        return None
    return sum(value in train for value in heldout)
