"""What a task hands to the rest of fintune: chat messages, the target, and what statistics need.

Nothing here knows about tokens or tensors. ``tasks`` produces ``Example``; ``trees`` tokenises it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant"]
Learnt = Literal["answer", "turns", "text"]
"""What an example teaches: its target, every turn of the assistant, or a plain text that is its target."""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    ``document_span`` marks the characters ``content[start:stop]`` that are the user's document (a headline,
    a report page). Truncation shortens only this span, never the instruction around it.
    """

    role: Role
    content: str
    document_span: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.document_span is not None:
            start, stop = self.document_span
            if not 0 <= start <= stop <= len(self.content):
                raise ValueError(f"document_span {self.document_span} lies outside the {len(self.content)} characters")

    @classmethod
    def around(cls, role: Role, before: str, document: str, after: str = "") -> Message:
        """Builds a message whose middle part is the document that truncation may shorten."""
        return cls(role, before + document + after, (len(before), len(before) + len(document)))

    @property
    def document(self) -> str:
        """The document text, or the empty string when no span is marked."""
        if self.document_span is None:
            return ""
        return self.content[slice(*self.document_span)]


@dataclass(frozen=True)
class Example:
    """One document of one task: the prompt, the answer, and what statistics cluster by.

    Attributes:
        example_id: stable identifier, unique within task and split.
        task: registered task name.
        messages: the prompt; the last turn is the user's.
        target: the answer the assistant should give.
        choices: the closed label set in the task's fixed order; empty for free text.
        group: what statistics cluster by (page, dialogue, headline, week); the id itself when rows are independent.
        metadata: anything a scorer or report wants (text, date, ticker, raw label).
        learnt: the target alone; ``turns`` also those of ``messages`` that the assistant speaks; ``text`` the target
            without any template, cut into blocks (then there are no messages).
    """

    example_id: str
    task: str
    messages: tuple[Message, ...]
    target: str
    choices: tuple[str, ...] = ()
    group: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    learnt: Learnt = "answer"

    @property
    def document(self) -> str:
        """The document text of the last message that has one; of a conversation, what is said in it."""
        if self.learnt != "answer":
            said = [message.content for message in self.messages if message.role != "system"]
            return "\n".join([*said, self.target])
        return next((m.document for m in reversed(self.messages) if m.document_span), "")
