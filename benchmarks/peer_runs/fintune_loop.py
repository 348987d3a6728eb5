"""fintune in a plain loop over packed optimiser steps: what its trainer computes, recorded passes included.

Enters: a job. Leaves: its measurements, and for the efficiency table what is trained and what is saved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fintune.inference.forward import EdgeModel, choose_backend
from fintune.models import attach_adapter, load_base
from fintune.models.adapter_files import save_adapter
from fintune.models.adapters import count_parameters
from fintune.models.fast_layers import Memory
from fintune.models.load import LoadedBase
from fintune.schema.recipe import AdapterSection, ModelSection
from fintune.training.graphs import GraphedPasses
from fintune.trees.plan import StepPlan, make_step
from fintune.trees.prefix_tree import TokenSample
from peer_runs.data import random_tokens, read_samples
from peer_runs.recording import Recorder
from peer_runs.settings import ALPHA, LEARNING_RATE, RANK, SEED, Job


@dataclass
class Prepared:
    """A model that stands ready for optimiser steps; ``recorded`` are its passes as CUDA graphs, or None."""

    base: LoadedBase
    model: EdgeModel
    optimizer: torch.optim.Optimizer
    tokens_at_once: int
    max_grad_norm: float
    recorded: GraphedPasses | None = None

    def record(self) -> None:
        """From here on passes are recorded where they can be, as fintune's trainer has them."""
        self.recorded = GraphedPasses(self.model) if GraphedPasses.suits(self.model) else None

    def step(self, samples: Sequence[TokenSample]) -> Tensor:
        """One optimiser step; its loss, on the device."""
        packed = make_step(samples, "tree", self.tokens_at_once, buckets=self.model.is_blockwise)
        total = torch.zeros((), device=self.model.device)
        if self.recorded is not None:
            self.recorded.start()
        for batch in packed.batches:
            if self.recorded is not None:
                total += self.recorded.add(batch, 1 / packed.total_weight)[0]
            else:
                loss = self.model.loss_sum(batch.to(self.model.device)) / packed.total_weight
                loss.backward()
                total += loss.detach()
        if self.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(self.optimizer.param_groups[0]["params"], self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total


def run_fintune(job: Job, recorder: Recorder) -> None:
    """Trains on the job's tokens and records it."""
    setting = job.setting
    ready = fintune_step(
        job.checkpoint,
        torch.device(job.device),
        setting.quantization,
        adapter=setting.adapter,
        targets=job.targets,
        tokens_at_once=setting.tokens_at_once or min(setting.at_once, job.rows) * job.length,
        memory=setting.memory,
        whole_layers=setting.whole_layers,
        max_grad_norm=1.0 if job.workload == "phrasebank" else 0.0,  # as TRL clips, and the dense loop does not
    )
    draw = samples_of(job, ready.base.model.config.vocab_size)
    recorder.facts["trainable"], recorder.facts["parameters"] = count_parameters(ready.model.model)
    recorder.ready()
    losses = []
    for number in range(job.steps):
        samples = draw(number)
        losses.append(ready.step(samples))
        recorder.step_done(sum(map(len, samples)), len(samples))
    if job.workload == "efficiency":
        recorder.facts["saved_bytes"] = saved_bytes(ready, Path(job.folder) / "saved")
    recorder.finish(torch.stack(losses[-job.window :]).mean().item())


def fintune_step(
    checkpoint: str,
    device: torch.device,
    quantization: str,
    *,
    adapter: str = "lora",
    targets: tuple[str, ...] = (),
    tokens_at_once: int = 8192,
    memory: Memory = "ready",
    whole_layers: int = 0,
    max_grad_norm: float = 0.0,
    graphs: bool = True,
) -> Prepared:
    """Loads a base and attaches what is trained.

    Args:
        checkpoint: folder of the base model.
        device: where it goes.
        quantization: how the frozen base is held: none, nf4 or fp8.
        adapter: lora, or none for all weights.
        targets: layers that get an adapter.
        tokens_at_once: packing budget.
        memory: hold unpacked weights and keep activations, keep these alone, recompute them, or also offload layers'
            inputs.
        whole_layers: so many layers, the last ones, keep everything all the same.
        max_grad_norm: clip; 0 switches it off.
        graphs: record passes as CUDA graphs where they can be.
    """
    section = ModelSection.model_validate({"base": checkpoint, "quantization": quantization, "dtype": "bfloat16"})
    base = load_base(section, device=device, for_training=True)
    adapted = AdapterSection.model_validate({"kind": adapter, "rank": RANK, "alpha": ALPHA, "targets": targets})
    adapter_model = attach_adapter(base, adapted, seed=SEED)
    backend = choose_backend("auto", device, adapter_model.config)
    model = EdgeModel(adapter_model, backend, base.dtype)
    model.memory, model.whole_layers = memory, whole_layers
    model.model.train()
    trained = [parameter for parameter in model.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    ready = Prepared(base, model, optimizer, tokens_at_once, max_grad_norm)
    if graphs:
        ready.record()
    return ready


def samples_of(job: Job, vocabulary: int) -> Callable[[int], list[TokenSample]]:
    """The samples of a step by its number."""
    if job.workload != "phrasebank":
        return lambda step: [whole(row) for row in random_tokens(step, job.rows, job.length, vocabulary)]
    assert job.phrasebank is not None
    known = [supervised(s.tokens, s.completion_start) for s in read_samples(job.phrasebank)]
    plan = StepPlan(tuple(range(len(known))), job.setting.at_once, SEED)
    return lambda step: [known[i] for i in plan.indices(step)]


def whole(row: Any) -> TokenSample:
    """A row in which every token but the first is supervised."""
    return supervised(row, 1)


def supervised(tokens: Any, start: int) -> TokenSample:
    return TokenSample(np.asarray(tokens, np.int64), (np.arange(len(tokens)) >= start).astype(np.float64))


def saved_bytes(ready: Prepared, folder: Path) -> int:
    """Size of the trained weights as saved; the tokenizer beside them is not counted."""
    save_adapter(ready.model.model, ready.base.tokenizer, folder, ready.base.files)
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
