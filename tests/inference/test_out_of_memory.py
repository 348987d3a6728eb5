"""Lack of memory by its words; scoring goes on with less at once and comes to the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.trees.samples import sample
from transformers import AutoModelForCausalLM

from fintune.evaluation.scoring import Scorer
from fintune.inference.forward import EdgeModel
from fintune.inference.likelihood import sample_log_likelihoods
from fintune.inference.out_of_memory import ScoringBudget, is_out_of_memory
from fintune.models.tiny import write_tiny_model
from fintune.schema.errors import ModelError


@pytest.mark.parametrize(
    "words",
    [
        "CUDA out of memory. Tried to allocate 20.00 MiB.",
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "Triton Error [CUDA]: out of memory",
        "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to",
        "[enforce fail at alloc_cpu.cpp:128] data. DefaultCPUAllocator: not enough memory: you tried to allocate",
    ],
)
def test_lack_of_memory_is_known_by_its_words(words):
    assert is_out_of_memory(RuntimeError(words))
    assert not is_out_of_memory(ValueError(words))


@pytest.mark.parametrize(
    "words",
    [
        "expected scalar type Float",
        "CUDA error: an illegal memory access was encountered",
        "out of resource: shared memory, Required: 131072, Hardware limit: 101376.",
        "DataLoader worker is killed. It is possible that dataloader's workers are out of shared memory.",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    ],
)
def test_other_errors_are_no_lack_of_memory(words):
    assert not is_out_of_memory(RuntimeError(words))


def test_torch_has_a_class_of_its_own_for_it():
    assert is_out_of_memory(torch.OutOfMemoryError("whatever it says"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = write_tiny_model(tmp_path_factory.mktemp("tiny"))
    return EdgeModel(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), "sdpa")


def with_room_for(tokens, monkeypatch):
    """A device on which larger batches do not fit; the sizes asked for."""
    score, asked = EdgeModel.edge_log_probabilities, []

    def limited(self, batch):
        asked.append(batch.real_tokens)
        if asked[-1] > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return score(self, batch)

    monkeypatch.setattr(EdgeModel, "edge_log_probabilities", limited)
    return asked


def some_samples():
    heads = [list(range(3 + n, 23 + n)) for n in range(3)]
    return [sample([*head, *range(40 + i, 46 + 2 * i)], 18, i) for i, head in enumerate(heads * 3)]


@pytest.mark.parametrize("packing", ["tree", "sequence", "none"])
def test_scores_that_run_out_of_memory_are_those_of_one_batch(model, monkeypatch, caplog, packing):
    samples, done = some_samples(), []
    expected = sample_log_likelihoods(model, samples, tokens_per_batch=2048, packing=packing)
    asked = with_room_for(60, monkeypatch)
    budget = ScoringBudget(2048)
    found = sample_log_likelihoods(model, samples, tokens_per_batch=budget, packing=packing, on_batch=done.append)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert sum(done) == len(samples), "each is counted once"
    said = [message for message in caplog.messages if message.startswith("Memory ran out while scoring")]
    assert len(said) == sum(size > 60 for size in asked) > 0
    known = budget.tokens
    asked.clear()
    sample_log_likelihoods(model, samples, tokens_per_batch=budget, packing=packing)
    assert max(asked) <= max(known, *map(len, samples)) < 2048, "it is remembered"


def test_a_sample_that_does_not_fit_alone_and_a_number_that_is_kept_to(model, monkeypatch):
    with_room_for(10, monkeypatch)
    with pytest.raises(ModelError, match="A text of .* tokens alone does not fit into memory"):
        sample_log_likelihoods(model, some_samples(), tokens_per_batch=ScoringBudget(2048))
    with pytest.raises(torch.OutOfMemoryError):
        sample_log_likelihoods(model, some_samples(), tokens_per_batch=2048)


def test_scorers_made_from_one_share_what_fits():
    scorer = Scorer(None, None, 500)
    scorer.budget.tokens = 100
    assert replace(scorer, decoding="free").budget.tokens == 100
    assert replace(scorer, shrinks=False).budget == 500, "other processes would wait"
