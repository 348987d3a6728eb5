"""How a run keeps activations: the first way whose predicted peak fits into what is free, and what the rest is for.

Enters: a loaded model, its recipe and samples. Leaves: ``MemoryChoice``. Layers that ``transformers`` runs leave none.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from fintune.inference.forward import EdgeModel
from fintune.models.fast_layers import Memory
from fintune.models.load import LoadedBase
from fintune.models.shape import ModelShape, shape_of
from fintune.schema.recipe import Packing, Recipe
from fintune.training.memory import estimate_memory, policies_for, with_whole_layers
from fintune.training.memory_plan import MemoryPlan
from fintune.training.token_budget import TokenBudget, in_words
from fintune.trees.batch import bucket_size
from fintune.trees.prefix_tree import TokenSample

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MemoryChoice:
    """How activations are kept, and why.

    Attributes:
        memory: the way to begin with; None where transformers' layers run.
        whole_layers: so many layers, the last ones, keep everything all the same.
        policies: the ways open to the run, best first; empty there.
        predicted_bytes: what a step is predicted to need beyond the loaded model; None where nothing was predicted.
        free_bytes: what was free; likewise.
    """

    memory: Memory | None = None
    policies: tuple[Memory, ...] = ()
    predicted_bytes: int | None = None
    free_bytes: int | None = None
    whole_layers: int = 0

    @property
    def has_room_for_graphs(self) -> bool:
        """Whether activations fit twice: recorded passes have memory of their own, beside that of plain ones."""
        return self.predicted_bytes is None or self.free_bytes is None or 2 * self.predicted_bytes <= self.free_bytes


def free_bytes(device: torch.device) -> int | None:
    """Memory that tensors can still take, what the allocator holds in reserve included; None elsewhere than on CUDA."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def choose_memory(
    recipe: Recipe,
    base: LoadedBase,
    model: EdgeModel,
    samples: Sequence[TokenSample],
    packing: Packing,
    known: TokenBudget,
    processes: int = 1,
) -> MemoryChoice:
    """Chooses for a run that begins or goes on; one line in the log says what, where there was a choice.

    Args:
        recipe: its ``training.gradient_checkpointing`` leaves out keeping everything.
        base: the loaded base.
        model: the model to train, adapters included.
        samples: training samples.
        packing: how they become batches.
        known: the packing budget, and what the checkpoint knows: taken over unseen, the prediction too.
        processes: of the run; several would choose other numbers of layers, and sum gradients in another order.
    """
    if packing == "none" or model.fast_layers() is None:  # rows that are padded run on the plain path
        return MemoryChoice()
    recompute = recipe.training.gradient_checkpointing
    policies = policies_for(model.device.type, base.quantization, recompute=recompute)
    free = free_bytes(model.device)
    is_known = known.memory in policies
    if is_known and (free is None or known.predicted_bytes is not None):
        return MemoryChoice(known.memory, policies, known.predicted_bytes, known.free_bytes, known.whole_layers)
    if free is None:
        return MemoryChoice(policies[0], policies)
    shape = base_shape(base)
    plan = _plan(recipe, base, model, samples, known.tokens)
    if is_known:  # by a checkpoint older than the prediction
        needed = _needed(shape, replace(plan, memory=known.memory, whole_layers=known.whole_layers))
        return MemoryChoice(known.memory, policies, needed, free, known.whole_layers)
    plans = [replace(plan, memory=memory) for memory in policies]
    plan = next((own for own in plans if _needed(shape, own) <= free), plans[-1])
    if not recompute and processes == 1:
        plan = with_whole_layers(shape, plan, free)
    log.info(
        "Activations: %s; %d tokens at once are predicted to need %.1f GiB beyond the model, and %.1f GiB are free.",
        in_words(plan.memory, plan.whole_layers),
        plan.tokens,
        _needed(shape, plan) / 2**30,
        free / 2**30,
    )
    return MemoryChoice(plan.memory, policies, _needed(shape, plan), free, plan.whole_layers)


def _needed(shape: ModelShape, plan: MemoryPlan) -> int:
    return estimate_memory(shape, plan).beyond_weights


def base_shape(base: LoadedBase) -> ModelShape:
    """The shape of a loaded base."""
    config = copy.deepcopy(base.model.config)
    vars(config).pop("quantization_config", None)  # the shape is that of the weights before they were packed
    return shape_of(config)


def _plan(
    recipe: Recipe, base: LoadedBase, model: EdgeModel, samples: Sequence[TokenSample], tokens_per_batch: int
) -> MemoryPlan:
    """What of the run costs memory, at most: every token may have a loss."""
    adapter, longest = recipe.adapter, max(map(len, samples), default=1)
    most = min(max(tokens_per_batch, longest), recipe.training.samples_per_step * longest)
    tokens = bucket_size(most, tokens_per_batch) if model.is_blockwise else most
    return MemoryPlan(
        tokens=tokens,
        logit_rows=tokens,
        longest=longest,
        quantization="nf4" if base.quantization == "fp4" else base.quantization,
        double_quant=base.facts.double_quant,
        compute_bytes=model.compute_dtype.itemsize,
        rank=adapter.rank,
        targets=None if adapter.targets == "all-linear" else tuple(adapter.targets),
        dropout=adapter.dropout,
        dora=adapter.dora,
        checkpointing=False,
        optimizer=recipe.training.optimizer,
        device=model.device.type,
        blockwise=model.is_blockwise,
        padded=False,
    )
