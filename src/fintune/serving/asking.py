"""What a model reads before it writes: a prompt or a conversation as tokens, cut at its old end where it is too long.

Enters: a ``Predictor`` and messages. Leaves: tokens, and how many were left out.

A model with a chat template is asked in it. A model without one (a GPT from scratch, a base trained on documents) reads
plain text behind its opening token, as it did in training, and writes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fintune.models.window import context_window
from fintune.schema.errors import DataError, ModelError
from fintune.schema.example import Message
from fintune.sources.text import without_lone_surrogates
from fintune.trees.chat import ChatFormat
from fintune.trees.prefix_tree import IntArray

if TYPE_CHECKING:
    from fintune.serving.predictor import Predictor


@dataclass(frozen=True)
class Asked:
    """A prompt as the model reads it.

    Attributes:
        tokens: (L,) token ids.
        dropped: tokens at the beginning of the text that were left out, so that the newest fit.
    """

    tokens: IntArray
    dropped: int


def is_chat(predictor: Predictor, chat: bool) -> bool:
    """Whether the model is asked in a chat template, which ``chat`` False forbids."""
    return chat and predictor.template not in ("none", "text")


def room_for_prompt(predictor: Predictor, max_new_tokens: int, max_prompt_tokens: int | None) -> int:
    """Most tokens of a prompt: what was asked for, or what the model's window leaves beside the answer.

    Raises:
        DataError: a limit is less than 1.
        ModelError: the answer alone fills the window.
    """
    for name, value in (("max_new_tokens", max_new_tokens), ("max_prompt_tokens", max_prompt_tokens)):
        if value is not None and value < 1:
            raise DataError(f"{name} is {value}.", "Give 1 or more.")
    window = context_window(predictor.scorer.model.model.config)
    if window is None:
        return max_prompt_tokens or predictor.scorer.chat.max_length
    if max_new_tokens >= window:
        raise ModelError(
            f"{max_new_tokens:,} new tokens leave no room for a prompt in the model's window of {window:,} tokens.",
            f"Ask for max_new_tokens of {window // 2:,} or fewer.",
        )
    return min(max_prompt_tokens or window, window - max_new_tokens)


def ask(predictor: Predictor, messages: Sequence[Message], *, most: int, chat: bool = True) -> Asked:
    """The tokens of a conversation, ``most`` at most; the last message loses its beginning where they are more.

    Args:
        predictor: whose tokenizer and template are used.
        messages: the turns, a system message first if there is one; the last is the question.
        most: longest prompt in tokens.
        chat: False asks without the template, as a text that goes on.

    Raises:
        DataError: the last message is empty.
        ModelError: nothing of the last message fits.
    """
    messages = [replace(m, content=without_lone_surrogates(m.content), document_span=None) for m in messages]
    if not messages or not messages[-1].content.strip():
        raise DataError("The prompt is empty.", "Write at least one word.")
    found = predictor.scorer.chat
    return _in_template(found, messages, most) if is_chat(predictor, chat) else _as_text(found, messages, most)


def _as_text(chat: ChatFormat, messages: Sequence[Message], most: int) -> Asked:
    text = chat.text("\n".join(message.content for message in messages))
    if most < 2:
        raise _no_room(most)
    kept = text[-(most - 1) :]
    return Asked(np.concatenate([[chat.opening_id], kept]).astype(np.int64), len(text) - len(kept))


def _in_template(chat: ChatFormat, messages: Sequence[Message], most: int) -> Asked:
    """Cuts the last message until the whole fits; tokens at the cut may join otherwise, so it may take several."""
    last, tokens = messages[-1], chat.prompt(messages)
    n_whole = n_kept = len(chat.starts(last.content))
    while (excess := len(tokens) - most) > 0:
        starts = chat.starts(last.content)
        if excess >= len(starts):
            raise _no_room(most)
        last = replace(last, content=last.content[max(starts[excess], 1) :])
        tokens, n_kept = chat.prompt([*messages[:-1], last]), len(chat.starts(last.content))
    return Asked(tokens, n_whole - n_kept)


def _no_room(most: int) -> ModelError:
    return ModelError(
        f"Nothing of the prompt fits into {most:,} tokens beside the template and the other messages.",
        "Raise max_prompt_tokens, lower max_new_tokens, or shorten the system message.",
    )
