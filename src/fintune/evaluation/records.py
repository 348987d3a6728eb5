"""The records of one document as one system answered it, the same for language models and classical baselines."""

from __future__ import annotations

from collections.abc import Sequence

from fintune.schema.example import Example
from fintune.schema.recipe import Decoding
from fintune.schema.results import DocumentRecord, Protocol
from fintune.tasks.base import Task
from fintune.tasks.conversations import ConversationTask


def answer_records(
    system: str,
    task: Task,
    example: Example,
    answer: str | None,
    probabilities: Sequence[float] | None = None,
    log_likelihoods: Sequence[float] | None = None,
    protocols: Sequence[Protocol] | None = None,
    truncated: bool = False,
) -> list[DocumentRecord]:
    """The answer of ``system`` to ``example`` under each protocol; an answer of None means that it gave none.

    Only the record of the task's first protocol keeps the text and the likelihoods, which are the same under all.
    """
    records = []
    for protocol in task.protocols if protocols is None else protocols:
        judgement = task.judge(example, answer, protocol)
        is_first = protocol == task.protocols[0]
        records.append(
            DocumentRecord(
                system=system,
                task=example.task,
                example_id=example.example_id,
                group=example.group or example.example_id,
                target=example.target,
                prediction=judgement.prediction,
                correct=judgement.correct,
                protocol=protocol,
                output=answer,
                counts=dict(judgement.counts),
                choices=example.choices,
                probabilities=tuple(probabilities) if is_first and probabilities is not None else None,
                log_likelihoods=tuple(log_likelihoods) if is_first and log_likelihoods is not None else None,
                dialogue=str(example.metadata.get("dialogue_id", "")),
                truncated=truncated,
                text=example.document if is_first else "",
                reference=str(example.metadata.get("reference", "")) if is_first else "",
            )
        )
    return records


def split_protocols(task: Task, decoding: Decoding) -> tuple[tuple[Protocol, ...], tuple[Protocol, ...]]:
    """The protocols that judge the likeliest label of a closed set, and those that judge a written answer.

    FLARE reads what a model writes, so a ranking is never scored under its rules.
    """
    if isinstance(task, ConversationTask) and task.measure != "answers":
        return ("robust",), ()  # nothing is written
    if not task.choices or decoding == "free":
        return (), task.protocols
    others = tuple(protocol for protocol in task.protocols if protocol != "robust")
    return ("robust",), others if decoding == "both" else ()


def dialogue_of(example: Example) -> str:
    """What the turns of one conversation share; the group where the data name no conversation."""
    return str(example.metadata.get("dialogue_id") or example.group)
