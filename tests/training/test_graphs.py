"""What of recorded passes can be tested without a GPU; the rest is in tests/models/test_fast_gpu.py."""

from __future__ import annotations

import pytest
import torch

from fintune.inference.forward import EdgeModel
from fintune.schema.errors import RunError
from fintune.training.graphs import GraphedPasses, padded_edges
from tests.models.test_fast_layers import random_base, tree_batch, with_adapter


def test_padded_edges_weigh_nothing_and_lead_to_the_same_loss():
    model, batch = EdgeModel(with_adapter(random_base()), "sdpa"), tree_batch()
    padded = padded_edges(batch)
    assert len(padded.parents) == 64 > len(batch.parents)
    assert padded.weight == batch.weight
    loss, losses = model.loss_by_edge(padded)
    expected, by_edge = model.loss_by_edge(batch)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(losses[: len(by_edge)], by_edge)


def test_sizes_are_few_and_waste_a_third_at_most():
    sizes = [len(padded_edges(batch).parents) for batch in map(with_parents, range(1, 3000))]
    assert len(set(sizes)) <= 12
    assert all(size >= wanted for wanted, size in enumerate(sizes, 1))
    assert all(size <= wanted * 1.5 for wanted, size in enumerate(sizes, 1) if wanted > 64)


def with_parents(count):
    from dataclasses import replace

    return replace(tree_batch(), parents=torch.zeros(count, dtype=torch.int64))


def test_what_cannot_be_recorded_ends_in_words(monkeypatch):
    class Refuses:
        def __init__(self, *_, **__):
            pass

        def __enter__(self):
            raise torch.OutOfMemoryError("CUDA out of memory.")

        def __exit__(self, *_):
            return False

    passes = GraphedPasses(EdgeModel(with_adapter(random_base()), "sdpa"))
    monkeypatch.setattr(torch.cuda, "graph", Refuses)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    passes.start()
    passes.add(tree_batch(), 1.0)  # a size is run plainly when it first comes
    with pytest.raises(RunError, match=r"could not be recorded as a CUDA graph \(CUDA out of memory"):
        passes.add(tree_batch(), 1.0)
