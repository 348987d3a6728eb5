"""What chat and completions send: OpenAI's objects, whole or in the frames of a stream.

Enters: pieces of answers. Leaves: answers, or frames.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any

from fintune.serving.server import wire
from fintune.serving.server.asking import Prompted
from fintune.serving.server.jobs import Piece
from fintune.serving.server.streams import frame


@dataclass(frozen=True)
class Shape:
    """How chat and completions differ in what they send."""

    prefix: str
    answer: Any
    choice: Callable[[Piece], Any]
    chunk_object: str
    chunk_choice: Callable[[Piece], dict[str, Any]]
    first: dict[str, Any] | None = None


def _chat_choice(piece: Piece) -> Any:
    message = wire.AnswerMessage(content=piece.text)
    return wire.ChatChoice(index=piece.index, message=message, finish_reason=piece.ended or "stop")


def _completion_choice(piece: Piece) -> Any:
    return wire.CompletionChoice(index=piece.index, text=piece.text, finish_reason=piece.ended or "stop")


CHAT = Shape(
    "chatcmpl",
    wire.ChatAnswer,
    _chat_choice,
    "chat.completion.chunk",
    lambda piece: {"delta": {"content": piece.text} if piece.text else {}},
    {"delta": {"role": "assistant", "content": ""}},
)
COMPLETION = Shape(
    "cmpl", wire.CompletionAnswer, _completion_choice, "text_completion", lambda piece: {"text": piece.text}
)


async def events(
    answers: AsyncGenerator[Piece | None, None],
    head: dict[str, Any],
    shape: Shape,
    prompted: Prompted,
    with_usage: bool,
) -> AsyncGenerator[bytes, None]:
    """The frames of a stream; a problem on the way is the last event before [DONE]."""
    head = {**head, "object": shape.chunk_object}
    extra = {"usage": None} if with_usage else {}
    n_tokens: dict[int, int] = {}
    try:
        for index in range(len(prompted.prompts) if shape.first else 0):
            choice = {"index": index, **(shape.first or {}), "logprobs": None, "finish_reason": None}
            yield frame({**head, "choices": [choice], **extra})
        async for piece in answers:
            if piece is None:
                continue
            if piece.problem is not None:
                yield frame(piece.problem.body())
                break
            n_tokens[piece.index] = piece.n_tokens
            choice = {"index": piece.index, **shape.chunk_choice(piece)}
            yield frame({**head, "choices": [{**choice, "logprobs": None, "finish_reason": piece.ended}], **extra})
        else:
            if with_usage:
                usage = usage_of(prompted.prompt_tokens, sum(n_tokens.values())).model_dump()
                yield frame({**head, "choices": [], "usage": usage})
        yield b"data: [DONE]\n\n"
    finally:
        await answers.aclose()


def usage_of(prompt: int, completion: int) -> wire.Usage:
    """The tokens of a request."""
    return wire.Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)
