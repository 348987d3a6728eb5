"""Continuous batching: a finished answer's slot goes to the next waiting prompt while the others write on.

Enters: drafts, all at once or while others are being written. They leave finished, or as far as they had come when
memory ran out; nothing written is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fintune.inference.drafts import Draft
from fintune.inference.forward import EdgeModel
from fintune.inference.slots import ATTENTION_NAME, Reading, SlotCache, Writing
from fintune.kernels.tree_attention import TreeContext
from fintune.schema.errors import ModelError
from fintune.schema.recipe import Packing
from fintune.trees.batch import batch_from_tree, bucket_size
from fintune.trees.packing import split_by_budget
from fintune.trees.prefix_tree import IntArray, TokenSample, build_tree

REFILL = 8  # prompts are read when this share of the slots is free, so that several share their prefixes


class Chooses(Protocol):
    """What chooses next tokens: ``Chooser``, or whatever knows how each draft is to be written."""

    def choose(self, drafts: Sequence[Draft], logits: Tensor) -> list[int]:
        """The next tokens of ``drafts`` by their (N, V) logits."""


class Takes(Protocol):
    """What adds tokens to drafts and knows when they end: ``Stopping``, for one."""

    def take(self, draft: Draft, token: int) -> None:
        """Adds the model's next token to the draft and finishes the draft if that was the last."""


class SlotWriter:
    """Writes drafts in a fixed number of slots; slot i belongs to ``active[i]``.

    Args:
        model: the model that writes.
        drafts: unfinished drafts.
        stopping: when an answer ends.
        chooser: chooses the next tokens.
        slots: drafts written at once.
        tokens_per_batch: tree tokens read at once.
        packing: tree shares the prompts' prefixes, sequence reads each prompt whole.
        on_done: called with the number of drafts that just finished.
    """

    def __init__(
        self,
        model: EdgeModel,
        drafts: Sequence[Draft],
        stopping: Takes,
        chooser: Chooses,
        *,
        slots: int,
        tokens_per_batch: int,
        packing: Packing,
        on_done: Callable[[int], None],
    ) -> None:
        self.model, self.stopping, self.packing, self.on_done = model, stopping, packing, on_done
        self.chooser = chooser
        self.slots = slots
        self.tokens_per_batch = tokens_per_batch
        self.waiting = sorted(drafts, key=len, reverse=True)  # neighbours in length waste the fewest columns
        self.active: list[Draft] = []
        self.cache = SlotCache(self.slots, None if model.compute_dtype == torch.float32 else model.compute_dtype)

    def run(self) -> None:
        """Writes until every draft is done."""
        while self.waiting or self.active:
            self.step()

    def step(self) -> None:
        """Reads waiting prompts where slots are free, else writes one token of each active draft.

        Between two steps drafts may be added to ``waiting``, or taken from it; an active one that is ``done`` leaves
        by ``drop_done``.
        """
        free = self.slots - len(self.active)
        enough = min(len(self.waiting), max(1, self.slots // REFILL))
        if self.waiting and (not self.active or free >= enough):
            self._read_next(free)
        elif self.active:
            self._write_token()

    def drop_done(self) -> None:
        """Frees the slots of drafts that were finished from outside."""
        self._close_gaps()

    def _read_next(self, free: int) -> None:
        drafts, self.waiting = self.waiting[:free], self.waiting[free:]
        samples = [TokenSample(draft.tokens, np.zeros(len(draft))) for draft in drafts]
        for group in split_by_budget(samples, self.packing, self.tokens_per_batch):
            self._read_tree([drafts[i] for i in group], [samples[i] for i in group])

    def _read_tree(self, drafts: list[Draft], samples: list[TokenSample]) -> None:
        tree = build_tree(samples, share=self.packing == "tree")
        flex = self.model.backend == "flex"
        batch = batch_from_tree(tree, pad_to=bucket_size(len(tree), self.tokens_per_batch) if flex else None)
        batch = batch.to(self.model.device)
        context = TreeContext(batch.subtree_end, batch.depth, self.model.backend)
        self.cache.reserve(max(map(len, drafts)) + 1)
        reading = Reading(self.cache, context, *self._destinations(tree.paths))
        last, rows = np.unique([path[-1] for path in tree.paths], return_inverse=True)  # repeated prompts share theirs
        logits = self._logits(batch.tokens[None], batch.depth[None], reading, self._tensor(last))[0]
        if not context.calls:
            raise ModelError(
                f"The attention of {type(self.model.model).__name__} cannot be replaced, so it ignored the token tree.",
                "Set training.packing=none.",
            )
        self.active += drafts
        self._take(drafts, logits[self._tensor(rows)])

    def _destinations(self, paths: Sequence[IntArray]) -> tuple[Tensor, ...]:
        """Tree tokens, and the slots and columns they are copied to."""
        lengths = [len(path) for path in paths]
        slots = np.repeat(np.arange(len(self.active), len(self.active) + len(paths)), lengths)
        columns = np.concatenate([np.arange(length) for length in lengths])
        return self._tensor(np.stack([np.concatenate(paths), slots, columns])).unbind()

    def _write_token(self) -> None:
        longest = max(map(len, self.active))
        self.cache.reserve(longest)
        # The newest token of each draft has been chosen but not read.
        newest = [(draft.answer[-1], len(draft) - 1) for draft in self.active]
        tokens, positions = self._tensor(np.asarray(newest).T).unbind()
        logits = self._logits(tokens[:, None], positions[:, None], Writing(self.cache, positions, longest), 1)
        self._take(self.active, logits[:, -1])

    def _logits(self, tokens: Tensor, positions: Tensor, slots: Reading | Writing, keep: Tensor | int) -> Tensor:
        self.model.set_attention(ATTENTION_NAME)
        with self.model.precision():
            output = self.model.model(
                input_ids=tokens, position_ids=positions, logits_to_keep=keep, use_cache=False, slots=slots
            )
        logits: Tensor = output.logits
        return logits

    def _take(self, drafts: Sequence[Draft], logits: Tensor) -> None:
        for draft, token in zip(drafts, self.chooser.choose(drafts, logits), strict=True):
            self.stopping.take(draft, token)
        finished = sum(draft.done for draft in drafts)
        if finished:
            self.on_done(finished)
            self._close_gaps()

    def _close_gaps(self) -> None:
        """Moves the last drafts into the slots of finished ones, so that slots in use are the first N."""
        for slot in reversed(range(len(self.active))):
            if self.active[slot].done:
                last = self.active.pop()
                if slot < len(self.active):
                    self.cache.move(len(self.active), slot, len(last) - 1)
                    self.active[slot] = last

    def _tensor(self, array: IntArray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.model.device, non_blocking=True)
