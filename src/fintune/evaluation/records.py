"""The record of one document as one system answered it, the same for language models and classical baselines."""

from __future__ import annotations

from collections.abc import Iterable

from fintune.schema.example import Example
from fintune.schema.results import DocumentRecord


def answer_record(
    system: str,
    example: Example,
    prediction: str | None,
    probabilities: Iterable[float] | None = None,
    log_likelihoods: Iterable[float] | None = None,
) -> DocumentRecord:
    """The record of ``system``'s answer to ``example``; a prediction of None means that it gave none (missing)."""
    return DocumentRecord(
        system=system,
        task=example.task,
        example_id=example.example_id,
        group=example.group or example.example_id,
        target=example.target,
        prediction=prediction,
        correct=prediction == example.target,
        choices=example.choices,
        probabilities=None if probabilities is None else tuple(probabilities),
        log_likelihoods=None if log_likelihoods is None else tuple(log_likelihoods),
        text=example.document,
    )
