"""How much memory a training step needs, by arithmetic: nothing is allocated and no weight is read.

Enters: ``ModelShape`` and ``MemoryPlan`` (what of the recipe costs memory). Leaves: ``MemoryEstimate``, byte by byte,
the first of the ways to keep activations that fits, how many layers may keep everything beside it, and what to change
where none does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from fintune.models.fast_build import FAMILIES
from fintune.models.fast_layers import KEEPS_ALL, Memory
from fintune.models.shape import ModelShape
from fintune.training.fast_memory import estimate_fast
from fintune.training.memory_plan import MemoryEstimate, MemoryPlan
from fintune.training.plain_memory import estimate_plain

# From the quickest to the one that needs least. On the CPU there is nowhere to move tensors to.
POLICIES: tuple[Memory, ...] = ("ready", "keep", "recompute", "offload")
# Layers keep everything only in memory that is free for sure: predictions are a few percent off, and kernels that are
# loaded later take memory that PyTorch does not know of.
MARGIN, SPARE_BYTES = 1.05, 256 * 2**20


def takes_fast_path(shape: ModelShape, plan: MemoryPlan) -> bool:
    """Whether our own kernels run the decoder layers, as far as configuration and recipe tell."""
    is_known = shape.layer_family in FAMILIES and plan.quantization in ("none", "nf4", "fp8")
    return is_known and plan.rank > 0 and not plan.dora and not plan.padded


def policies_for(device: str, quantization: str, *, recompute: bool) -> tuple[Memory, ...]:
    """Ways to use memory on a kind of device, the quickest first.

    Args:
        device: ``cuda`` or ``cpu``.
        quantization: of the base; a dense one is always ready.
        recompute: leave out keeping everything.
    """
    known = POLICIES if device == "cuda" else POLICIES[:3]
    if recompute:
        return known[2:]
    # On the CPU weights that are unpacked each time cost no more than weights that are read unpacked.
    return known if device == "cuda" and quantization != "none" else known[1:]


def estimate_memory(shape: ModelShape, plan: MemoryPlan) -> MemoryEstimate:
    """The peak of one step, by our own layers where ``plan.memory`` names what they keep, else by transformers'."""
    return estimate_plain(shape, plan) if plan.memory is None else estimate_fast(shape, plan)


def with_policy(shape: ModelShape, plan: MemoryPlan, policies: tuple[Memory, ...], room: float | None) -> MemoryPlan:
    """The plan under the first policy whose peak fits into ``room`` bytes, or under the last where none does.

    None for ``room`` takes the first. Room that is left lets layers keep everything, where a policy is open that does.
    """
    plans = [replace(plan, memory=memory, checkpointing=False, whole_layers=0) for memory in policies]
    if room is None:
        return plans[0]
    found = next((own for own in plans if estimate_memory(shape, own).peak <= room), plans[-1])
    if policies[0] not in KEEPS_ALL:  # it was asked for that something is computed again
        return found
    memory = estimate_memory(shape, found)
    return with_whole_layers(shape, found, room - (memory.peak - memory.beyond_weights))


def with_whole_layers(shape: ModelShape, plan: MemoryPlan, free: float) -> MemoryPlan:
    """A plan that computes something again, but for as many layers as keep everything in ``free`` bytes for sure.

    What the loaded model takes is not part of ``free``.
    """
    if plan.memory in KEEPS_ALL:
        return plan
    plans = (replace(plan, whole_layers=count) for count in range(shape.layers - 1, 0, -1))
    return next((own for own in plans if is_free_for_sure(estimate_memory(shape, own).beyond_weights, free)), plan)


def is_free_for_sure(needed: float, free: float) -> bool:
    """Whether ``needed`` bytes fit with room to spare."""
    return MARGIN * needed + SPARE_BYTES <= free


@dataclass(frozen=True)
class Remedy:
    """A change of the recipe, and the peak it would give."""

    change: str
    peak: int


def remedies(shape: ModelShape, plan: MemoryPlan, *, can_quantize: bool) -> list[Remedy]:
    """Keys that lower the peak: each alone, then all together."""
    changes: dict[str, MemoryPlan] = {}
    together = plan
    if plan.quantization == "none" and plan.rank and can_quantize:
        together = replace(together, quantization="nf4", double_quant=True)
        changes["model.quantization=nf4"] = replace(plan, quantization="nf4", double_quant=True)
    if plan.memory is None and not plan.checkpointing:
        together = replace(together, checkpointing=True)
        changes["training.gradient_checkpointing=true"] = replace(plan, checkpointing=True)
    if plan.rank == 0:
        together = replace(together, rank=16)
        changes["adapter.kind=lora"] = replace(plan, rank=16)
    half = max(plan.longest, plan.tokens // 2)
    if half < plan.tokens:
        together = with_tokens(together, half)
        changes[f"training.tokens_per_batch={half}"] = with_tokens(plan, half)
    if len(changes) > 1:
        changes[" ".join(changes)] = together
    peaks = [Remedy(change, estimate_memory(shape, other).peak) for change, other in changes.items()]
    return [remedy for remedy in peaks if remedy.peak < estimate_memory(shape, plan).peak]


def with_tokens(plan: MemoryPlan, tokens: int) -> MemoryPlan:
    """The plan under another budget; rows of logits go with the tokens."""
    return replace(plan, tokens=tokens, logit_rows=math.ceil(plan.logit_rows * tokens / plan.tokens))
