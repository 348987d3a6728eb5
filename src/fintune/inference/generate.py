"""Answers to many prompts at once, each what the model would answer alone.

Enters: a model and prompts as tokens. Leaves: the answers' tokens, in the order of the prompts.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from functools import partial

import torch

from fintune.inference.choosing import Chooser, Sampling
from fintune.inference.continuous import SlotWriter
from fintune.inference.drafts import Draft, OnDone, Stopping, StopPredicate, make_drafts
from fintune.inference.forward import EdgeModel, supported_packing
from fintune.inference.out_of_memory import empty_caches, is_out_of_memory
from fintune.inference.plain import write_plain
from fintune.inference.slots import register
from fintune.models.window import learned_positions
from fintune.schema.errors import ModelError
from fintune.schema.recipe import Packing
from fintune.trees.prefix_tree import IntArray

log = logging.getLogger(__name__)


@torch.no_grad()  # not inference_mode, whose tensors compiled FlexAttention refuses
def generate(
    model: EdgeModel,
    prompts: Sequence[IntArray],
    *,
    max_new_tokens: int | Sequence[int],
    stop_ids: Collection[int],
    stop: StopPredicate | None = None,
    batch_size: int,
    tokens_per_batch: int,
    on_done: OnDone | None = None,
    packing: Packing = "tree",
    sampling: Sampling | None = None,
    use_cache: bool = True,
) -> list[IntArray]:
    """Writes one token after another behind each prompt until its answer ends.

    Args:
        model: the model to ask; it should be in eval mode.
        prompts: (L,) token ids each, at least one.
        max_new_tokens: most tokens of an answer, for all prompts or one by one.
        stop_ids: an answer ends before any of these tokens.
        stop: an answer ends as soon as this holds of its tokens, the newest included; they are all returned. It is
            asked after every token, the last one that is allowed too.
        batch_size: answers written at once. Answers do not depend on it beyond float rounding. Where memory runs out
            it is halved and writing goes on.
        tokens_per_batch: prompt tokens read at once, shared prefixes counted once; a longer prompt is read alone.
        on_done: called with the number of answers that just finished.
        packing: tree reads shared prefixes of prompts once, sequence reads each prompt whole, none is the plain twin
            (``generate`` of ``transformers``). Models that cannot use trees get none.
        sampling: how tokens are drawn, from a generator for each prompt that starts at the same seed; None takes the
            likeliest.
        use_cache: keep keys and values of what was read; False reads all of it again for every token, by the plain
            twin: the reference for tests and timings.

    Returns:
        One array of token ids per prompt, without the stop token.

    Raises:
        DataError: a prompt has no tokens.
        ModelError: a single answer does not fit into memory or the positions that the model learned, or the
            architecture cannot be batched this way.
    """
    register()
    stopping = Stopping.of(stop_ids, stop)
    drafts = make_drafts(prompts, max_new_tokens)
    _require_positions(model, drafts)
    report = on_done or (lambda finished: None)
    for draft in drafts:
        stopping.start(draft)
    if finished := sum(draft.done for draft in drafts):
        report(finished)
    packing, reason = supported_packing(model.model.config, packing if use_cache else "none")
    if reason:
        log.info("%s", reason)
    write = partial(_write, model, Chooser(sampling), stopping, packing, report, use_cache)
    slots, budget = batch_size, tokens_per_batch
    while unfinished := [draft for draft in drafts if not draft.done]:
        slots = min(slots, len(unfinished))
        if not write(unfinished, slots, budget):
            slots, budget = _halved(slots, budget, unfinished)
    return [draft.written for draft in drafts]


def _write(
    model: EdgeModel,
    chooser: Chooser,
    stopping: Stopping,
    packing: Packing,
    on_done: OnDone,
    use_cache: bool,
    drafts: Sequence[Draft],
    slots: int,
    budget: int,
) -> bool:
    """Finishes the drafts; False when memory ran out, what was written until then being kept."""
    try:
        if packing == "none":
            write_plain(
                *(model, drafts, stopping, chooser),
                rows=slots,
                tokens_per_batch=budget,
                on_done=on_done,
                use_cache=use_cache,
            )
        else:
            SlotWriter(
                *(model, drafts, stopping, chooser),
                slots=slots,
                tokens_per_batch=budget,
                packing=packing,
                on_done=on_done,
            ).run()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return False  # the tensors that filled the memory die with the exception, before anything is tried again
    return True


def _require_positions(model: EdgeModel, drafts: Sequence[Draft]) -> None:
    most = learned_positions(model.model.config)
    # The last token that is written is not read.
    longest = max((len(draft) + draft.limit - 1 for draft in drafts if not draft.done), default=0)
    if most is not None and longest > most:
        raise ModelError(
            f"Prompt and answer take {longest:,} tokens, but the model learned {most:,} positions.",
            "Shorten the prompt, or ask for fewer new tokens.",
        )


def _halved(slots: int, budget: int, drafts: Sequence[Draft]) -> tuple[int, int]:
    empty_caches()
    if slots == 1:
        longest = max(map(len, drafts))
        raise ModelError(
            f"Memory ran out while a single answer was written, after {longest:,} tokens of prompt and answer.",
            "Set model.quantization=nf4, shorten the prompts or use a larger device.",
        )
    log.warning("Memory ran out while %d answers were written at once; going on with %d.", slots, slots // 2)
    return slots // 2, max(1, budget // 2)
