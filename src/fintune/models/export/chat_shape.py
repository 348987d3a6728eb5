"""A chat template as fixed texts around each message, for programs that do not read Jinja.

Enters: a tokenizer with a chat template. Leaves: ``ChatShape``, found by rendering short conversations and proved on
others; None where the template does more than to put texts around messages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turn = Mapping[str, str]
_SYSTEM, _ASKED, _ANSWERED, _AGAIN = "Qsystem0", "Qasked1", "Qanswered2", "Qagain3"


@dataclass(frozen=True)
class ChatShape:
    """The texts around messages.

    Attributes:
        opening: before everything, BOS included.
        system: before and after a system message; None where the template takes none.
        joins_user: the text after a system message stands for the one before the user's first message, too.
        user: before and after a user's message; what invites the answer is part of the latter.
        answer: before and after an answer that is followed by more.
        default_system: the system message of a conversation that has none; None where it stays without.
    """

    opening: str
    system: tuple[str, str] | None
    joins_user: bool
    user: tuple[str, str]
    answer: tuple[str, str]
    default_system: str | None

    def render(self, turns: Sequence[Turn]) -> str:
        """The text of a conversation that ends with a question."""
        if self.default_system is not None and turns[0]["role"] != "system":
            turns = [{"role": "system", "content": self.default_system}, *turns]
        parts, joined = [self.opening], False
        for turn in turns:
            before, after = {"system": self.system, "user": self.user, "assistant": self.answer}[turn["role"]] or (
                "",
                "",
            )
            parts += ["" if joined and turn["role"] == "user" else before, turn["content"], after]
            joined = self.joins_user and turn["role"] == "system"
        return "".join(parts)

    def _around(self, role: str) -> tuple[str, str]:
        return {"system": self.system or ("", ""), "user": self.user, "assistant": self.answer}[role]


def chat_shape(tokenizer: PreTrainedTokenizerBase) -> ChatShape | None:
    """The shape of a tokenizer's chat template; None where it has none, or is not of this kind."""
    if not tokenizer.chat_template:
        return None
    dialogue = [_turn("user", _ASKED), _turn("assistant", _ANSWERED), _turn("user", _AGAIN)]
    whole, closed = _rendered(tokenizer, dialogue), _rendered(tokenizer, dialogue[:2], ask=False)
    parts = _split(whole, _ASKED, _ANSWERED, _AGAIN)
    ends = _split(closed, _ASKED, _ANSWERED)
    if parts is None or ends is None or not parts[1].startswith(parts[3]) or not parts[2].startswith(ends[2]):
        return None
    user = (parts[2].removeprefix(ends[2]), parts[3])
    answer = (parts[1].removeprefix(parts[3]), ends[2])
    if not parts[0].endswith(user[0]):
        return None
    head = parts[0].removesuffix(user[0])
    found = _with_system(tokenizer, head, user, answer) or ChatShape(head, None, False, user, answer, None)
    return found if _holds(tokenizer, found) else None


def _with_system(
    tokenizer: PreTrainedTokenizerBase, head: str, user: tuple[str, str], answer: tuple[str, str]
) -> ChatShape | None:
    parts = _split(_rendered(tokenizer, [_turn("system", _SYSTEM), _turn("user", _ASKED)]), _SYSTEM, _ASKED)
    if parts is None:
        return None
    joins = not parts[1].endswith(user[0])
    after = parts[1] if joins else parts[1].removesuffix(user[0])
    if parts[0].startswith(head):
        return ChatShape(head, (parts[0].removeprefix(head), after), joins, user, answer, None)
    if joins or not head.startswith(parts[0]) or not head.endswith(after):
        return None
    default = head[len(parts[0]) : len(head) - len(after)]
    return ChatShape("", (parts[0], after), False, user, answer, default)


def _holds(tokenizer: PreTrainedTokenizerBase, shape: ChatShape) -> bool:
    """Whether the shape and the template write other conversations alike."""
    question, answer, thanks = _turn("user", "Up 3%?\nOr down?"), _turn("assistant", "Up."), _turn("user", "Why?")
    proofs = [[question], [question, answer, thanks], [question, answer, thanks, answer, question]]
    if shape.system is not None:
        proofs += [[_turn("system", "Be brief."), *turns] for turns in proofs]
    return all(_rendered(tokenizer, turns) == shape.render(turns) for turns in proofs)


def _turn(role: str, content: str) -> Turn:
    return {"role": role, "content": content}


def _rendered(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], *, ask: bool = True) -> str | None:
    template: Any = tokenizer
    try:
        return str(template.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=ask))
    except Exception:  # a template may refuse a role, in whatever way its author chose
        return None


def _split(text: str | None, *words: str) -> list[str] | None:
    """The texts between the words, which must occur once each and in this order."""
    parts = []
    for word in words:
        if text is None or text.count(word) != 1:
            return None
        before, text = text.split(word)
        parts.append(before)
    return [*parts, str(text)]
