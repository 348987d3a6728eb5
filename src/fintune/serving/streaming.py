"""An answer while it is being written: the text so far after each new token.

Enters: a ``Predictor`` and a prompt as tokens. Leaves: growing text; greedily, what evaluation would have written.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from queue import SimpleQueue
from threading import Event, Thread
from typing import TYPE_CHECKING

from fintune.inference.choosing import Sampling
from fintune.inference.drafts import StopPredicate
from fintune.inference.generate import generate
from fintune.trees.prefix_tree import IntArray

if TYPE_CHECKING:
    from fintune.serving.predictor import Predictor


def stream_answer(predictor: Predictor, prompt: IntArray, *, max_new_tokens: int) -> Iterator[str]:
    """Yields the text of the likeliest answer as far as it is written; otherwise as ``stream_tokens``."""
    for tokens in stream_tokens(predictor, prompt, max_new_tokens=max_new_tokens):
        yield predictor.scorer.chat.tokenizer.decode(tokens, skip_special_tokens=True)


def stream_tokens(
    predictor: Predictor,
    prompt: IntArray,
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    use_cache: bool = True,
) -> Generator[list[int], None, None]:
    """Yields the answer's tokens as far as they are written, one more each time; who stops reading stops the writing.

    Args:
        predictor: what writes; it is in use (``Predictor.using``) until the answer ends.
        prompt: (L,) token ids.
        max_new_tokens: most tokens of the answer.
        sampling: how tokens are drawn; None takes the likeliest.
        use_cache: as of ``generate``.

    Raises:
        ModelError: the answer does not fit into memory.
    """
    told: SimpleQueue[list[int] | BaseException | None] = SimpleQueue()
    unread = Event()

    def heard(answer: list[int]) -> bool:
        told.put(list(answer))
        return unread.is_set()

    def write() -> None:
        try:
            _write(predictor, prompt, max_new_tokens, heard, sampling, use_cache)
            told.put(None)
        except BaseException as error:  # it belongs to the thread that reads
            told.put(error)

    # A thread of its own: whoever holds the model gives it back in the thread that took it, which readers, who may
    # come from another thread each time, could not.
    writer = Thread(target=write, daemon=True)
    writer.start()
    try:
        while (item := told.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        unread.set()
        writer.join()


def _write(
    predictor: Predictor,
    prompt: IntArray,
    max_new_tokens: int,
    heard: StopPredicate,
    sampling: Sampling | None,
    use_cache: bool,
) -> None:
    scorer = predictor.scorer
    with predictor.using():
        scorer.model.model.eval()
        generate(
            scorer.model,
            [prompt],
            max_new_tokens=max_new_tokens,
            stop_ids=scorer.chat.end_ids,
            stop=heard,
            batch_size=1,
            tokens_per_batch=scorer.tokens_per_batch,
            packing=scorer.packing,
            sampling=sampling,
            use_cache=use_cache,
        )
