"""Classifications in turns of about a second, so that answers are written in between and nobody waits for long.

::

    request a   text 0 [choice 0 … 47]  text 1 [choice 0 … 20 | 21 … 47]  …
                ───────── turn 1 ────────────────────────────   turn 3 …      request b: turn 2, turn 4, …

Enters: classifications. Leaves: the probabilities of their choices. A turn is one batch of about as many tokens as the
device computes in ``TURN_S``; a text with more choices than that is spread over several. Requests take turns, and one
that nobody waits for is dropped before the next. All of it runs in the engine's thread.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from fintune.inference.likelihood import choice_log_likelihoods, softmax
from fintune.inference.out_of_memory import empty_caches, is_out_of_memory
from fintune.schema.recipe import Packing
from fintune.serving.server.problems import HttpProblem
from fintune.trees.encoded import EncodedExample
from fintune.trees.prefix_tree import FloatArray

if TYPE_CHECKING:
    from fintune.serving.server.models import ServedModel

log = logging.getLogger(__name__)
TURN_S = 1.0
LEAST = 256  # tokens of a turn, however slow the device is: below that it is not used well
Told = list[FloatArray] | HttpProblem | None


def computed_tokens(text: EncodedExample, packing: Packing) -> int:
    """Tokens that the choices of a text cost: a tree computes the prompt once, other batches once a choice."""
    prompts = 1 if packing == "tree" else len(text.choices)
    return prompts * len(text.prompt) + sum(map(len, text.choices))


@dataclass(eq=False)
class Classification:
    """Texts that are to be classified.

    Attributes:
        model: what is asked.
        texts: with their choices.
        tell: given, in the engine's thread, the probabilities of each text's choices, a problem, or None where nobody
            waits any more; called once, when the queue has let go of the classification.
        cancelled: nobody waits any more.
    """

    model: ServedModel
    texts: tuple[EncodedExample, ...]
    tell: Callable[[Told], None]
    cancelled: bool = False
    _scores: list[FloatArray] = field(init=False)
    _text: int = 0  # the first text that is not asked about to its end
    _choice: int = 0  # the first choice of it that is not asked about

    def __post_init__(self) -> None:
        self._scores = [np.zeros(len(text.choices)) for text in self.texts]

    def take(self, budget: int) -> tuple[list[_Part], int]:
        """The next choices to ask about, of ``budget`` tokens or one choice, and their tokens."""
        packing, parts, used = self.model.predictor.scorer.packing, list[_Part](), 0
        while self._text < len(self.texts) and used < budget:
            text = self.texts[self._text]
            # A prompt that is computed again for its further choices should not cost more than they do.
            least = 0 if parts else min(2 * len(text.prompt), self.model.predictor.scorer.tokens_per_batch)
            room = max(budget - used, least)
            n, cost = _fitting(replace(text, choices=text.choices[self._choice :]), room, packing)
            if parts and n == 0:
                break
            last = self._choice + max(n, 1)
            parts.append(_Part(self, self._text, self._choice, last))
            used += cost
            self._text, self._choice = (self._text, last) if last < len(text.choices) else (self._text + 1, 0)
        return parts, used

    def put_back(self, part: _Part) -> None:
        """Asks again about this part and what was taken after it."""
        self._text, self._choice = part.text, part.first

    @property
    def is_taken(self) -> bool:
        """Nothing is left to ask about."""
        return self._text == len(self.texts)

    def probabilities(self) -> list[FloatArray]:
        """(n_choices,) of each text, once all were asked about."""
        return [softmax(scores) for scores in self._scores]


def _fitting(text: EncodedExample, room: int, packing: Packing) -> tuple[int, int]:
    """How many of the text's choices, from the first, fit into ``room`` tokens, and what these (or the first) cost."""
    each = 0 if packing == "tree" else len(text.prompt)
    head = len(text.prompt) if packing == "tree" else 0
    costs = [head + cost for cost in accumulate(len(choice) + each for choice in text.choices)]
    n = sum(cost <= room for cost in costs)
    return n, costs[max(n, 1) - 1]


