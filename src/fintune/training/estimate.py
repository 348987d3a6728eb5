"""``fintune estimate``: what a recipe will need and how long it will take, before anything is loaded.

Enters: a recipe and perhaps the name of a card. Leaves: ``Estimate``. Only the configuration of the base is read, and
for the time of an epoch its tokenizer and the rows that are on this machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from fintune.evaluation.suite import load_run_data
from fintune.inference.forward import supported_packing
from fintune.kernels.tree_attention import BLOCKWISE
from fintune.models.adapters import count_trainable
from fintune.models.fast_layers import KEEPS_ALL, Memory
from fintune.models.load import is_ampere_or_newer
from fintune.models.quantize import plan_quantization
from fintune.models.shape import ModelShape, read_shape, read_tokenizer
from fintune.models.templates import apply_chat_template_override
from fintune.schema.errors import DataError, ModelError, RecipeError
from fintune.schema.hand_over import continued
from fintune.schema.network import offline_mode
from fintune.schema.recipe import AdapterSection, Packing, Recipe
from fintune.schema.stages import stage_folders, stage_recipes
from fintune.training.fast_memory import host_bytes
from fintune.training.memory import (
    Remedy,
    estimate_memory,
    policies_for,
    remedies,
    takes_fast_path,
    with_policy,
)
from fintune.training.memory_plan import MemoryEstimate, MemoryPlan, trainable_parameters
from fintune.training.speed import Card, find_card, flops_per_token, micro_batch_seconds, require_fp8_card
from fintune.training.token_budget import in_words
from fintune.trees.batch import bucket_size
from fintune.trees.chat import ChatFormat, encode_all
from fintune.trees.mixture import make_mixture
from fintune.trees.packing import Batch, PaddedBatch, pack_samples
from fintune.trees.plan import StepPlan, group_numbers, numbered
from fintune.trees.prefix_tree import TokenSample

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

MOST_STEPS = 64  # packed to see what a batch is like; more would say little more


@dataclass(frozen=True)
class Workload:
    """What the steps of an epoch compute.

    Attributes:
        samples: training samples.
        steps: optimiser steps of one epoch; likewise the tokens below.
        sample_tokens: before prefixes are shared.
        distinct_tokens: computed, padding left out.
        micro_batches: forward and backward passes of one step, on average.
        batch_tokens: the largest batch, padding included.
        logit_rows: most rows of logits in a batch.
        longest: tokens of the longest sample.
        looked_at: steps that were packed to find this out.
    """

    samples: int
    steps: int
    sample_tokens: int
    distinct_tokens: int
    micro_batches: float
    batch_tokens: int
    logit_rows: int
    longest: int
    looked_at: int


@dataclass(frozen=True)
class PolicyEstimate:
    """What one way to keep activations is predicted to need.

    Attributes:
        memory: keep, recompute or offload.
        peak_bytes: of the device.
        host_bytes: pinned memory of the host.
        distinct_tokens_per_second: computed; None without a card.
        whole_layers: so many layers, the last ones, keep everything all the same.
    """

    memory: Memory
    peak_bytes: int
    host_bytes: int
    distinct_tokens_per_second: float | None
    whole_layers: int = 0

    @property
    def in_words(self) -> str:
        """How activations are kept."""
        return in_words(self.memory, self.whole_layers)


@dataclass(frozen=True)
class Estimate:
    """What a recipe is predicted to need.

    Attributes:
        base: the base model as the recipe names it.
        parameters: weights of the base.
        trainable_parameters: numbers trained.
        memory: bytes at the peak, by what they hold.
        peak_bytes: their sum, with the allocator's slack and the context of the device.
        gpu: the card that was assumed, None where none is known.
        memory_bytes: what that card holds.
        fits: whether the peak does; None without a card.
        remedies: where it does not, keys to change and the peak each gives.
        tokens_per_second: of samples, as trainers count that share no prefixes; None without a card.
        distinct_tokens_per_second: computed.
        seconds_per_step: of an optimiser step.
        seconds_per_epoch: of a pass over the data, without loading and evaluation.
        workload: what the data are like; None where they were not looked at.
        notes: what was assumed.
        policy: how activations are kept for the backward pass, as the run would choose; None on the plain path.
        whole_layers: so many layers, the last ones, keep everything all the same.
        host_bytes: pinned memory of the host under it.
        policies: each way open to the run, best first; empty on the plain path.
        seconds: of all epochs, without loading and evaluation; None where the time of an epoch is not known.
        stages: by name, of a recipe with stages, whose other figures are those of the stage that needs most memory;
            seconds are those of all stages.
    """

    base: str
    parameters: int
    trainable_parameters: int
    memory: MemoryEstimate
    peak_bytes: int
    gpu: str | None
    memory_bytes: int | None
    fits: bool | None
    remedies: tuple[Remedy, ...]
    tokens_per_second: float | None
    distinct_tokens_per_second: float | None
    seconds_per_step: float | None
    seconds_per_epoch: float | None
    workload: Workload | None
    notes: tuple[str, ...]
    policy: Memory | None = None
    whole_layers: int = 0
    host_bytes: int = 0
    policies: tuple[PolicyEstimate, ...] = ()
    seconds: float | None = None
    stages: dict[str, Estimate] = field(default_factory=dict)


def estimate_recipe(recipe: Recipe, *, gpu: str | None = None, data: bool = True) -> Estimate:
    """Predicts memory and time of a training run.

    Args:
        recipe: the recipe.
        gpu: name of a card; the one in this machine when None.
        data: look at the rows, where they are on this machine.

    Raises:
        AdapterError: the base has no layers that the adapter is to change, or peft does not take them.
        ModelError: the configuration of the base is not to be had, or the card cannot hold it as asked.
        RecipeError: the card is not known.
    """
    if recipe.stages:
        return _estimate_stages(recipe, gpu=gpu, data=data)
    notes: list[str] = []
    card = find_card(gpu) if gpu is not None else _present_card(notes)
    shape, config = read_shape(recipe.model)
    packing, reason = supported_packing(config, recipe.training.packing)
    notes += [f"{reason}."] if reason else []
    workload = _workload(recipe, packing, notes, buckets=_is_blockwise(recipe, packing, card)) if data else None
    if workload is None:
        notes.append("Every token is taken to be supervised and no prefix to be shared, since no data were looked at.")
    plan = memory_plan(recipe, config.to_dict(), packing, workload, card)
    if plan.quantization == "fp8" and card is not None:
        require_fp8_card(card, is_present=gpu is None)
    policies: tuple[Memory, ...] = ()
    if takes_fast_path(shape, plan):
        policies = policies_for(plan.device, plan.quantization, recompute=recipe.training.gradient_checkpointing)
        plan = with_policy(shape, plan, policies, card.memory_bytes if card else None)
    memory = estimate_memory(shape, plan)
    notes += _uncertain(recipe, shape)
    if recipe.distributed.strategy not in ("auto", "ddp"):
        notes.append(
            f"All is for one process; what distributed.strategy={recipe.distributed.strategy} saves is left out."
        )
    if plan.blockwise and plan.memory in KEEPS_ALL:
        extra = memory.beyond_weights / 2**30
        notes.append(f"Recorded passes (CUDA graphs) take up to {extra:.1f} GiB more, but only where that is free.")
    fits = memory.peak <= card.memory_bytes if card else None
    seconds, epoch, computed, sampled = _times(shape, plan, workload, card)
    stored = bool(config.to_dict().get("quantization_config"))
    return Estimate(
        base=recipe.model.base,
        parameters=shape.parameters,
        trainable_parameters=_trainable(recipe, config, shape, plan),
        memory=memory,
        peak_bytes=memory.peak,
        gpu=card.name if card else None,
        memory_bytes=card.memory_bytes if card else None,
        fits=fits,
        remedies=tuple(remedies(shape, plan, can_quantize=not stored)) if fits is False else (),
        tokens_per_second=sampled,
        distinct_tokens_per_second=computed,
        seconds_per_step=seconds,
        seconds_per_epoch=epoch,
        workload=workload,
        notes=tuple(notes),
        policy=plan.memory,
        whole_layers=plan.whole_layers,
        host_bytes=host_bytes(shape, plan),
        policies=tuple(
            _policy(shape, plan if own == plan.memory else replace(plan, memory=own, whole_layers=0), workload, card)
            for own in policies
        ),
        seconds=_whole(recipe, seconds, epoch),
    )


def _trainable(recipe: Recipe, config: PreTrainedConfig, shape: ModelShape, plan: MemoryPlan) -> int:
    """As peft counts them, which refuses what training would; arithmetic where that means to run a model's own code."""
    if plan.rank == 0 or recipe.model.trust_remote_code:
        return trainable_parameters(shape, plan)
    return count_trainable(config, recipe.adapter)[0]


