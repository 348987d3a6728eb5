"""What is measured: switches that must not move the loss do not, and those that choose an architecture do choose it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fintune.bench.blocks import IGNORED, batches
from fintune.bench.gpt_training import GptRun, GptText, measure_gpt
from fintune.bench.llm_training import measure_llm
from fintune.bench.optimisations import full_set
from fintune.bench.sizes import SIZES
from fintune.bench.texts import TokenStream
from fintune.trees.prefix_tree import TokenSample

CPU = torch.device("cpu")
TINY = SIZES["tiny"]
SIZE = replace(
    TINY,
    gpt=replace(TINY.gpt, width=16, context=32, rows=2, steps=4, warmup=1, validation_rows=4, vocabulary=50),
    llm=replace(TINY.llm, samples_per_step=4, steps=3, speed_steps=2, warmup=1, tokens_per_batch=64, rank=2),
    chunks=2,
    prompt_tokens=8,
    new_tokens=4,
)


def stream(length=400, seed=0):
    generator = np.random.default_rng(seed)
    tokens = generator.integers(1, 50, length)
    tokens[generator.random(length) < 0.15] = 0
    return TokenStream(tokens.astype(np.int64), tokens == 0, np.ones(length, np.int64))


def test_all_layouts_predict_the_same_targets():
    found = {}
    for layout in ("together", "apart", "padded"):
        rows = list(batches(stream(), 1, 2, 32, layout))
        found[layout] = np.sort(np.concatenate([r.targets[r.targets != IGNORED].numpy() for r in rows]))
    assert len(found["padded"]) == 64
    np.testing.assert_array_equal(found["together"], found["padded"])
    np.testing.assert_array_equal(found["apart"], found["padded"])


@torch.no_grad()
def loss_of(on, *, spans=False):
    run = GptRun(on, SIZE, 50, 0, CPU)
    if spans:  # what a GPU does, on the plain twin of its attention
        run.spans = True
        run.model.set_attn_implementation("fintune_tree")
    return sum(float(run.loss_sum(rows)) for rows in run.batches(stream(), 0))


def test_layouts_attention_and_loss_differ_in_cost_alone():
    from fintune.kernels.tree_attention import register

    register()
    rest = full_set("gpt", "cpu") - {"zero_outputs"}
    expected = loss_of(rest)
    for off in ({"packing", "masks"}, {"sdpa"}, {"fused_loss"}):
        assert loss_of(rest - off) == pytest.approx(expected, rel=1e-5), off
    assert loss_of(rest, spans=True) == pytest.approx(expected, rel=1e-5)
    assert loss_of(rest - {"masks"}) != pytest.approx(expected, rel=1e-5)


def test_switches_choose_the_architecture():
    base, full = (GptRun(on, SIZE, 50, 0, CPU).model for on in ((), full_set("gpt", "cpu")))
    assert (base.config.vocab_size, full.config.vocab_size) == (50, 128)
    assert base.model.embed_positions is not None and full.model.embed_positions is None
    assert base.lm_head.weight is base.model.embed_tokens.weight
    swiglu = GptRun(full_set("gpt", "cpu") | {"swiglu"}, SIZE, 50, 0, CPU).model
    assert swiglu.config.activation == "swiglu"


def test_a_gpt_is_measured_and_learns():
    text = GptText(stream(4 * 64 + 1), stream(4 * 32 + 1))
    found = measure_gpt(sorted(full_set("gpt", "cpu") | {"checkpointing"}), SIZE, text, 50, seed=0, device=CPU)
    assert [point.tokens for point in found.curve] == [0, 128, 256]
    assert found.curve[-1].loss < found.curve[0].loss
    assert found.tokens_per_s > 0 and found.latency_ms > 0 and found.cold_s > 0


def test_fine_tuning_takes_the_same_path_however_it_is_computed(base):
    generator = np.random.default_rng(0)
    prompt = generator.integers(3, 500, 12)
    samples = []
    for number in range(8):
        tokens = np.concatenate([prompt, generator.integers(3, 500, 3 + number)])
        samples.append(TokenSample(tokens, np.where(np.arange(len(tokens)) < len(tokens) - 2, 0.0, 1.0), number))
    curves = {}
    for on in (("lora",), ("lora", "packing", "tree", "fast_layers", "fused_loss"), ("lora", "checkpointing")):
        found = measure_llm(on, SIZE, str(base), samples, samples[:4], seed=0, device=CPU)
        curves[on] = [point.loss for point in found.curve]
        assert found.trained < found.parameters and not found.notes
    plain = curves[("lora",)]
    assert plain[-1] != plain[0]
    for on, curve in curves.items():
        assert curve == pytest.approx(plain, rel=2e-4), on
    whole = measure_llm(("packing",), SIZE, str(base), samples, None, seed=0, device=CPU)
    assert whole.trained == whole.parameters and whole.curve == []
