"""Free answers: how they are to be written, and what was written with what it took.

Enters: a ``Predictor`` and prompts as ``asking`` makes them. Leaves: texts, streamed or several at once.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from fintune.evaluation.scoring import generation_batch
from fintune.inference.choosing import Sampling
from fintune.inference.generate import generate
from fintune.schema.example import Message
from fintune.serving.asking import Asked, ask, room_for_prompt
from fintune.serving.streaming import stream_tokens

if TYPE_CHECKING:
    from fintune.serving.predictor import Predictor

MAX_NEW_TOKENS = 128
MAX_PROMPT_TOKENS = 512


@dataclass(frozen=True)
class WritingOptions:
    """How answers are written; the defaults are those of ``fintune.answer``.

    Attributes:
        max_new_tokens: most tokens of an answer.
        max_prompt_tokens: longer prompts lose their beginning; None allows what the model's window holds.
        sampling: how tokens are drawn.
        chat: ask in the model's chat template, where it has one.
        use_cache: False reads everything again for each token, to measure what the cache of keys and values brings.
    """

    max_new_tokens: int = MAX_NEW_TOKENS
    max_prompt_tokens: int | None = MAX_PROMPT_TOKENS
    sampling: Sampling = Sampling()
    chat: bool = True
    use_cache: bool = True

    def ask(self, predictor: Predictor, messages: Sequence[Message]) -> Asked:
        """The conversation as tokens that fit these limits; raises as ``asking.ask``."""
        most = room_for_prompt(predictor, self.max_new_tokens, self.max_prompt_tokens)
        return ask(predictor, messages, most=most, chat=self.chat)


@dataclass(frozen=True)
class Written:
    """An answer, or what there is of it so far.

    Attributes:
        text: the answer.
        n_tokens: its tokens, without the one that ended it.
        prompt_tokens: tokens the model read.
        dropped_tokens: tokens at the prompt's beginning that were left out.
        ended: the model ended it (end), max_new_tokens did (limit), or it is still being written (None).
        time_to_first_token_s: from the call to the first token; None where there is none. Answers that are written
            together share it.
        elapsed_s: from the call to the last token so far.
    """

    text: str
    n_tokens: int
    prompt_tokens: int
    dropped_tokens: int
    ended: Literal["end", "limit"] | None
    time_to_first_token_s: float | None
    elapsed_s: float

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens a second once the prompt was read; None for less than two tokens."""
        if self.time_to_first_token_s is None or self.n_tokens < 2:
            return None
        return (self.n_tokens - 1) / max(self.elapsed_s - self.time_to_first_token_s, 1e-9)


def fresh_seed() -> int:
    """A seed nobody has asked for."""
    return secrets.randbits(32)


def stream_written(predictor: Predictor, asked: Asked, options: WritingOptions) -> Generator[Written, None, None]:
    """Yields the answer after each token, and once more when it has ended; who stops reading stops the writing."""
    begun = time.perf_counter()
    found = Written("", 0, len(asked.tokens), asked.dropped, None, None, 0.0)
    written = stream_tokens(
        predictor,
        asked.tokens,
        max_new_tokens=options.max_new_tokens,
        sampling=options.sampling,
        use_cache=options.use_cache,
    )
    with closing(written) as steps:
        for tokens in steps:
            elapsed = time.perf_counter() - begun
            first = elapsed if found.time_to_first_token_s is None else found.time_to_first_token_s
            text = predictor.scorer.chat.tokenizer.decode(tokens, skip_special_tokens=True)
            found = replace(found, text=text, n_tokens=len(tokens), time_to_first_token_s=first, elapsed_s=elapsed)
            yield found
    yield replace(found, ended=_end(found.n_tokens, options))


def write_together(predictor: Predictor, asked: Sequence[Asked], options: WritingOptions) -> list[Written]:
    """Answers to several prompts; each is what it would be alone, up to rounding."""
    scorer, begun = predictor.scorer, time.perf_counter()
    first: list[float] = []

    def heard(tokens: list[int]) -> bool:
        if not first:
            first.append(time.perf_counter() - begun)
        return False

    with predictor.using():
        scorer.model.model.eval()
        answers = generate(
            scorer.model,
            [prompt.tokens for prompt in asked],
            max_new_tokens=options.max_new_tokens,
            stop_ids=scorer.chat.end_ids,
            stop=heard,
            batch_size=generation_batch(scorer.batch_size, scorer.model.device),
            tokens_per_batch=scorer.tokens_per_batch,
            packing=scorer.packing,
            sampling=options.sampling,
            use_cache=options.use_cache,
        )
    elapsed = time.perf_counter() - begun
    decode = scorer.chat.tokenizer.decode
    return [
        Written(
            text=decode(tokens.tolist(), skip_special_tokens=True),
            n_tokens=len(tokens),
            prompt_tokens=len(prompt.tokens),
            dropped_tokens=prompt.dropped,
            ended=_end(len(tokens), options),
            time_to_first_token_s=first[0] if first else None,
            elapsed_s=elapsed,
        )
        for prompt, tokens in zip(asked, answers, strict=True)
    ]


def _end(n_tokens: int, options: WritingOptions) -> Literal["end", "limit"]:
    return "limit" if n_tokens >= options.max_new_tokens else "end"