def _whole(recipe: Recipe, per_step: float | None, per_epoch: float | None) -> float | None:
    if per_step is None or per_epoch is None:
        return None
    most = recipe.training.max_steps
    return min(per_epoch * recipe.training.epochs, per_step * most if most is not None else math.inf)


def _estimate_stages(recipe: Recipe, *, gpu: str | None, data: bool) -> Estimate:
    """Each stage as a run of its own; an order that is yet to be measured is taken to be as listed."""
    found = {}
    before: AdapterSection | None = None
    for stage, folder in zip(stage_recipes(recipe), stage_folders(recipe), strict=True):
        adapter = stage.adapter if before is None else continued(before, stage.adapter)
        alone = stage.model_copy(update={"adapter": adapter})
        found[folder.name] = estimate_recipe(alone, gpu=gpu, data=data)
        before = adapter
    times = [own.seconds for own in found.values() if own.seconds is not None]
    seconds = math.fsum(times) if len(times) == len(found) else None
    return replace(max(found.values(), key=lambda own: own.peak_bytes), seconds=seconds, stages=found)


def _policy(shape: ModelShape, plan: MemoryPlan, workload: Workload | None, card: Card | None) -> PolicyEstimate:
    assert plan.memory is not None
    computed = _times(shape, plan, workload, card)[2]
    peak = estimate_memory(shape, plan).peak
    return PolicyEstimate(plan.memory, peak, host_bytes(shape, plan), computed, plan.whole_layers)


