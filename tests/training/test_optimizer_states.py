"""States made ahead of the first update change nothing, and one that does not fit leaves weights and states alone."""

from __future__ import annotations

import bitsandbytes
import pytest
import torch
from torch import nn

from fintune.schema.errors import RunError
from fintune.training.batched_muon import BatchedMuon
from fintune.training.checkpoints import is_intact, list_checkpoints
from fintune.training.muon import MuonAndAdamW
from fintune.training.optimizer_states import begin_states
from tests.runs import losses, metrics, run, weights
from tests.training.test_memory_retry import QUICK

MAKES = {
    "adamw": lambda own: torch.optim.AdamW([{"params": own[:2]}, {"params": own[2:], "weight_decay": 0.0}]),
    "fused": lambda own: torch.optim.AdamW(own, fused=True),
    "muon": lambda own: MuonAndAdamW(BatchedMuon(own[:2]), torch.optim.AdamW(own[2:])),
    "8bit": lambda own: bitsandbytes.optim.AdamW8bit(own),
}


def four_weights():
    torch.manual_seed(0)
    own = [nn.Parameter(torch.randn(64, 128)) for _ in range(4)]
    for parameter in own[:3]:  # the last one was not reached
        parameter.grad = torch.randn_like(parameter)
    return own


def tensors(optimizer, own):
    return {
        (number, name): torch.as_tensor(value)
        for number, parameter in enumerate(own)
        for name, value in optimizer.state.get(parameter, {}).items()
    }


@pytest.mark.parametrize("kind", MAKES)
def test_an_update_after_a_failed_and_a_good_beginning_is_the_usual_one(kind, monkeypatch):
    expected = four_weights()
    usual = MAKES[kind](expected)
    usual.step()
    own = four_weights()
    optimizer = MAKES[kind](own)
    zeros_like, made = torch.zeros_like, []

    def full(*arguments, **options):
        made.append(1)
        if len(made) == 3:  # half of the states of a weight are made
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return zeros_like(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(torch, "zeros_like", full)
        assert not begin_states(optimizer) and len(made) == 3
    assert not any(optimizer.state.values())
    assert all(torch.equal(one, other) for one, other in zip(own, four_weights(), strict=True))
    assert begin_states(optimizer)
    ready = {id(value) for states in optimizer.state.values() for value in states.values() if torch.is_tensor(value)}
    assert ready and all(torch.equal(one, other) for one, other in zip(own, four_weights(), strict=True))
    optimizer.step()
    after = {id(value) for states in optimizer.state.values() for value in states.values() if torch.is_tensor(value)}
    assert after == ready, "the update has made no state of its own"
    assert all(torch.equal(one, other) for one, other in zip(own, expected, strict=True))
    found, wanted = tensors(optimizer, own), tensors(usual, expected)
    assert found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)


def full_card(times):
    """Fails so often where AdamW makes the states of a group, with one half made."""
    init_group, left = torch.optim.Adam._init_group, [times]

    def fails(optimizer, group, *lists):
        if left[0]:
            left[0] -= 1
            optimizer.state[group["params"][0]]["exp_avg"] = torch.zeros(1)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return init_group(optimizer, group, *lists)

    return fails


SHORT = (*QUICK, "training.max_steps=2", "training.eval_steps=1")


@pytest.mark.usefixtures("own_cache")
def test_states_and_validation_that_do_not_fit_at_first_change_nothing(base, tmp_path, monkeypatch, caplog):
    from fintune.inference.forward import EdgeModel

    straight = run(base, tmp_path / "straight", *SHORT)
    score, failed = EdgeModel.edge_log_probabilities, []

    def little(model, batch):
        if batch.real_tokens > 600:
            failed.append(batch.real_tokens)
            raise RuntimeError("CUDA error: out of memory")
        return score(model, batch)

    monkeypatch.setattr(torch.optim.AdamW, "_init_group", full_card(1))
    monkeypatch.setattr(EdgeModel, "edge_log_probabilities", little)
    disturbed = run(base, tmp_path / "disturbed", *SHORT)
    assert weights(disturbed) == weights(straight) and losses(disturbed) == losses(straight)
    found, wanted = (
        [row["eval_loss"] for row in metrics(outcome) if "eval_loss" in row] for outcome in (disturbed, straight)
    )
    assert len(found) == 2 and found == pytest.approx(wanted, rel=1e-5)
    assert "Step 1: the optimiser's states did not fit into memory; what can be is released." in caplog.messages
    said = [message for message in caplog.messages if message.startswith("Memory ran out while scoring")]
    assert failed and said and "at most" in said[0]


@pytest.mark.usefixtures("own_cache")
def test_an_update_without_memory_ends_in_words_and_leaves_what_was_saved(base, tmp_path, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(RunError) as caught:
        patched.setattr(torch.optim.AdamW, "_init_group", full_card(2))
        run(base, tmp_path / "states", *SHORT)
    assert "Step 1: the optimiser's states do not fit into memory" in caught.value.message
    assert "training.optimizer=paged_adamw_8bit" in caught.value.remedy
    step, done = torch.optim.AdamW.step, []

    def late(optimizer, *arguments):
        done.append(1)
        if len(done) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return step(optimizer, *arguments)

    with monkeypatch.context() as patched, pytest.raises(RunError) as caught:
        patched.setattr(torch.optim.AdamW, "step", late)
        run(base, tmp_path / "late", *QUICK)
    assert "Step 3 ran out of memory beside its forward and backward passes" in caught.value.message
    assert [(c.step, is_intact(c)) for c in list_checkpoints(tmp_path / "late" / "checkpoints")] == [(2, True)]
