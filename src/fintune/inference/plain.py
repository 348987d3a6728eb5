"""The plain twin of continuous batching: ``generate`` of ``transformers`` on prompts of one length at a time.

For models whose layers are not all attention, or whose positions depend on the batch: with equal lengths there is no
padding, so nothing a sample meets depends on its company.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fintune.inference.choosing import Chooser
from fintune.inference.drafts import Draft, Stopping
from fintune.inference.forward import EdgeModel

NO_TOKEN = 2**31 - 1  # no vocabulary is that large; with None ``generate`` would stop at the model's own end of turn


def write_plain(
    model: EdgeModel,
    drafts: Sequence[Draft],
    stopping: Stopping,
    chooser: Chooser,
    *,
    rows: int,
    tokens_per_batch: int,
    on_done: Callable[[int], None],
    use_cache: bool = True,
) -> None:
    """Finishes the drafts, ``rows`` of one length at a time and fewer where ``tokens_per_batch`` would be passed."""
    model.use_plain_attention()
    for group in _equal_lengths(drafts, rows, tokens_per_batch):
        tokens = torch.from_numpy(np.stack([draft.tokens for draft in group])).to(model.device)
        with model.precision():
            model.model.generate(
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                stopping_criteria=[_TakeTokens(group, stopping, on_done)],
                logits_processor=_choosing(group, chooser),
                max_new_tokens=max(draft.limit - len(draft.answer) for draft in group),
                use_cache=use_cache,
                # A model folder may ship other defaults.
                **{"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0},
                eos_token_id=sorted(stopping.stop_ids) or [NO_TOKEN],
                pad_token_id=0,
            )


def _equal_lengths(drafts: Sequence[Draft], rows: int, tokens_per_batch: int) -> Iterator[list[Draft]]:
    for length, members in groupby(sorted(drafts, key=len, reverse=True), key=len):
        group = list(members)
        size = max(1, min(rows, tokens_per_batch // length))
        for start in range(0, len(group), size):
            yield group[start : start + size]


def _choosing(drafts: Sequence[Draft], chooser: Chooser) -> list[Any]:
    """Leaves ``generate``, which takes the likeliest, nothing but the tokens that the chooser has drawn."""

    def only_chosen(input_ids: Tensor, scores: Tensor) -> Tensor:
        open_rows = [row for row, draft in enumerate(drafts) if not draft.done]
        chosen = scores.argmax(-1)
        drawn = chooser.choose([drafts[row] for row in open_rows], scores[open_rows])
        chosen[open_rows] = torch.tensor(drawn, device=scores.device)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen[:, None], 0.0)

    return [] if chooser.sampling is None else [only_chosen]


class _TakeTokens:
    """Hands each new token to its draft, and tells ``generate`` which rows are done."""

    def __init__(self, drafts: Sequence[Draft], stopping: Stopping, on_done: Callable[[int], None]) -> None:
        self.drafts, self.stopping, self.on_done = drafts, stopping, on_done

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        unfinished = [draft for draft in self.drafts if not draft.done]
        for draft, token in zip(self.drafts, input_ids[:, -1].tolist(), strict=True):
            if not draft.done:
                self.stopping.take(draft, token)
        finished = sum(draft.done for draft in unfinished)
        if finished:
            self.on_done(finished)
        return torch.tensor([draft.done for draft in self.drafts], device=input_ids.device)
