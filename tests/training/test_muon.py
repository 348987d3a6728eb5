"""Muon beside AdamW: the update against one computed by hand, files, schedules, and that it learns."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, get_wsd_schedule

from fintune.inference.forward import EdgeModel
from fintune.models.gpt import GPTForCausalLM, optimised, weight_kinds
from fintune.models.gpt.groups import has_unit_embeddings
from fintune.schema.errors import InternalError, ModelError
from fintune.training import batched_muon
from fintune.training.muon import Rates, muon_and_adamw, recipe_optimiser
from fintune.trees.plan import make_step
from tests.models.gpts import random_gpt, tokens
from tests.trees.samples import sample


def orthogonalised(matrix):
    """Five steps of Jordan's quintic on the singular values, by way of an SVD in fp64 instead of products."""
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / matrix.double().norm()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u @ torch.diag(s) @ v


def optimiser_of(model, **options):
    return muon_and_adamw(weight_kinds(model), width=64, **options)


def give_gradients(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("tie", [True, False])
def test_every_weight_is_of_one_kind(tie):
    model = random_gpt(tie_word_embeddings=tie, positions="learned", biases=True)
    kinds = weight_kinds(model)
    parts = [kinds.matrices, kinds.embeddings, kinds.head, kinds.vectors]
    assert sorted(id(p) for part in parts for p in part) == sorted(id(p) for p in model.parameters())
    assert len(kinds.matrices) == 2 * 6 and len(kinds.embeddings) == 2 and len(kinds.head) == (not tie)
    assert not any(p.ndim == 2 for p in kinds.vectors)
    model.lm_head.requires_grad_(False)
    assert len(weight_kinds(model).head) == 0


def test_two_updates_of_a_matrix_by_hand():
    model = random_gpt()
    optimiser = optimiser_of(model, weight_decay=0.1)
    weight = model.model.layers[0].mlp.up_proj.weight  # 256 rows, 64 columns: steps are twice as long
    expected, momentum = weight.detach().double().clone(), torch.zeros(256, 64, dtype=torch.float64)
    for seed in range(2):
        give_gradients(model, seed)
        momentum = 0.95 * momentum + 0.05 * weight.grad.double()
        looked_ahead = 0.05 * weight.grad.double() + 0.95 * momentum
        expected = expected * (1 - 0.02 * 0.1) - 0.02 * 2 * orthogonalised(looked_ahead)
        before = weight.detach().clone()
        optimiser.step()
        found = torch.linalg.svdvals((weight.detach() - before * (1 - 0.02 * 0.1)).double() / 0.04)
        assert found.min() > 0.5 and found.max() < 1.3  # about one, whatever those of the gradient are
    error = (weight.detach().double() - expected).norm() / (0.04 * 64**0.5)
    assert error < 0.03  # its products are computed in bf16


@pytest.mark.parametrize("most", [1 << 28, 3 * 64 * 256], ids=["one stack", "stacks of three"])
@pytest.mark.parametrize("rule", ["original", "match_rms_adamw"])
def test_stacked_matrices_are_updated_as_one_by_one(monkeypatch, most, rule):
    monkeypatch.setattr(batched_muon, "MOST_STACKED", most)
    model = random_gpt(num_hidden_layers=4)
    twin = copy.deepcopy(model)
    options = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9, "adjust_lr_fn": rule}
    pairs = [(model, batched_muon.BatchedMuon), (twin, torch.optim.Muon)]
    optimisers = [kind(weight_kinds(gpt).matrices, **options) for gpt, kind in pairs]
    for seed in range(2):
        for (gpt, _), optimiser in zip(pairs, optimisers, strict=True):
            give_gradients(gpt, seed)
            gpt.model.layers[1].mlp.up_proj.weight.grad = None  # not reached
            optimiser.step()
    before = random_gpt(num_hidden_layers=4)
    for own, other, old in zip(model.parameters(), twin.parameters(), before.parameters(), strict=True):
        assert (own - other).norm() <= 0.02 * (other - old).norm()  # products in bf16
    assert optimisers[0].state_dict()["state"].keys() == optimisers[1].state_dict()["state"].keys()


