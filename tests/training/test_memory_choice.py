"""What a run found out about memory when it began holds when it is resumed."""

from __future__ import annotations

import json
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from fintune.inference.forward import EdgeModel
from fintune.models.tiny import write_tiny_model
from fintune.schema.recipe import Recipe
from fintune.training import memory_choice
from fintune.training.resume import ResumePoint
from fintune.training.token_budget import TokenBudget
from tests.trees.samples import sample

RECIPE = {"name": "x", "model": {"base": "b"}, "data": {"tasks": [{"name": "tfns"}]}}


@pytest.fixture
def choose(tmp_path, monkeypatch):
    """Chooses for a tiny model, by how many bytes are free and what is known."""
    folder = write_tiny_model(tmp_path / "tiny")
    model = EdgeModel(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).requires_grad_(False), "sdpa")
    base = SimpleNamespace(model=model.model, quantization="none", facts=SimpleNamespace(double_quant=False))

    def chosen(free, known):
        monkeypatch.setattr(memory_choice, "free_bytes", lambda device: free)
        recipe = Recipe.model_validate(RECIPE)
        return memory_choice.choose_memory(recipe, base, model, [sample([3, 4, 5, 6], 2, 0)], "tree", known)

    return chosen


def resumed(budget):
    return ResumePoint(budget=json.loads(json.dumps(budget))).token_budget(2048)


def test_a_resumed_run_decides_about_cuda_graphs_as_the_first_session_did(choose):
    needed = choose(10**12, TokenBudget(2048)).predicted_bytes
    first = choose(needed * 3 // 2, TokenBudget(2048))
    assert first.memory == "keep" and not first.has_room_for_graphs
    budget = TokenBudget(2048, 0, first.memory, 0, first.predicted_bytes, first.free_bytes)
    assert choose(10**12, resumed(asdict(budget))) == first, "though more is free now"
    older = {"tokens": 2048, "retries": 0, "memory": "keep", "whole_layers": 0}
    assert choose(needed * 3 // 2, resumed(older)) == first, "predicted and measured anew"
    assert choose(10**12, resumed(older)).has_room_for_graphs


def test_a_run_that_may_not_record_says_so_in_its_checkpoints(choose):
    budget = resumed({"tokens": 512, "retries": 1, "memory": "keep", "predicted_bytes": 3, "free_bytes": 5})
    assert budget == TokenBudget(512, 1, "keep", 0, 3, 5)
    choice = choose(None, budget)
    assert (choice.predicted_bytes, choice.free_bytes, choice.has_room_for_graphs) == (3, 5, False)
