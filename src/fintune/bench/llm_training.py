"""A language model fine-tuned on the shipped tweets, with any of the optimisations on or off.

Enters: switches, a size, a base model and samples. Leaves: ``Measured``. Steps are drawn and packed as the trainer's,
and computed by the same ``EdgeModel``; what the trainer adds (checkpoints, logs, guards) is left out.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn

from fintune.bench.measuring import Gauge, Measured, own_turn, run_in_chunks, seconds_of, written_token_ms
from fintune.bench.sizes import LlmSize, Size
from fintune.inference.forward import EdgeModel, choose_backend
from fintune.inference.heads import OutputHead
from fintune.models.adapters import attach_adapter, count_parameters
from fintune.models.fast_layers import FastLayers
from fintune.models.load import load_base
from fintune.schema.recipe import AdapterSection, ModelSection, Packing
from fintune.training.graphs import GraphedPasses
from fintune.training.run import recompute_layers
from fintune.trees.packing import pack_samples
from fintune.trees.plan import Step, StepPlan, make_step
from fintune.trees.prefix_tree import TokenSample


class SwitchedModel(EdgeModel):
    """An ``EdgeModel`` whose layers and loss are ours or not, each by itself.

    Args:
        model: as of ``EdgeModel``, like the next two.
        backend: attention backend.
        compute_dtype: precision of products.
        fast_layers: run decoder layers by our kernels.
        fused_loss: compute losses from hidden states.
    """

    def __init__(
        self, model: Any, backend: Any, compute_dtype: torch.dtype, *, fast_layers: bool, fused_loss: bool
    ) -> None:
        super().__init__(model, backend, compute_dtype)
        self._has_layers, self._has_loss = fast_layers, fused_loss

    def fast_layers(self) -> FastLayers | None:
        """Our layers, where they are on."""
        return super().fast_layers() if self._has_layers else None

    def output_head(self) -> OutputHead | None:
        """The head that the loss takes the place of, where that is on."""
        return super().output_head() if self._has_loss else None


class LlmRun:
    """One model with its adapter and its optimiser.

    Args:
        on: keys of what is on.
        size: of the run.
        base: what ``model.base`` takes.
        samples: to train on.
        seed: decides the adapter's weights and the order of the samples.
        device: where it runs.
        steps: optimiser steps of the schedule.
    """

    def __init__(
        self,
        on: Collection[str],
        size: LlmSize,
        base: str,
        samples: Sequence[TokenSample],
        *,
        seed: int,
        device: torch.device,
        steps: int,
    ) -> None:
        self.on, self.size, self.samples, self.device = on, size, samples, device
        dtype = "bfloat16" if "bf16" in on else "float32"
        section = ModelSection(base=base, dtype=dtype, quantization="nf4" if "nf4" in on else "none")
        loaded = load_base(section, device=device, for_training=True)
        kind = "lora" if "lora" in on else "none"
        adapter = AdapterSection(kind=kind, rank=size.rank, alpha=2 * size.rank)
        self.net: Any = attach_adapter(loaded, adapter, seed=seed)
        self.model = SwitchedModel(
            *(self.net, choose_backend("auto", device, loaded.model.config), loaded.dtype),
            fast_layers="fast_layers" in on,
            fused_loss="fused_loss" in on,
        )
        self.packing: Packing = "tree" if "tree" in on else "sequence" if "packing" in on else "none"
        if "checkpointing" in on:
            if self.packing != "none" and self.model.fast_layers() is not None:
                self.model.memory = "recompute"
            else:
                recompute_layers(self.net)
        self.net.train()
        self.trained = [weight for weight in self.net.parameters() if weight.requires_grad]
        rate = size.lora_rate if "lora" in on else size.whole_rate
        self.optimizer = torch.optim.AdamW(self.trained, lr=rate, weight_decay=0.0, fused=device.type == "cuda")
        self.schedule = _linear(self.optimizer, size.warmup, steps)
        self.plan = StepPlan(tuple(range(len(samples))), size.samples_per_step, seed)
        wants_graphs = "graphs" in on and GraphedPasses.suits(self.model)
        self.graphs = GraphedPasses(self.model) if wants_graphs else None

    def drawn(self, number: int) -> Step:
        """The batches of a step."""
        members = [self.samples[i] for i in self.plan.indices(number).tolist()]
        budget, buckets = self.size.tokens_per_batch, self.model.is_blockwise
        return make_step(members, self.packing, budget, buckets=buckets, number=number)

    def step(self, number: int) -> int:
        """One update; returns the tokens of its samples, however many were computed."""
        step = self.drawn(number)
        self._backward(step)
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.schedule.step()
        if self.graphs is None:
            self.optimizer.zero_grad(set_to_none=True)
        return step.sample_tokens

    def warm_up(self) -> None:
        """Forward and backward passes whose gradients are thrown away, twice: graphs are recorded the second time."""
        for _ in range(2):
            self._backward(self.drawn(0))
            self.optimizer.zero_grad(set_to_none=True)

    def _backward(self, step: Step) -> None:
        if self.graphs is not None:
            self.graphs.start()
        for batch in step.batches:
            if self.graphs is not None:
                self.graphs.add(batch, 1 / step.total_weight)  # type: ignore[arg-type]  # trees, as packing is on
            else:
                loss = self.model.loss_sum(batch.to(self.device)) / step.total_weight
                torch.autograd.backward(loss)

    @torch.no_grad()
    def held_out(self, samples: Sequence[TokenSample]) -> float:
        """Nats a supervised token of held-out samples."""
        self.net.eval()
        nats = weight = 0.0
        buckets = self.model.is_blockwise
        for batch in pack_samples(samples, self.packing, self.size.tokens_per_batch, buckets=buckets):
            moved = batch.to(self.device)
            nats -= float((self.model.edge_log_probabilities(moved) * moved.edge_weight).sum())
            weight += batch.weight
        self.net.train()
        return nats / weight

    def latency(self, size: Size, sample: TokenSample) -> float:
        """Milliseconds a written token."""
        self.net.eval()
        self.model.use_plain_attention()
        tokens = sample.tokens[: size.prompt_tokens]
        prompt = torch.from_numpy(tokens)[None].to(self.device)
        with self.model.precision():
            use_cache = "kv_cache" in self.on
            return written_token_ms(self.net, prompt, size.new_tokens, use_cache=use_cache, clock=size.clock)


def _linear(optimizer: torch.optim.Optimizer, warmup: int, steps: int) -> Any:
    import transformers

    make: Any = transformers.get_linear_schedule_with_warmup
    return make(optimizer, warmup, steps)


def measure_llm(
    on: Collection[str],
    size: Size,
    base: str,
    train: Sequence[TokenSample],
    held_out: Sequence[TokenSample] | None,
    *,
    seed: int,
    device: torch.device,
) -> Measured:
    """Fine-tunes one variant and measures it.

    Args:
        on: keys of what is on.
        size: of the bench.
        base: what ``model.base`` takes.
        train: samples to train on.
        held_out: samples to measure the loss on; None measures speed and memory alone, in fewer steps.
        seed: decides the adapter's weights and the order of the samples.
        device: where it runs.
    """
    steps = size.llm.steps if held_out is not None else size.llm.speed_steps
    gauge, measured = Gauge(device), Measured("nats a supervised token")
    with own_turn(shared=True):
        run = LlmRun(on, size.llm, base, train, seed=seed, device=device, steps=steps)
        measured.cold_s = seconds_of(run.warm_up, device)
    measured.trained, measured.parameters = count_parameters(run.net)
    if "fast_layers" in on and run.model.fast_layers() is None:
        measured.notes.append("our layers do not suit this model, so transformers' ran")
    if "graphs" in on and run.graphs is None:
        measured.notes.append("passes could not be recorded as graphs")
    with own_turn():
        run_in_chunks(
            *(measured, device),
            steps=steps,
            chunks=min(size.chunks, steps),
            clock=size.clock,
            step=run.step,
            loss=None if held_out is None else lambda: run.held_out(held_out),
        )
        measured.peak_bytes = gauge.peak()
        measured.latency_ms = run.latency(size, train[0])
    return measured
