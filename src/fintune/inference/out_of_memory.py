"""Knowing that memory ran out, letting go of what can be had again, and computing fewer tokens at once from then on.

Enters: an error, or the budget under which something did not fit. Leaves: whether memory was the reason, and a smaller
budget or one sentence.
"""

from __future__ import annotations

import gc
import logging
import re
from dataclasses import dataclass

import torch

from fintune.kernels.frozen_weight import release_buffers
from fintune.schema.errors import ModelError
from fintune.trees.packing import Batch, PaddedBatch

log = logging.getLogger(__name__)

# What is not raised as torch.OutOfMemoryError: the CUDA driver, Triton, cuBLAS and cuDNN, and the CPU's allocator.
_WORDS = re.compile(r"out of memory|not enough memory|can't allocate memory|_ALLOC_FAILED", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on whatever device and by whichever library's words."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and _WORDS.search(str(error)) is not None


def release_memory() -> None:
    """``empty_caches``, and all buffers: only where no recorded CUDA graph is replayed any more, which may use them."""
    release_buffers()
    empty_caches()


def empty_caches() -> None:
    """Gives back what a failed batch left behind, whose graph may hold itself by reference cycles."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@dataclass
class ScoringBudget:
    """Tokens scored at once, fewer from the first time on that they do not fit.

    Attributes:
        tokens: the packing budget in use.
    """

    tokens: int

    def shrink(self, batch: Batch) -> None:
        """Empties caches, and halves the budget until ``batch``, which did not fit, has to be split.

        Raises:
            ModelError: it is a single sample.
        """
        if batch.n_samples <= 1:
            raise ModelError(
                f"A text of {batch.sample_tokens:,} tokens alone does not fit into memory.",
                "Use a GPU with more free memory, set model.quantization=nf4, or shorten the texts "
                "(training.max_length).",
            )
        empty_caches()  # training may go on with what it has recorded
        before, size = self.tokens, len(batch) if isinstance(batch, PaddedBatch) else batch.real_tokens
        self.tokens = max(1, min(before, size) // 2)
        log.warning(
            "Memory ran out while scoring: from here on at most %d tokens are scored at once instead of %d "
            "(evaluation.tokens_per_batch), which changes scores by rounding alone.",
            self.tokens,
            before,
        )