def test_rates_keep_their_proportions():
    assert Rates.around(0.02) == Rates()
    halved, usual = Rates.around(0.01, unit_embeddings=False), Rates()
    assert halved == Rates(0.01, usual.head / 2, usual.head / 2, usual.vectors / 2)


def test_llamas_weights_are_sorted_and_experts_are_refused(base):
    model = AutoModelForCausalLM.from_pretrained(base)
    kinds = weight_kinds(model)
    assert len(kinds.matrices) == 2 * 7 and len(kinds.embeddings) == 1 and not kinds.head  # tied
    assert not has_unit_embeddings(model) and has_unit_embeddings(random_gpt())
    assert not has_unit_embeddings(random_gpt(tie_word_embeddings=True))
    model.experts = nn.Parameter(torch.zeros(2, 3, 4))
    with pytest.raises(ModelError, match="experts has 3 dimensions"):
        weight_kinds(model)


def test_a_rate_meant_for_adapters_is_warned_about(caplog):
    optimiser = recipe_optimiser(random_gpt(), 2e-4, 0.0)
    assert "hardly anything is learnt" in caplog.text and optimiser.param_groups[0]["lr"] == 2e-4


def test_other_weights_are_updated_as_adamw_does():
    model = random_gpt()
    twin = copy.deepcopy(model)
    optimiser = optimiser_of(model, rates=Rates(embeddings=0.3))
    plain = torch.optim.AdamW(
        twin.model.embed_tokens.parameters(), lr=0.3 * (768 / 64) ** 0.5, betas=(0.8, 0.95), eps=1e-10, weight_decay=0
    )
    for seed in range(2):
        give_gradients(model, seed)
        give_gradients(twin, seed)
        optimiser.step()
        plain.step()
    torch.testing.assert_close(model.model.embed_tokens.weight, twin.model.embed_tokens.weight)


def test_stored_and_read_again_it_goes_on_as_if_nothing_had_happened(tmp_path):
    model = random_gpt()
    optimiser = optimiser_of(model)
    give_gradients(model, 0)
    optimiser.step()
    twin = copy.deepcopy(model)
    torch.save(optimiser.state_dict(), tmp_path / "optimizer.pt")
    again = optimiser_of(twin)
    again.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    for gpt, own in ((model, optimiser), (twin, again)):
        give_gradients(gpt, 1)
        own.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    assert again.state_dict()["state"].keys() == optimiser.state_dict()["state"].keys() == set(range(12 + 1 + 1 + 5))


def test_a_schedule_scales_all_rates_alike():
    optimiser = optimiser_of(random_gpt())
    peak = [group["lr"] for group in optimiser.param_groups]
    schedule = get_wsd_schedule(optimiser, num_warmup_steps=2, num_decay_steps=2, num_training_steps=6)
    shares = []
    for _ in range(6):
        shares.append({round(group["lr"] / top, 9) for group, top in zip(optimiser.param_groups, peak, strict=True)})
        optimiser.step()
        schedule.step()
    assert all(len(share) == 1 for share in shares) and shares[1:3] == [{0.5}, {1.0}]


def test_it_needs_matrices():
    model = random_gpt()
    model.model.layers.requires_grad_(False)
    with pytest.raises(InternalError, match="each need weights"):
        optimiser_of(model)
    assert isinstance(model.lm_head, nn.Linear)


def test_an_optimised_gpt_learns_a_text_by_heart():
    torch.manual_seed(0)
    model = GPTForCausalLM(optimised("tiny", 512))
    optimiser, edge_model = optimiser_of(model), EdgeModel(model, "sdpa")
    step = make_step([sample([1, *tokens(24, seed=s).tolist()], 1, s) for s in range(3)], "sequence", 10_000)
    losses = []
    for _ in range(15):
        loss = edge_model.loss_sum(step.batches[0]) / step.total_weight
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