def memory_plan(
    recipe: Recipe, config: dict[str, Any], packing: Packing, workload: Workload | None, card: Card | None
) -> MemoryPlan:
    """What of a recipe costs memory, on a card or, without one, on the CPU."""
    training, adapter, model = recipe.training, recipe.adapter, recipe.model
    held = plan_quantization(model, config)
    is_gpu = card is not None
    most = workload.batch_tokens if workload else max(training.tokens_per_batch, training.max_length)
    return MemoryPlan(
        tokens=most,
        logit_rows=workload.logit_rows if workload else most,
        longest=workload.longest if workload else training.max_length,
        quantization={"fp4": "nf4"}.get(held.kind, held.kind),
        double_quant=held.double_quant,
        compute_bytes=4 if model.dtype == "float32" or (model.dtype == "auto" and not is_gpu) else 2,
        rank=adapter.rank if adapter.kind == "lora" else 0,
        targets=None if adapter.targets == "all-linear" else tuple(adapter.targets),
        dropout=adapter.dropout,
        dora=adapter.dora,
        checkpointing=training.gradient_checkpointing,
        optimizer=training.optimizer,
        device="cuda" if is_gpu else "cpu",
        blockwise=_is_blockwise(recipe, packing, card),
        padded=packing == "none",
    )


def _is_blockwise(recipe: Recipe, packing: Packing, card: Card | None) -> bool:
    if card is None or packing == "none":
        return False
    return recipe.model.attention in BLOCKWISE or (recipe.model.attention == "auto" and card.blockwise)


def _present_card(notes: list[str]) -> Card | None:
    """The GPU of this machine; its name and memory are asked of the driver, which allocates nothing."""
    if not torch.cuda.is_available():
        notes.append("There is no GPU here: memory is that of the CPU, and no speed is given. --gpu NAME assumes one.")
        return None
    name = torch.cuda.get_device_name()
    memory_gib = torch.cuda.get_device_properties(0).total_memory / 2**30
    try:
        known = find_card(name)
    except RecipeError:
        notes.append(f"{name} is not in the table of cards, so its speed is not known.")
        return Card(name, math.nan, None, math.nan, memory_gib, is_ampere_or_newer(torch.device("cuda")))
    return replace(known, name=name, memory_gib=memory_gib)


