"""Held-out conversations and texts: how likely their words are, which turn comes next, what is answered.

Enters: a ``Scorer`` and the examples of a ``ConversationTask``. Leaves: one record an example, whose counts add up to
perplexities, to the share of next turns told from others, and to the scores of written answers.

The next turn is ranked by its log-likelihood given the history, divided by its bytes: in sum, short turns would always
win. A history that is too long loses its oldest exchanges first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from fintune.evaluation.records import answer_records
from fintune.inference.likelihood import choice_log_likelihoods, sample_log_likelihoods
from fintune.schema.example import Example, Message
from fintune.schema.results import DocumentRecord
from fintune.tasks.conversations import ConversationTask
from fintune.trees.chat import ChatFormat, EncodedExample, encode_all

if TYPE_CHECKING:
    from fintune.evaluation.scoring import Scorer

Counts = dict[str, float]


def conversation_records(
    scorer: Scorer,
    task: ConversationTask,
    examples: Sequence[Example],
    system: str,
    on_batch: Callable[[int], None] | None = None,
) -> list[DocumentRecord]:
    """One record for each example; one that does not fit the model has no counts and is missing."""
    counts, truncated = likelihood_counts(scorer, examples)
    if task.measure == "answers":
        records = _answered(scorer, task, examples, system, on_batch)
    else:
        records = [_unanswered(system, task, example) for example in examples]
        if task.measure == "next_turn":
            records = _ranked(scorer, examples, records)
        if on_batch is not None:
            on_batch(len(examples))
    return [
        record.model_copy(
            update={
                "counts": {**record.counts, **found},
                "truncated": record.truncated or cut,
                "output": (record.output or "") if found else record.output,
                "prediction": (record.prediction or "") if found and task.measure != "answers" else record.prediction,
            }
        )
        for record, found, cut in zip(records, counts, truncated, strict=True)
    ]


def likelihood_counts(scorer: Scorer, examples: Sequence[Example]) -> tuple[list[Counts], list[bool]]:
    """``nats``, ``tokens`` and ``bytes`` of what each example teaches, and whether some of it was cut off.

    Counts are empty where an example does not fit the model. Nats and tokens include the ends of turns, bytes do not.
    """
    encoded = encode_all(scorer.chat, examples)
    scorer.model.model.eval()
    samples = [one.training_sample() for one in encoded.encoded]
    scores = sample_log_likelihoods(scorer.model, samples, tokens_per_batch=scorer.budget, packing=scorer.packing)
    counts: list[Counts] = [{} for _ in examples]
    truncated = [False] * len(examples)
    for position, one, sample, score in zip(encoded.kept, encoded.encoded, samples, scores, strict=True):
        found = counts[position]
        parts = {"nats": -float(score), "tokens": float((sample.supervision > 0).sum()), "bytes": float(one.text_bytes)}
        counts[position] = {name: found.get(name, 0.0) + part for name, part in parts.items()}
        truncated[position] |= one.truncated
    return counts, truncated


def _unanswered(system: str, task: ConversationTask, example: Example) -> DocumentRecord:
    return DocumentRecord(
        system=system,
        task=task.name,
        example_id=example.example_id,
        group=example.group,
        target=example.target,
        prediction=None,
        correct=False,
        text=example.document,
    )


def _answered(
    scorer: Scorer,
    task: ConversationTask,
    examples: Sequence[Example],
    system: str,
    on_batch: Callable[[int], None] | None,
) -> list[DocumentRecord]:
    asked = [replace(example, learnt="answer") for example in examples]
    answers = scorer.written(task, asked, on_batch)
    return [
        record
        for example, answer in zip(examples, answers, strict=True)
        for record in answer_records(system, task, example, answer.text, truncated=answer.truncated)
    ]


def _ranked(scorer: Scorer, examples: Sequence[Example], records: Sequence[DocumentRecord]) -> list[DocumentRecord]:
    """The records with the likeliest of each example's candidates; as they are where there are none."""
    encoded = [_with_candidates(scorer.chat, example) for example in examples]
    fitting = [one for one in encoded if one is not None]
    scores = iter(choice_log_likelihoods(scorer.model, fitting, tokens_per_batch=scorer.budget, packing=scorer.packing))
    ranked = []
    for example, record, one in zip(examples, records, encoded, strict=True):
        if one is None:
            ranked.append(record)
            continue
        candidates: Sequence[str] = example.metadata["candidates"]
        found = next(scores)
        by_byte = found / np.array([max(1, len(text.encode("utf-8", "surrogatepass"))) for text in candidates])
        is_right = int(np.argmax(by_byte)) == 0 and float(np.sort(by_byte)[-1]) > float(np.sort(by_byte)[-2])
        ranked.append(
            record.model_copy(
                update={
                    "prediction": candidates[int(np.argmax(by_byte))],
                    "output": candidates[int(np.argmax(by_byte))],
                    "correct": is_right,
                    "counts": {"ranked": 1.0, "next_turn": float(is_right), "chance": 1 / len(candidates)},
                    "log_likelihoods": tuple(found.tolist()),
                }
            )
        )
    return ranked


def _with_candidates(chat: ChatFormat, example: Example) -> EncodedExample | None:
    """The history with every candidate, without as many of its oldest exchanges as it takes to fit."""
    candidates = example.metadata.get("candidates", ())
    if not candidates:
        return None
    asked = replace(example, learnt="answer", choices=tuple(candidates))
    while (encoded := chat.encode(asked)) is None:
        shorter = _without_oldest(asked.messages)
        if shorter is None:
            return None
        asked = replace(asked, messages=shorter)
    return encoded


def _without_oldest(messages: tuple[Message, ...]) -> tuple[Message, ...] | None:
    """The messages without their first exchange, the system's stays; None where only the last question is left."""
    first = 1 if messages[0].role == "system" else 0
    return (*messages[:first], *messages[first + 2 :]) if len(messages) - first > 2 else None
