"""Adapters that start from earlier ones: random adapters under every rule, against PEFT's own forward pass."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tests.models.test_fast_layers import assert_fast_equals_plain

from fintune.models import attach_adapter, load_adapter, save_adapter
from fintune.models.adapters import peft_quiet, target_layers
from fintune.models.hand_over import start_adapter
from fintune.schema.errors import AdapterError
from fintune.schema.recipe import AdapterSection

# Sums over more or reordered ranks, in fp32: a few units in the last place of logits of size ten.
TOLERANCE = {"atol": 5e-6, "rtol": 2e-6}
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
X = torch.arange(3, 40)[None]
PARTS = [ATTENTION, ("q_proj", "down_proj"), "all-linear"]


def randomised(model, seed=5):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
            if "magnitude" in name:
                parameter.copy_(1 + parameter.abs())
    return model


@pytest.fixture
def earlier(load_tiny, tmp_path):
    """Saves a random adapter and returns its folder with the logits PEFT computes from the files."""

    def make(name="earlier", **section):
        base = load_tiny()
        model = randomised(attach_adapter(base, AdapterSection(**section), seed=0))
        folder = save_adapter(model, base.tokenizer, tmp_path / name, base.files)
        return folder, peft_logits(load_tiny, folder)

    return make


def peft_logits(load_tiny, folder):
    """The reference: the base and the files, with nothing of ours between them and PEFT."""
    with peft_quiet(), torch.no_grad():
        return PeftModel.from_pretrained(load_tiny().model, str(folder)).eval()(input_ids=X).logits


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=X).logits


@pytest.mark.parametrize("new_rslora", [False, True])
@pytest.mark.parametrize("old_rslora", [False, True])
@pytest.mark.parametrize("targets", PARTS)
def test_pad_keeps_the_outputs_and_lets_everything_learn(load_tiny, earlier, targets, old_rslora, new_rslora):
    folder, expected = earlier(rank=3, alpha=7, targets=targets, rslora=old_rslora)
    section = AdapterSection(
        rank=5, alpha=16, rslora=new_rslora, init_adapter=str(folder), hand_over="pad", dropout=0.1
    )
    started = start_adapter(load_tiny(), section, seed=3)
    torch.testing.assert_close(logits(started.model), expected, **TOLERANCE)
    assert started.frozen is None and not torch.allclose(logits(load_tiny().model), expected, **TOLERANCE)
    loss = started.model(input_ids=X, labels=X).loss
    loss.backward()
    for name, parameter in started.model.named_parameters():
        if "lora_B" in name:
            assert (parameter.grad.abs().sum(0) > 0).all(), "every new column of B has a gradient"
        if "lora_A" in name:
            assert (parameter.abs().sum(1) > 0).all(), "and the rows of A that it belongs to are not zero"


@pytest.mark.parametrize("new_rslora", [False, True])
@pytest.mark.parametrize("old_rslora", [False, True])
@pytest.mark.parametrize(("before", "after"), [*((part, "all-linear") for part in PARTS), ("all-linear", ATTENTION)])
def test_stack_keeps_the_outputs_as_one_ordinary_adapter(
    load_tiny, earlier, tmp_path, before, after, old_rslora, new_rslora
):
    folder, expected = earlier(rank=3, alpha=7, targets=before, rslora=old_rslora)
    section = AdapterSection(
        rank=2, alpha=5, targets=after, rslora=new_rslora, init_adapter=str(folder), hand_over="stack"
    )
    base = load_tiny()
    started = start_adapter(base, section, seed=3)
    torch.testing.assert_close(logits(started.model), expected, **TOLERANCE)
    saved = save_adapter(started.model, base.tokenizer, tmp_path / "stacked", base.files)
    torch.testing.assert_close(peft_logits(load_tiny, saved), expected, **TOLERANCE)
    old, new = (set(target_layers(load_tiny().model, AdapterSection(targets=targets))) for targets in (before, after))
    for name in old | new:
        module = started.model.get_base_model().get_submodule(name)
        assert len(module.lora_A["default"].weight) == 3 * (name in old) + 2 * (name in new)
        assert module.scaling["default"] == pytest.approx(5 / (2**0.5 if new_rslora else 2), rel=1e-15)
    assert not torch.equal(logits(randomised(load_adapter(load_tiny(), saved))), expected)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_stacked_part_does_not_move_by_a_bit_and_the_rest_learns(load_tiny, earlier, optimizer):
    folder, _ = earlier(rank=3, alpha=7, targets=ATTENTION)
    section = AdapterSection(rank=2, alpha=5, init_adapter=str(folder), hand_over="stack")
    started = start_adapter(load_tiny(), section, seed=3)
    before = {name: p.detach().clone() for name, p in started.model.named_parameters() if p.requires_grad}
    trained = [p for p in started.model.parameters() if p.requires_grad]
    kind = torch.optim.AdamW if optimizer == "adamw" else torch.optim.SGD
    update = kind(trained, lr=0.1, weight_decay=0.3)
    started.model.train()
    for _ in range(3):
        update.zero_grad()
        started.model(input_ids=X, labels=X).loss.backward()
        started.frozen.drop_gradients()
        for parameter, axis, kept in started.frozen.matrices:
            assert not parameter.grad.narrow(axis, 0, kept.shape[axis]).any(), "no part in the norm"
        update.step()
        started.frozen.restore()
    for name, parameter in started.model.named_parameters():
        if not parameter.requires_grad:
            continue
        axis = 0 if "lora_A" in name else 1
        taken = 3 if any(target in name for target in ATTENTION) else 0
        assert torch.equal(parameter.narrow(axis, 0, taken), before[name].narrow(axis, 0, taken))
        assert not torch.equal(parameter, before[name]), name
    layers = target_layers(load_tiny().model, AdapterSection(targets=ATTENTION))
    shapes = [load_tiny().model.get_submodule(name).weight.shape for name in layers]
    assert started.frozen.parameters == sum(3 * (n_out + n_in) for n_out, n_in in shapes)


def test_stack_upon_stack_and_pad_upon_stack(load_tiny, earlier, tmp_path):
    folder, expected = earlier(rank=3, alpha=7, targets=("q_proj", "down_proj"))
    section = AdapterSection(rank=2, alpha=5, targets=ATTENTION, init_adapter=str(folder), hand_over="stack")
    base = load_tiny()
    twice = save_adapter(start_adapter(base, section, seed=3).model, base.tokenizer, tmp_path / "twice", base.files)
    config = json.loads((twice / "adapter_config.json").read_text())
    assert (config["r"], config["rank_pattern"]) == (2, {"q_proj": 5, "down_proj": 3})
    for rule, targets in (("stack", "all-linear"), ("pad", "all-linear")):
        third = AdapterSection(rank=6, alpha=5, targets=targets, init_adapter=str(twice), hand_over=rule)
        torch.testing.assert_close(logits(start_adapter(load_tiny(), third, seed=4).model), expected, **TOLERANCE)
    with pytest.raises(AdapterError, match="rank") as caught:
        start_adapter(load_tiny(), AdapterSection(rank=5, targets="all-linear", init_adapter=str(twice)), seed=4)
    assert all(rule in caught.value.remedy for rule in ("pad", "stack", "merge"))


def test_layers_of_one_kind_with_different_ranks_are_named_in_full(load_tiny, earlier, tmp_path):
    folder, expected = earlier(rank=3, alpha=7, targets=("layers.0.self_attn.q_proj", "down_proj"))
    section = AdapterSection(rank=2, alpha=5, targets=("q_proj",), init_adapter=str(folder), hand_over="stack")
    base = load_tiny()
    saved = save_adapter(start_adapter(base, section, seed=3).model, base.tokenizer, tmp_path / "out", base.files)
    config = json.loads((saved / "adapter_config.json").read_text())
    assert "model.layers.0.self_attn.q_proj" in config["target_modules"] and "down_proj" in config["target_modules"]
    torch.testing.assert_close(peft_logits(load_tiny, saved), expected, **TOLERANCE)


def test_without_a_rule_an_equal_adapter_goes_on_in_the_same_bits(load_tiny, earlier):
    folder, expected = earlier(rank=3, alpha=7, targets=ATTENTION)
    section = AdapterSection(rank=3, alpha=7, targets=ATTENTION, init_adapter=str(folder))
    assert torch.equal(logits(start_adapter(load_tiny(), section, seed=3).model), expected)
    for change in ({"rank": 4}, {"targets": "all-linear"}, {"rslora": True}, {"dora": True}):
        with pytest.raises(AdapterError, match=f"{next(iter(change))} differ") as caught:
            start_adapter(load_tiny(), section.model_copy(update=change), seed=3)
        assert all(rule in caught.value.remedy for rule in ("pad", "stack", "merge"))


def test_dora_is_padded_and_not_stacked(load_tiny, earlier):
    folder, expected = earlier(rank=3, alpha=7, targets=ATTENTION, dora=True)
    section = AdapterSection(rank=4, alpha=9, dora=True, init_adapter=str(folder), hand_over="pad")
    torch.testing.assert_close(logits(start_adapter(load_tiny(), section, seed=3).model), expected, **TOLERANCE)
    for dora in (True, False):
        with pytest.raises(AdapterError, match="cannot hold DoRA"):
            refused = section.model_copy(update={"hand_over": "stack", "dora": dora})
            start_adapter(load_tiny(), refused, seed=3)
    with pytest.raises(AdapterError, match="cannot switch DoRA"):
        start_adapter(load_tiny(), section.model_copy(update={"dora": False}), seed=3)


def test_pad_refuses_what_would_be_lost(load_tiny, earlier):
    folder, _ = earlier(rank=3, alpha=7, targets=ATTENTION)
    section = AdapterSection(rank=4, targets=("q_proj", "k_proj"), init_adapter=str(folder), hand_over="pad")
    with pytest.raises(AdapterError, match="cannot drop the targets o_proj, v_proj"):
        start_adapter(load_tiny(), section, seed=3)
    with pytest.raises(AdapterError, match="cannot shrink rank 3 to 2"):
        start_adapter(load_tiny(), section.model_copy(update={"rank": 2, "targets": "all-linear"}), seed=3)


def test_alpha_alone_may_change_without_a_rule(load_tiny, earlier):
    folder, expected = earlier(rank=3, alpha=7)
    section = AdapterSection(rank=3, alpha=30, init_adapter=str(folder))
    model = start_adapter(load_tiny(), section, seed=3).model
    torch.testing.assert_close(logits(model), expected, **TOLERANCE)
    assert model.get_base_model().model.layers[0].self_attn.q_proj.scaling["default"] == 10


def test_foreign_patterns_of_rank_and_alpha_are_understood(load_tiny, tmp_path):
    options = {"rank_pattern": {"q_proj": 5}, "alpha_pattern": {"v_proj": 9}}
    config = LoraConfig(r=3, lora_alpha=7, target_modules=list(ATTENTION), task_type="CAUSAL_LM", **options)
    base = load_tiny()
    with peft_quiet():
        model = randomised(get_peft_model(base.model, config))
    folder = save_adapter(model, base.tokenizer, tmp_path / "foreign", base.files)
    expected = peft_logits(load_tiny, folder)
    for rule in ("pad", "stack"):
        section = AdapterSection(rank=6, alpha=4, init_adapter=str(folder), hand_over=rule)
        torch.testing.assert_close(logits(start_adapter(load_tiny(), section, seed=3).model), expected, **TOLERANCE)


@pytest.mark.parametrize("targets", ["all-linear", ATTENTION, ("layers.1.mlp.up_proj",), ("o_proj", "gate_proj")])
def test_the_layers_meant_are_those_that_peft_wraps(load_tiny, targets):
    section = AdapterSection(targets=targets)
    model = attach_adapter(load_tiny(), section, seed=0)
    wrapped = {name for name, module in model.get_base_model().named_modules() if hasattr(module, "lora_A")}
    assert set(target_layers(load_tiny().model, section)) == wrapped


def test_all_weights_go_on(load_tiny, tmp_path):
    base = load_tiny()
    model = attach_adapter(base, AdapterSection(kind="none"), seed=0)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1.5)
    folder = save_adapter(model, base.tokenizer, tmp_path / "whole", base.files)
    started = start_adapter(load_tiny(), AdapterSection(kind="none", init_adapter=str(folder)), seed=0)
    assert torch.equal(logits(started.model), logits(model))
    with pytest.raises(AdapterError, match="kind=lora cannot start from an adapter of kind=none"):
        start_adapter(load_tiny(), AdapterSection(init_adapter=str(folder)), seed=0)


def test_a_stacked_adapter_runs_on_the_fast_path(load_tiny, earlier):
    folder, _ = earlier(rank=3, alpha=7, targets=ATTENTION)
    section = AdapterSection(rank=2, alpha=5, init_adapter=str(folder), hand_over="stack")
    started = start_adapter(load_tiny(), section, seed=3)
    assert_fast_equals_plain(started.model.train())
