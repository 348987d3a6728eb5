"""What a run may hold in memory: how activations are kept, how many tokens are computed at once; less after a failure.

Enters: the recipe's ``tokens_per_batch``, the ways to keep activations, and the batch that failed. Leaves: the next
way, or a smaller budget, kept for the rest of the run and written into every checkpoint, or one sentence when a single
sample is already too much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fintune.models.fast_layers import Memory
from fintune.schema.errors import RunError
from fintune.schema.recipe import Recipe
from fintune.trees.packing import Batch, PaddedBatch


@dataclass
class TokenBudget:
    """How much is computed and kept at once.

    Attributes:
        tokens: the packing budget in use.
        retries: steps that were repeated with less memory, each time counted.
        memory: how our own layers keep activations; None where transformers' run.
        whole_layers: so many of them, the last ones, keep everything all the same.
        predicted_bytes: what a step was predicted to need when the run began; None where nothing was predicted.
        free_bytes: what was free then. With both, a resumed run decides about CUDA graphs as the first session did.
    """

    tokens: int
    retries: int = 0
    memory: Memory | None = None
    whole_layers: int = 0
    predicted_bytes: int | None = None
    free_bytes: int | None = None

    def keep_less(self, policies: Sequence[Memory]) -> bool:
        """Has no layer keep everything any more, or goes on to the next of ``policies``; False where there is none."""
        if self.whole_layers:
            self.whole_layers = 0
            self.retries += 1
            return True
        if self.memory not in policies or self.memory == policies[-1]:
            return False
        self.memory = policies[policies.index(self.memory) + 1]
        self.retries += 1
        return True

    def shrink(self, batch: Batch) -> None:
        """Halves the budget until ``batch``, which did not fit and has several samples, has to be split."""
        size = len(batch) if isinstance(batch, PaddedBatch) else batch.real_tokens
        self.tokens = max(1, self.tokens // 2)
        while self.tokens >= size > 1:  # a budget that gives the same batch again would only fail again
            self.tokens = max(1, self.tokens // 2)
        self.retries += 1


def in_words(memory: Memory | None, whole_layers: int) -> str:
    """How activations are kept."""
    more = "the last layer, which keeps" if whole_layers == 1 else f"the last {whole_layers} layers, which keep"
    return f"{memory}, but for {more} everything" if whole_layers else str(memory)


@dataclass(frozen=True)
class RandomState:
    """The generators that dropout draws from."""

    cpu: Tensor
    device: Tensor | None
    index: int | None

    @classmethod
    def of(cls, device: torch.device) -> RandomState:
        """As they are now."""
        if device.type != "cuda":
            return cls(torch.get_rng_state(), None, None)
        index = device.index if device.index is not None else torch.cuda.current_device()
        return cls(torch.get_rng_state(), torch.cuda.get_rng_state(index), index)

    def restore(self) -> None:
        """Puts them back."""
        torch.set_rng_state(self.cpu)
        if self.device is not None and self.index is not None:
            torch.cuda.set_rng_state(self.device, self.index)


def require_one_process(step: int, world: int) -> None:
    """Refuses to repeat a step that other processes have gone on with.

    Raises:
        RunError: others would wait for this one.
    """
    if world > 1:
        raise RunError(
            f"Step {step} ran out of memory on one of {world} processes.",
            "Lower training.tokens_per_batch and start the same command again; it goes on from the newest checkpoint.",
        )


def require_divisible(step: int, batch: Batch, remedy: str) -> None:
    """Refuses to go on where a smaller budget cannot help.

    Raises:
        RunError: the batch that failed is a single sample.
    """
    if batch.n_samples <= 1:
        raise RunError(
            f"Step {step}: a sample of {batch.sample_tokens:,} tokens alone does not fit into memory.", remedy
        )


def memory_remedy(recipe: Recipe, *, fast: bool) -> str:
    """Which keys make a single sample need less: first the one under which the run may go on where it is.

    Args:
        recipe: the recipe.
        fast: our own layers run, which have kept less already before a sample is said not to fit.
    """
    if not fast and not recipe.training.gradient_checkpointing:
        return (
            "Set training.gradient_checkpointing=true and start the same command again; it goes on from the newest "
            "checkpoint."
        )
    smaller = f"Lower training.max_length, which is {recipe.training.max_length},"
    if recipe.model.quantization == "none" and recipe.adapter.kind == "lora":
        smaller += " or set model.quantization=nf4,"
    return f"{smaller} and train again with --no-resume."
