"""On a GPU: answers in batches against ``generate`` of ``transformers``, equal in fp32 and nearly so in bf16."""

from __future__ import annotations

import pytest
import torch
from tests.inference.test_equality import FAMILIES, with_random_adapter
from tests.inference.test_generate import LIMIT, STOP_IDS, one_by_one, ragged_prompts, written

from fintune.inference.forward import EdgeModel
from fintune.models.tiny import write_tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("default"),  # compilers and drivers warn as they please
]


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda pair: pair[0])
def model(request, tmp_path_factory):
    family, window = request.param
    folder = write_tiny_model(tmp_path_factory.mktemp(family), family, sliding_window=window)
    return with_random_adapter(folder, spread=0.5).eval().cuda()


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


def test_fp32_answers_are_equal(model):
    # Spans, not flex: flex multiplies in TF32, where a near tie may fall the other way.
    edge_model = EdgeModel(model, "sdpa")
    prompts = ragged_prompts()
    reference = one_by_one(edge_model, prompts)
    for batch_size in (1, 7, 64):
        assert written(edge_model, prompts, batch_size=batch_size) == reference


@pytest.mark.parametrize("backend", ["sdpa", "flex"])
def test_bf16_answers_mostly_begin_alike(model, backend):
    """Rounding parts answers at near ties, after which nothing is alike; a wrong mask parts nearly all at once."""
    edge_model = EdgeModel(model, backend, torch.bfloat16)
    prompts = ragged_prompts(48)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        reference = one_by_one(edge_model, prompts, LIMIT, STOP_IDS)
    answers = written(edge_model, prompts, batch_size=16, tokens_per_batch=256)
    alike = sum(ours[:1] == theirs[:1] for ours, theirs in zip(answers, reference, strict=True))
    assert alike >= 0.8 * len(prompts)