@dataclass(frozen=True)
class _Part:
    """Some choices of one text."""

    asked: Classification
    text: int
    first: int
    last: int

    def example(self) -> EncodedExample:
        """The text with these choices alone."""
        text = self.asked.texts[self.text]
        return replace(text, choices=text.choices[self.first : self.last])

    def put(self, scores: FloatArray) -> None:
        """Takes the log-likelihoods of the choices."""
        self.asked._scores[self.text][self.first : self.last] = scores


class ClassificationQueue:
    """Classifications that wait; each gets a turn in its time."""

    def __init__(self) -> None:
        self._waiting: deque[Classification] = deque()
        self._budget = 2 * LEAST
        self._fitting: int | None = None  # most tokens of a turn since memory ran out

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def uses(self, model: ServedModel) -> bool:
        """Whether a classification asks this model."""
        return any(asked.model is model for asked in self._waiting)

    def add(self, asked: Classification) -> None:
        """Queues one behind those that are there."""
        self._waiting.append(asked)

    def turn(self) -> None:
        """Asks about the next choices of the first classification, and of others that ask the same model."""
        for asked in [asked for asked in self._waiting if asked.cancelled]:
            self._end(asked, None)
        if not self._waiting:
            return
        first, together = self._waiting[0], [self._waiting[0]]
        began, short_of_memory = time.monotonic(), False
        parts, n_tokens = list[_Part](), 0
        try:
            parts, n_tokens = self._next()
            together = list(dict.fromkeys(part.asked for part in parts))
            self._ask(parts)
        except Exception as error:
            short_of_memory = is_out_of_memory(error)  # what the error holds is free once it is handled
            if not short_of_memory:
                log.exception("A classification failed.")
                problem = HttpProblem(500, "The texts could not be classified; the server's log says why.", "failed")
                for asked in together:
                    self._end(asked, problem)
                return
        if short_of_memory:
            self._shrink(parts, n_tokens)
            return
        self._adapt(n_tokens, time.monotonic() - began, first.model)
        for asked in together:
            if asked.is_taken:
                self._end(asked, asked.probabilities())
        if self._waiting and self._waiting[0] is first:
            self._waiting.rotate(-1)

    def _next(self) -> tuple[list[_Part], int]:
        model = self._waiting[0].model
        budget = min(self._budget, model.predictor.scorer.tokens_per_batch, self._fitting or self._budget)
        parts, n_tokens = self._waiting[0].take(budget)
        for asked in list(self._waiting)[1:]:
            if asked.model is model and n_tokens < budget:
                more, n_more = asked.take(budget - n_tokens)
                parts, n_tokens = parts + more, n_tokens + n_more
        return parts, n_tokens

    def _ask(self, parts: Sequence[_Part]) -> None:
        predictor = parts[0].asked.model.predictor
        scorer, examples = predictor.scorer, [part.example() for part in parts]
        with predictor.using():
            found = choice_log_likelihoods(
                scorer.model, examples, tokens_per_batch=scorer.tokens_per_batch, packing=scorer.packing
            )
        for part, scores in zip(parts, found, strict=True):
            part.put(scores)

    def _shrink(self, parts: Sequence[_Part], n_tokens: int) -> None:
        """Puts the parts of a turn back and goes on with half of it; the smallest there is ends its classification."""
        empty_caches()
        first = parts[0]
        if len(parts) == 1 and (self._fitting == 1 or first.last - first.first == 1):
            self._end(first.asked, HttpProblem(503, "Memory ran out while one text was classified.", "out_of_memory"))
            return
        for part in reversed(parts):
            part.asked.put_back(part)
        self._fitting = max(1, min(n_tokens, self._fitting or n_tokens) // 2)
        log.warning("Memory ran out; going on with %d tokens of a classification at once.", self._fitting)

    def _adapt(self, n_tokens: int, elapsed_s: float, model: ServedModel) -> None:
        """Makes the turns as large as the device is fast."""
        if elapsed_s > TURN_S:
            self._budget = max(LEAST, self._budget // 2)
        elif elapsed_s < TURN_S / 2 and 2 * n_tokens > self._budget:
            self._budget = min(2 * self._budget, max(LEAST, model.predictor.scorer.tokens_per_batch))

    def _end(self, asked: Classification, told: Told) -> None:
        self._waiting.remove(asked)
        self._fitting = None  # others may be smaller, or memory free again
        asked.tell(told)
