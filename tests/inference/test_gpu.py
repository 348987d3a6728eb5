"""On a GPU: FlexAttention against SDPA on the same trees, in fp32 and bf16, and whole short runs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tests.inference.test_equality import (
    FAMILIES,
    encoded_examples,
    one_by_one_likelihoods,
    shared_prompt_samples,
    trained_gradients,
    with_random_adapter,
)

from fintune.inference.forward import EdgeModel
from fintune.inference.likelihood import choice_log_likelihoods
from fintune.kernels.tree_attention import BLOCKWISE
from fintune.models.tiny import write_tiny_model
from fintune.trees.plan import make_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("default"),  # compilers and drivers warn as they please
]


@pytest.fixture(autouse=True)
def unfused_attention_is_an_error(monkeypatch):
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda pair: pair[0])
def model(request, tmp_path_factory):
    family, window = request.param
    folder = write_tiny_model(tmp_path_factory.mktemp(family), family, sliding_window=window)
    return with_random_adapter(folder).cuda()


def step_gradients(model, samples, backend, dtype=torch.float32, budget=256):
    edge_model = EdgeModel(model, backend, dtype)
    step = make_step(samples, "tree", budget, buckets=edge_model.is_blockwise)
    model.zero_grad()
    total = 0.0
    for batch in step.batches:
        loss = edge_model.loss_sum(batch.to(torch.device("cuda"))) / step.total_weight
        loss.backward()
        total += loss.item()
    return total, trained_gradients(model)


def relative_error(ours, reference):
    """Distance of all gradients together, relative to their norm."""
    distance = torch.stack([(ours[name] - reference[name]).norm() for name in reference]).norm()
    return (distance / torch.stack([g.norm() for g in reference.values()]).norm()).item()


@pytest.mark.parametrize("backend", BLOCKWISE)
@pytest.mark.parametrize(
    ("dtype", "loss_tolerance", "gradient_tolerance"),
    [
        (torch.float32, 1e-4, 2e-3),  # flex multiplies in TF32
        (torch.bfloat16, 5e-2, 6e-2),
    ],
)
def test_blocks_equal_sdpa(model, backend, dtype, loss_tolerance, gradient_tolerance):
    samples = shared_prompt_samples(9, prompt=40, own=30) + shared_prompt_samples(4, seed=3)
    blocks = step_gradients(model, samples, backend, dtype)
    sdpa = step_gradients(model, samples, "sdpa")
    assert blocks[0] == pytest.approx(sdpa[0], rel=loss_tolerance)
    assert relative_error(blocks[1], sdpa[1]) < gradient_tolerance


@pytest.mark.parametrize("backend", BLOCKWISE)
def test_likelihoods_by_blocks_equal_one_by_one_likelihoods(model, backend):
    examples = encoded_examples(20)
    edge_model = EdgeModel(model, backend)
    trees = choice_log_likelihoods(edge_model, examples, tokens_per_batch=256)
    edge_model.use_plain_attention()
    alone = one_by_one_likelihoods(edge_model, examples)
    np.testing.assert_allclose(trees, alone, atol=2e-3)


@pytest.mark.parametrize(
    "settings",
    [
        ["model.quantization=nf4"],
        ["model.quantization=int8"],
        ["model.dtype=float16"],
        ["model.attention=sdpa", "training.gradient_checkpointing=true"],
        ["training.optimizer=paged_adamw_8bit", "adapter.rslora=true", "adapter.dropout=0.1"],
        ["adapter.kind=none"],
    ],
    ids=lambda settings: settings[0],
)
def test_a_short_run_trains_and_resumes_to_the_end(settings, tmp_path):
    import fintune

    folder = write_tiny_model(tmp_path / "tiny")
    overrides = [
        f"model.base={folder}",
        "model.quantization=none",
        "data.train_limit=96",
        "training.save_steps=3",
        "training.samples_per_step=16",
        "training.warmup_steps=1",
        "evaluation.limit=40",
        "evaluation.bootstrap_samples=100",
        "evaluation.baselines=[majority]",
        "report.enabled=false",
        "training.tracking=[]",
        *settings,
    ]
    outcome = fintune.train("quickstart", overrides=overrides, output_dir=tmp_path / "run", progress=False)
    rows = [json.loads(line) for line in (outcome.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert all(np.isfinite(row["grad_norm"]) for row in rows[1:])
    assert outcome.results.find("tfns", "tuned").n == 40