def _workload(recipe: Recipe, packing: Packing, notes: list[str], *, buckets: bool) -> Workload | None:
    """Counts the training samples; None, and a note, where rows or tokenizer are not on this machine."""
    try:
        with offline_mode():
            rows = load_run_data(recipe).train
            tokenizer = read_tokenizer(recipe.model)
    except (DataError, ModelError) as error:
        notes.append(f"Time of an epoch is not known: {error.message}")
        return None
    apply_chat_template_override(tokenizer, recipe.model.chat_template, recipe.model.base)
    encoded = encode_all(ChatFormat(tokenizer, recipe.training.max_length), list(rows))
    samples = [one.training_sample(number) for number, one in enumerate(encoded.encoded)]
    if not samples:
        notes.append(f"No training sample fits training.max_length={recipe.training.max_length}.")
        return None
    kept = [rows[position] for position in encoded.kept]
    mixture = make_mixture(recipe.data, *numbered(row.task for row in kept))
    plan = StepPlan(
        tuple(group_numbers(kept)),
        recipe.training.samples_per_step,
        recipe.seed,
        recipe.training.sampler,
        mixture,
    )
    return measure_workload(samples, plan, packing, recipe.training.tokens_per_batch, buckets=buckets)


def measure_workload(
    samples: Sequence[TokenSample], plan: StepPlan, packing: Packing, budget: int, *, buckets: bool
) -> Workload:
    """Packs some steps of the first epoch, evenly spread, and counts what they compute."""
    steps = plan.steps_per_epoch
    chosen = sorted({round(i * (steps - 1) / max(1, MOST_STEPS - 1)) for i in range(MOST_STEPS)}) if steps > 1 else [0]
    batches = [
        batch for step in chosen for batch in pack_samples([samples[i] for i in plan.indices(step)], packing, budget)
    ]
    share = len(chosen) / steps
    return Workload(
        samples=len(samples),
        steps=steps,
        sample_tokens=round(sum(batch.sample_tokens for batch in batches) / share),
        distinct_tokens=round(sum(batch.real_tokens for batch in batches) / share),
        micro_batches=len(batches) / len(chosen),
        batch_tokens=max(bucket_size(len(batch), budget) if buckets else len(batch) for batch in batches),
        logit_rows=max(map(_logit_rows, batches)),
        longest=max(map(len, samples)),
        looked_at=len(chosen),
    )


def _logit_rows(batch: Batch) -> int:
    if isinstance(batch, PaddedBatch):  # every row gets all columns that any row needs
        return len(batch.tokens) * len(torch.unique(batch.edge_column))
    return len(batch.parents)


def _times(
    shape: ModelShape, plan: MemoryPlan, workload: Workload | None, card: Card | None
) -> tuple[float | None, float | None, float | None, float | None]:
    """Seconds of a step and of an epoch, tokens computed and tokens of samples a second."""
    if card is None or math.isnan(card.bf16_tflops):
        return None, None, None, None
    if workload is None:
        flops = flops_per_token(shape, plan, plan.longest / 2, 1.0)
        rate = plan.tokens / micro_batch_seconds(shape, plan, card, plan.tokens, flops)
        return None, None, rate, rate
    passes = workload.steps * workload.micro_batches
    tokens = workload.distinct_tokens / passes
    flops = flops_per_token(shape, plan, workload.longest / 2, workload.logit_rows / workload.batch_tokens)
    epoch = passes * micro_batch_seconds(shape, plan, card, tokens, flops)
    return epoch / workload.steps, epoch, workload.distinct_tokens / epoch, workload.sample_tokens / epoch


def _uncertain(recipe: Recipe, shape: ModelShape) -> list[str]:
    notes = []
    if not shape.heads:
        notes.append(f"{shape.architecture} names no attention heads: what its layers keep and compute is rough.")
    if shape.other_parameters > 0.1 * shape.parameters:
        notes.append("Many weights are no linear layers (experts, say): memory and speed are rough.")
    if recipe.adapter.dora:
        notes.append("DoRA's extra activations and time are not counted.")
    if recipe.training.optimizer == "paged_adamw_8bit":
        notes.append("The paged optimiser's state is counted on the host.")
    if recipe.model.quantization == "int8":
        notes.append("The speed of int8 was never measured.")
    return notes
