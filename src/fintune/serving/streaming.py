"""An answer while it is being written: the text so far after each new token.

Enters: a ``Predictor`` and a prompt as tokens. Leaves: growing text, the same as evaluation would have written.
"""

from __future__ import annotations

from collections.abc import Iterator
from queue import SimpleQueue
from threading import Event, Thread

from fintune.inference.drafts import StopPredicate
from fintune.inference.generate import generate
from fintune.serving.predictor import Predictor
from fintune.trees.prefix_tree import IntArray


def stream_answer(predictor: Predictor, prompt: IntArray, *, max_new_tokens: int) -> Iterator[str]:
    """Yields the answer as far as it is written, token by token; who stops reading stops the writing.

    Args:
        predictor: what writes; it is in use (``Predictor.using``) until the answer ends.
        prompt: (L,) token ids.
        max_new_tokens: most tokens of the answer.

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
            told.put(_write(predictor, prompt, max_new_tokens, heard))  # ``heard`` is not asked about the last one
            told.put(None)
        except BaseException as error:  # it belongs to the thread that reads
            told.put(error)

    # A thread of its own: whoever holds the model gives it back in the thread that took it, which readers, who may
    # come from another thread each time, could not.
    writer = Thread(target=write, daemon=True)
    writer.start()
    n_tokens = 0
    try:
        while (item := told.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            if len(item) == n_tokens:
                continue
            n_tokens = len(item)
            yield predictor.scorer.chat.tokenizer.decode(item, skip_special_tokens=True)
    finally:
        unread.set()
        writer.join()


def _write(predictor: Predictor, prompt: IntArray, max_new_tokens: int, heard: StopPredicate) -> list[int]:
    scorer = predictor.scorer
    with predictor.using():
        scorer.model.model.eval()
        (answer,) = generate(
            scorer.model,
            [prompt],
            max_new_tokens=max_new_tokens,
            stop_ids=scorer.chat.end_ids,
            stop=heard,
            batch_size=1,
            tokens_per_batch=scorer.tokens_per_batch,
            packing=scorer.packing,
        )
    return [int(token) for token in answer]
