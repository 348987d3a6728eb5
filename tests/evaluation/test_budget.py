"""How many tokens are scored at once where nobody says."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fintune.evaluation.scoring import scoring_budget


def model_on(device, **shape):
    return SimpleNamespace(device=torch.device(device), model=SimpleNamespace(config=SimpleNamespace(**shape)))


@pytest.mark.parametrize(
    "shape, budget",
    [
        ({"intermediate_size": 1536}, 65536),  # SmolLM2-135M
        ({"intermediate_size": 8192}, 16384),  # Llama-3.2-1B
        ({"intermediate_size": 14336}, 16384),  # Llama-3.1-8B
        ({"intermediate_size": 28672}, 16384),
        ({"intermediate_size": [1536, 8192]}, 16384),  # Gemma 3n lists one for each layer
        ({"hidden_size": 768}, 65536),  # GPT-2 names no other width
    ],
)
def test_a_gpu_takes_more_tokens_of_a_small_model(shape, budget):
    assert scoring_budget(None, model_on("cuda", **shape)) == budget


def test_what_is_asked_for_is_taken_and_a_cpu_takes_few():
    assert scoring_budget(512, model_on("cuda", intermediate_size=1536)) == 512
    assert scoring_budget(None, model_on("cpu", intermediate_size=1536)) == 2048
