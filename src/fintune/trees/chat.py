"""Examples of every kind to tokens: single answers, conversations with all their answers, plain texts in blocks.

Enters: ``Example`` objects and a ``ChatFormat``. Leaves: ``EncodedExample`` objects and counts of what was cut or lost.

A conversation is one sample in which each answer is supervised with its end of turn:

::

    <user> Hi <end> <assistant> Hello <end> <user> Rates? <end> <assistant> They rose <end>
                                ^^^^^^^^^^^                                 ^^^^^^^^^^^^^^^

Every answer must stand behind exactly the tokens that ask for it when it is generated. Some templates write earlier
turns differently once others follow (a system message moved to the last question, thoughts left out): there each answer
becomes a sample of its own, behind its own prompt. The prefix tree computes what such samples share once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fintune.schema.example import Example, Message
from fintune.trees.chat_format import ChatFormat
from fintune.trees.encoded import EncodedExample
from fintune.trees.prefix_tree import IntArray

__all__ = ["ChatFormat", "EncodedExample", "EncodedSet", "encode_all", "encode_parts"]


@dataclass(frozen=True)
class EncodedSet:
    """Encoded examples and what was lost on the way.

    Attributes:
        kept: position of the example behind each of ``encoded``; a text, and a conversation whose template changes
            earlier turns, has several.
        encoded: the samples.
        truncated: examples of which a document was shortened or turns were cut off.
        dropped: examples that did not fit even without their document, or with their first exchange alone.
    """

    kept: tuple[int, ...]
    encoded: tuple[EncodedExample, ...]
    truncated: int
    dropped: int


def encode_all(chat: ChatFormat, examples: Sequence[Example], reserve: int = 0) -> EncodedSet:
    """Encodes examples, counting the truncated and the dropped; ``reserve`` as for ``ChatFormat.encode``."""
    answers = [i for i, example in enumerate(examples) if example.learnt == "answer"]
    read = dict(zip(answers, chat.encode_many([examples[i] for i in answers], reserve), strict=True))
    parts = [
        ([] if (found := read[i]) is None else [found]) if i in read else encode_parts(chat, example, reserve)
        for i, example in enumerate(examples)
    ]
    pairs = [(i, encoded) for i, found in enumerate(parts) for encoded in found]
    return EncodedSet(
        kept=tuple(i for i, _ in pairs),
        encoded=tuple(encoded for _, encoded in pairs),
        truncated=sum(any(encoded.truncated for encoded in found) for found in parts),
        dropped=sum(not found for found in parts),
    )


def encode_parts(chat: ChatFormat, example: Example, reserve: int = 0) -> list[EncodedExample]:
    """The samples of one example, in order; none where it does not fit."""
    if example.learnt == "text":
        return _blocks(chat, example.target)
    if example.learnt == "turns":
        turns = (*example.messages, Message("assistant", example.target))
        whole = _one_sample(chat, turns)
        return _sample_an_answer(chat, turns) if whole is None else whole
    encoded = chat.encode(example, reserve)
    return [] if encoded is None else [encoded]


def _one_sample(chat: ChatFormat, turns: Sequence[Message]) -> list[EncodedExample] | None:
    """The conversation as one sample with as many exchanges as fit; None where answers do not follow their prompts."""
    spans = _answer_spans(chat, turns)
    if spans is None:
        return None
    tokens = chat.closed(turns)
    fitting = [(start, stop) for start, stop in spans if stop <= chat.max_length]
    if not fitting:
        return []
    last, end = fitting[-1]
    learnt = np.zeros(last, np.bool_)
    for start, stop in fitting[:-1]:
        learnt[start:stop] = True
    return [
        EncodedExample(
            prompt=tokens[:last],
            completion=tokens[last:end],
            choices=(),
            truncated=len(fitting) < len(spans),
            learnt=learnt,
            text_bytes=sum(_n_bytes(answer) for answer in _answers(turns)[: len(fitting)]),
        )
    ]


def _answer_spans(chat: ChatFormat, turns: Sequence[Message]) -> list[tuple[int, int]] | None:
    """First token and end of every answer within the whole conversation, its end-of-turn token included."""
    whole = chat.closed(turns)
    spans = []
    for position, turn in enumerate(turns):
        if turn.role != "assistant":
            continue
        prompt, closed = chat.prompt(turns[:position]), chat.closed(turns[: position + 1])
        end = chat.end_of_answer(closed[len(prompt) :])
        if end is None or not _begins_with(closed, prompt) or not _begins_with(whole, closed[: len(prompt) + end]):
            return None
        spans.append((len(prompt), len(prompt) + end))
    return spans


def _sample_an_answer(chat: ChatFormat, turns: Sequence[Message]) -> list[EncodedExample]:
    """Each answer behind its own prompt, up to the first that does not fit."""
    parts: list[EncodedExample] = []
    for position, turn in enumerate(turns):
        if turn.role != "assistant":
            continue
        prompt, answer = chat.prompt(turns[:position]), chat.completion(turn.content)
        if len(prompt) + len(answer) > chat.max_length:
            return [*parts[:-1], replace(parts[-1], truncated=True)] if parts else []
        parts.append(EncodedExample(prompt, answer, (), False, text_bytes=_n_bytes(turn.content)))
    return parts


def _blocks(chat: ChatFormat, text: str) -> list[EncodedExample]:
    """A text and its end as blocks, each behind the token before it, so that every token is supervised exactly once.

    The first follows the tokenizer's opening token, or its end of text where it has none.
    """
    tokens = np.concatenate([[chat.opening_id], chat.text(text), [chat.tokenizer.eos_token_id]]).astype(np.int64)
    step = chat.max_length - 1
    return [
        EncodedExample(
            prompt=tokens[start : start + 1],
            completion=tokens[start + 1 : start + 1 + step],
            choices=(),
            truncated=False,
            text_bytes=0 if start else _n_bytes(text),
        )
        for start in range(0, len(tokens) - 1, step)
    ]


def _answers(turns: Sequence[Message]) -> list[str]:
    return [turn.content for turn in turns if turn.role == "assistant"]


def _begins_with(tokens: IntArray, start: IntArray) -> bool:
    return np.array_equal(tokens[: len(start)], start)


def _n_bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
