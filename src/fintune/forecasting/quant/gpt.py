"""A GPT's distribution of the next change: its probabilities of the change tokens behind the days before.

::

    window   | 16 days of context | 16 days that are forecast, each with all days of the window before it |
    tokens     x  d s r o h c v a   ... d s [r] o h c v a   d s [r] ...      x: the token before the window
                                         ^ logits here are about r

Enters: a model with its tokenizer, and ``Targets``. Leaves: ``Forecasts``. A window is as long as a training block, so
no position is new to the model; one forward pass forecasts many days, for attention is causal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fintune.forecasting.quant.forecasts import Forecasts, Targets
from fintune.metrics.binned import with_floor
from fintune.metrics.classification import Floats, Ints
from fintune.schema.errors import ModelError
from fintune.sources.quant.codec import CHANGE, FIELDS, Codec

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

NAME = "GPT"
_PER_DAY = len(FIELDS)


@dataclass(frozen=True)
class Window:
    """Days ``start`` to ``stop`` of the table, of which those from ``first`` on are forecast."""

    start: int
    first: int
    stop: int


def gpt_forecasts(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    codec: Codec,
    targets: Targets,
    *,
    window_days: int,
    windows_per_batch: int = 32,
    on_batch: Callable[[int, int], None] | None = None,
) -> Forecasts:
    """The model's distributions.

    Args:
        model: gives logits for token ids, causally; ``logits_to_keep`` takes positions.
        tokenizer: knows the codec's words.
        codec: of the data.
        targets: what is forecast.
        window_days: days of a training block; half of them are context at least, where a ticker has so many.
        windows_per_batch: computed at once.
        on_batch: told how many windows are done, and of how many.

    Raises:
        ModelError: the tokenizer does not know the words.
    """
    import torch

    ids = token_ids(tokenizer, codec)
    windows = list(windows_of(targets, window_days))
    found = np.zeros((len(targets.rows), targets.n_bins))
    place = np.full(len(targets.days), -1)
    place[targets.rows] = np.arange(len(targets.rows))
    positions = torch.arange(window_days, device=model.device) * _PER_DAY + CHANGE  # behind them comes a change
    outside = 0.0
    for done in range(0, len(windows), windows_per_batch):
        batch = windows[done : done + windows_per_batch]
        tokens = torch.from_numpy(_tokens(targets, ids, batch, window_days, tokenizer)).to(model.device)
        with torch.inference_mode():
            logits = model(input_ids=tokens, logits_to_keep=positions, use_cache=False).logits
        chances = _chances(logits, ids[CHANGE])
        for window, of_days in zip(batch, chances, strict=True):
            rows = place[window.first : window.stop]
            mine = of_days[window.first - window.start : window.stop - window.start]
            outside += float((1 - mine.sum(1)).sum())
            found[rows] = mine / mine.sum(1, keepdims=True)
        if on_batch is not None:
            on_batch(min(done + windows_per_batch, len(windows)), len(windows))
    share = outside / len(targets.rows)
    return Forecasts(NAME, with_floor(found), counts={"probability given to tokens that are no change": share})


def token_ids(tokenizer: PreTrainedTokenizerBase, codec: Codec) -> list[Ints]:
    """For each field the token of each code.

    Raises:
        ModelError: a word is not one token.
    """
    unknown = tokenizer.unk_token_id
    found = [np.array(tokenizer.convert_tokens_to_ids(list(words)), dtype=object) for words in codec.words]
    if any(number is None or number == unknown for ids in found for number in ids):
        raise ModelError(
            "The model's tokenizer does not know the tokens of these prices.",
            "Evaluate a model on the folder that it was trained from.",
        )
    return [ids.astype(np.int64) for ids in found]


def windows_of(targets: Targets, window_days: int) -> Iterator[Window]:
    """Windows in which every target is forecast once, with half a window of days before the first if there are any."""
    ahead = max(1, window_days // 2)
    is_target = np.zeros(len(targets.days), np.bool_)
    is_target[targets.rows] = True
    for rows in targets.days.series():
        mine = np.flatnonzero(is_target[rows]) + rows.start
        if not len(mine):
            continue
        for first in range(int(mine[0]), int(mine[-1]) + 1, ahead):
            stop = min(first + ahead, int(mine[-1]) + 1)
            yield Window(max(rows.start, first - (window_days - ahead)), first, stop)


def _tokens(targets: Targets, ids: Sequence[Ints], batch: Sequence[Window], window_days: int, tokenizer: Any) -> Ints:
    """(B, T) tokens, each window behind the token before it; what is missing on the right is padding."""
    days = targets.days
    tokens = np.full((len(batch), window_days * _PER_DAY + 1), tokenizer.eos_token_id, np.int64)
    for place, window in enumerate(batch):
        codes = days.codes[window.start : window.stop]
        flat = np.stack([ids[field][codes[:, field]] for field in range(_PER_DAY)], axis=1).ravel()
        is_first = window.start == 0 or days.ticker[window.start - 1] != days.ticker[window.start]
        opening = tokenizer.bos_token_id if is_first else ids[-1][days.codes[window.start - 1, -1]]
        tokens[place, : len(flat) + 1] = [opening, *flat]
    return tokens


def _chances(logits: torch.Tensor, change_ids: Ints) -> Floats:
    """(B, D, K) probabilities of the change tokens among all tokens."""
    import torch

    chances = torch.softmax(logits.double(), dim=-1)[..., torch.from_numpy(change_ids).to(logits.device)]
    found: Floats = chances.cpu().numpy()
    return found
