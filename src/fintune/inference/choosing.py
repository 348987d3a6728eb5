"""Which token comes next: the likeliest, or one drawn as ``generate`` of ``transformers`` draws it.

Enters: logits and what stands before them. Leaves: token ids. Penalties and shares are the logits processors of
``transformers`` themselves, in its order; each answer has a generator of its own, so company and batches do not matter.

Shapes: N drafts, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fintune.inference.drafts import Draft
from fintune.schema.errors import DataError


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; names, meaning and order are those of ``generate`` of ``transformers``.

    Attributes:
        temperature: the logits are divided by it; 0 takes the likeliest token, penalties applied.
        top_p: only the likeliest tokens that together reach this probability are drawn from.
        top_k: only so many of the likeliest tokens are drawn from, as ``transformers`` does unasked; 0 means all.
        repetition_penalty: logits of tokens that have occurred, in the prompt too, are divided by it where positive and
            multiplied where negative.
        no_repeat_ngram_size: no sequence of so many tokens occurs twice, the prompt included; 0 allows it.
        seed: the same seed, prompt and model write the same answer on the same kind of device.
    """

    temperature: float = 0.2
    top_p: float = 0.7
    repetition_penalty: float = 1.2
    no_repeat_ngram_size: int = 3
    top_k: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        for name, holds, allowed in (
            ("temperature", 0 <= self.temperature < float("inf"), "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "more than 0 and at most 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < float("inf"), "more than 0; 1 is none"),
            ("no_repeat_ngram_size", self.no_repeat_ngram_size >= 0, "0 or more"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("seed", 0 <= self.seed < 2**63, "0 or more"),
        ):
            if not holds:
                raise DataError(f"{name} is {getattr(self, name)}.", f"Give {allowed}.")

    def processors(self) -> Any:
        """The ``LogitsProcessorList`` that ``generate`` makes of the same settings, in its order."""
        from transformers.generation import logits_process as rules

        made: list[Any] = []
        if self.repetition_penalty != 1:
            made.append(rules.RepetitionPenaltyLogitsProcessor(self.repetition_penalty))
        if self.no_repeat_ngram_size:
            made.append(rules.NoRepeatNGramLogitsProcessor(self.no_repeat_ngram_size))
        if self.temperature and self.temperature != 1:
            made.append(rules.TemperatureLogitsWarper(float(self.temperature)))
        if self.temperature and self.top_k:
            made.append(rules.TopKLogitsWarper(self.top_k))
        if self.temperature and self.top_p < 1:
            made.append(rules.TopPLogitsWarper(self.top_p))
        return rules.LogitsProcessorList(made)


class Chooser:
    """Chooses the next token of each draft; without ``sampling``, the likeliest."""

    def __init__(self, sampling: Sampling | None = None) -> None:
        self.sampling = sampling
        self._processors = None if sampling is None else sampling.processors()
        self._generators: dict[int, torch.Generator] = {}

    def choose(self, drafts: Sequence[Draft], logits: Tensor) -> list[int]:
        """The next tokens of ``drafts`` by their (N, V) logits."""
        if self.sampling is None:
            best: list[int] = logits.argmax(-1).tolist()  # the one wait for the device in a step
            return best
        chosen = [self._draw(draft, row[None]) for draft, row in zip(drafts, logits.float(), strict=True)]
        drawn: list[int] = torch.cat(chosen).flatten().tolist()
        return drawn

    def _draw(self, draft: Draft, logits: Tensor) -> Tensor:
        assert self.sampling is not None and self._processors is not None  # ``choose`` has seen to it
        read = torch.from_numpy(draft.tokens)[None].to(logits.device)
        scores: Tensor = self._processors(read, logits)
        if not self.sampling.temperature:
            return scores.argmax(-1, keepdim=True)
        generator = self._generators.get(draft.index)
        if generator is None:
            generator = torch.Generator(logits.device).manual_seed(self.sampling.seed)
            self._generators[draft.index] = generator
        return torch.multinomial(scores.softmax(-1), 1, generator=generator)
