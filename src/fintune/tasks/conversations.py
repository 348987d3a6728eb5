"""Tasks of conversations, instructions and plain text, made from a source of the user's own.

Enters: a task's section whose format is known, and rows. Leaves: ``Example`` objects with every answer of the
assistant supervised, and what a written answer is worth. How likely the held-out words are, and which of several turns
comes next, is measured by ``evaluation.conversations``.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from fintune.metrics.stated_numbers import number_counts
from fintune.metrics.text import rouge_l, token_f1
from fintune.schema.conversations import ConversationMeasure, ConversationsSection
from fintune.schema.example import Example, Message
from fintune.schema.results import Judgement, Protocol, Scoring
from fintune.sources import group_key, is_blank, normalise_text
from fintune.tasks.answers import texts_agree
from fintune.tasks.base import Prompt, Row, Task
from fintune.tasks.conversation_rows import look_up, parse_turns

DISTRACTORS = 9
"""Turns of other conversations that the true next turn is ranked among."""


@dataclass(frozen=True, kw_only=True)
class ConversationTask(Task):
    """Conversations or plain texts of one source.

    Attributes:
        section: format, columns and checks; the format is known.
    """

    scoring: ClassVar[Scoring] = "chat"
    section: ConversationsSection

    @property
    def measure(self) -> ConversationMeasure:
        """What is measured beside perplexity."""
        if self.section.measure != "auto":
            return self.section.measure
        return "likelihood" if self.section.format == "text" else "next_turn"

    def parse_row(self, raw: Mapping[str, Any], index: int, split: str) -> Row:
        """Reads a row's turns, which are in ``metadata`` with what is wrong with them; no label means unusable."""
        turns, fault = parse_turns(raw, self.section)
        kept = turns if not fault or self.section.faulty_turns == "cut" else ()
        text = "\n".join(turn.content for turn in kept if turn.role != "system")
        group = look_up(raw, self.section.group) if self.section.group else None
        return Row(
            row_id=str(raw.get("id") or f"{split}-{index:05d}"),
            text=text,
            label=kept[-1].content if kept else None,
            group="" if is_blank(group) else str(group).strip(),
            metadata={"turns": kept, "fault": fault},
        )

    def make_example(self, row: Row, prompt: str | None = None) -> Example:
        """The conversation with its last answer as the target, or the document as a text."""
        turns: Sequence[Message] = row.metadata["turns"]
        return Example(
            example_id=row.row_id,
            task=self.name,
            messages=tuple(turns[:-1]),
            target=turns[-1].content,
            group=row.group or group_key(row.text),
            learnt="text" if self.section.format == "text" else "turns",
        )

    def judge(self, example: Example, answer: str | None, protocol: Protocol = "robust") -> Judgement:
        """A written answer beside the reference: shared words, and its numbers (``metrics.stated_numbers``)."""
        said, asked = (answer or "").strip(), "\n".join(message.content for message in example.messages)
        counts = {
            "answered": 1.0,
            "token_f1": token_f1(said, example.target) if said else 0.0,
            "rouge_l": rouge_l(said, example.target) if said else 0.0,
            **number_counts(said, example.target, asked),
        }
        return Judgement(said or None, texts_agree(said, example.target), counts)


def conversation_task(name: str, section: ConversationsSection) -> ConversationTask:
    """The task of a source whose format is known."""
    what = "Plain text" if section.format == "text" else "Conversations"
    task = ConversationTask(
        name=name,
        version="own",
        description=f"Own data: {what.lower()} ({section.format}).",
        prompts={"own": Prompt("own", "", source="the recipe")},
        default_prompt="own",
        licence=section.licence or "not stated (own data)",
        citation="",
        folder=name,
        max_answer_tokens=section.max_answer_tokens,
        section=section,
    )
    return replace(task, version=f"own, {task.measure}")


def with_candidates(examples: Sequence[Example]) -> list[Example]:
    """Each conversation with the turns its true last one is ranked among, the true one first.

    They are last turns of other conversations, picked by hash: neither the order of the rows nor a limit changes them.
    Equal turns, and answers to the same last words of the user, could be as right and are left out.
    """
    ring = sorted((_place(example.target), _Turn.of(example)) for example in examples)
    places = [place for place, _ in ring]
    found = []
    for example in examples:
        start = bisect_left(places, _place(example.example_id))
        others = (turn for _, turn in (*ring[start:], *ring[:start]))
        distractors = _distractors(_Turn.of(example), others)
        metadata = {**example.metadata, "candidates": (example.target, *distractors)}
        found.append(replace(example, metadata=metadata) if distractors else example)
    return found


@dataclass(frozen=True, order=True)
class _Turn:
    """A conversation's last answer, and what answers and the words they reply to are told apart by."""

    text: str
    key: str
    question: str

    @classmethod
    def of(cls, example: Example) -> _Turn:
        question = example.messages[-1].content if example.messages else ""
        return cls(example.target, normalise_text(example.target), normalise_text(question))


def _distractors(true: _Turn, others: Iterable[_Turn]) -> list[str]:
    chosen: dict[str, str] = {}
    for turn in others:
        if turn.key not in (true.key, *chosen) and turn.question != true.question:
            chosen[turn.key] = turn.text
        if len(chosen) == DISTRACTORS:
            break
    return list(chosen.values())


def _place(text: str) -> str:
    return hashlib.sha256(f"turn:{text}".encode("utf-8", "surrogatepass")).hexdigest()
