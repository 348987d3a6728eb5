"""Documents that two sets share: exactly, or after normalising the text. Near-duplicates (MinHash) are not here yet.

Empty normalised texts (a tweet that is only a link) are compared exactly, else all such tweets would count as one.
"""

from __future__ import annotations

from collections.abc import Sequence

from fintune.schema.example import Example
from fintune.schema.results import OverlapReport
from fintune.sources.text import normalise_text


def count_overlap(train: Sequence[Example], heldout: Sequence[Example]) -> OverlapReport:
    """Counts held-out documents that also occur in ``train``; removes nothing."""
    return remove_overlap(train, heldout)[1].model_copy(update={"removed_from_train": 0})


def remove_overlap(train: Sequence[Example], heldout: Sequence[Example]) -> tuple[tuple[Example, ...], OverlapReport]:
    """Drops training examples whose document is also held out.

    Returns:
        The kept training examples, in order, and the report: ``exact`` and ``normalised`` count held-out documents
        with a twin in ``train`` (the second includes the first); ``removed_from_train`` counts dropped examples.
    """
    train_exact, train_keys = _texts(train), _keys(train)
    heldout_exact, heldout_keys = _texts(heldout), _keys(heldout)
    kept = tuple(
        example
        for example in train
        if example.document not in heldout_exact and normalise_text(example.document) not in heldout_keys
    )
    exact = [example.document in train_exact for example in heldout]
    normalised = [normalise_text(example.document) in train_keys for example in heldout]
    report = OverlapReport(
        task=next((example.task for example in (*train, *heldout)), ""),
        n_train=len(train),
        n_test=len(heldout),
        exact=sum(exact),
        normalised=sum(a or b for a, b in zip(exact, normalised, strict=True)),
        removed_from_train=len(train) - len(kept),
    )
    return kept, report


def _texts(examples: Sequence[Example]) -> set[str]:
    return {example.document for example in examples}


def _keys(examples: Sequence[Example]) -> set[str]:
    return {key for example in examples if (key := normalise_text(example.document))}
