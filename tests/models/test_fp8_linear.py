"""Models held in fp8, on the CPU, where the card's arithmetic is done in fp32."""

import numpy as np
import pytest
import torch
from tests.models.test_fast_layers import assert_equal, is_fast, loss_and_gradients

from fintune.inference.forward import EdgeModel
from fintune.inference.likelihood import choice_log_likelihoods
from fintune.models import attach_adapter, load_adapter, save_adapter, write_tiny_model
from fintune.models.fp8_linear import Fp8Linear
from fintune.schema.errors import AdapterError, ModelError
from fintune.schema.recipe import AdapterSection, ModelSection
from fintune.serving.predictor import load_predictor
from fintune.trees.chat import EncodedExample

CPU = torch.device("cpu")
LINEAR_LAYERS = 2 * 7


def ids(*shape):
    return torch.randint(3, 500, shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def adapted(load_tiny):
    base = load_tiny(quantization="fp8")
    model = attach_adapter(base, AdapterSection(rank=4), seed=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    return base, model


def fp8_layers(model):
    return [module for module in model.modules() if isinstance(module, Fp8Linear)]


def test_every_layer_but_the_head_is_held_in_a_byte_a_weight(load_tiny):
    plain, base = load_tiny(), load_tiny(quantization="fp8")
    layers = fp8_layers(base.model)
    assert len(layers) == LINEAR_LAYERS and base.quantization == "fp8"
    assert all(layer.weight.element_size() == 1 and not layer.weight.requires_grad for layer in layers)
    head = base.model.get_output_embeddings()
    assert type(head) is torch.nn.Linear and head.weight is base.model.get_input_embeddings().weight
    assert base.facts.parameters == plain.facts.parameters
    linear_bytes = sum(4 * layer.weight.numel() for layer in layers)
    scales = sum(4 * layer.out_features for layer in layers)
    assert base.facts.weight_bytes == plain.facts.weight_bytes - linear_bytes * 3 // 4 + scales


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_outputs_stay_near_those_of_the_unquantised_model(load_tiny, dtype):
    plain, base = load_tiny(), load_tiny(quantization="fp8", dtype=dtype)
    expected, found = plain.model(input_ids=ids(2, 20)).logits, base.model(input_ids=ids(2, 20)).logits.float()
    assert torch.nn.functional.cosine_similarity(expected, found, dim=-1).min() > 0.98
    assert not torch.equal(expected, found)


def test_biases_and_leading_dimensions_stay():
    linear = torch.nn.Linear(32, 48)
    held = Fp8Linear(linear, CPU)
    x = torch.randn(2, 3, 32, requires_grad=True)
    y = held(x)
    assert y.shape == (2, 3, 48) and (y - linear(x)).norm() < 0.05 * y.norm()
    assert torch.equal(held(torch.zeros(1, 32)), linear.bias[None])
    dy = torch.randn_like(y)
    found, expected = (torch.autograd.grad(layer(x), x, dy)[0] for layer in (held, linear))
    assert (found - expected).norm() < 0.06 * expected.norm()


def test_a_row_does_not_depend_on_its_company_nor_on_the_mode(load_tiny):
    model = load_tiny(quantization="fp8").model
    rows = ids(3, 16)
    alone = model(input_ids=rows[:1]).logits
    torch.testing.assert_close(model(input_ids=rows).logits[:1], alone, rtol=1e-4, atol=1e-4)
    assert torch.equal(model.train()(input_ids=rows[:1]).logits, alone)


@pytest.mark.parametrize("memory", ["keep", "recompute"])
def test_the_fast_path_equals_the_plain_path_but_for_roundings(adapted, memory):
    """Layers that share an input round their gradients by one scale here and by one each there."""
    _, model = adapted
    assert is_fast(model)
    found, expected = loss_and_gradients(model, fast=True, memory=memory), loss_and_gradients(model, fast=False)
    assert found[0] == pytest.approx(expected[0], rel=1e-3)
    for name, gradient in expected[1].items():
        assert (found[1][name] - gradient).norm() < 0.1 * gradient.norm(), name
    assert len(found[1]) == 2 * LINEAR_LAYERS


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("fast", [True, False])
def test_adapters_are_fp32_and_learn(load_tiny, fast, dtype):
    base = load_tiny(quantization="fp8", dtype=dtype)
    model = attach_adapter(base, AdapterSection(rank=4), seed=0).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32} and len(trained) == 2 * LINEAR_LAYERS
    frozen = [layer.weight.clone() for layer in fp8_layers(model)]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(4):
        loss, gradients = loss_and_gradients(model, fast=fast, dtype=base.dtype)
        for name, parameter in model.named_parameters():
            parameter.grad = gradients.get(name)
        optimizer.step()
        losses.append(loss)
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.98 * losses[0]
    assert all(torch.equal(layer.weight, before) for layer, before in zip(fp8_layers(model), frozen, strict=True))


def test_saved_and_loaded_again(adapted, load_tiny, tmp_path):
    base, model = adapted
    before = loss_and_gradients(model, fast=True)
    folder = save_adapter(model, base.tokenizer, tmp_path / "adapter", base.files)
    again = load_adapter(load_tiny(quantization="fp8"), folder)
    for name, parameter in again.named_parameters():
        parameter.requires_grad_("lora_" in name)
    assert_equal(loss_and_gradients(again, fast=True), before)
    EdgeModel(again, "sdpa").use_plain_attention()
    with torch.no_grad():
        unquantised = load_adapter(load_tiny(), folder)(input_ids=ids(1, 20)).logits
        held = again(input_ids=ids(1, 20)).logits
    assert torch.nn.functional.cosine_similarity(held, unquantised, dim=-1).min() > 0.95


@pytest.mark.parametrize("fast", [True, False])
def test_choices_are_scored(adapted, fast):
    _, model = adapted
    prompt, choices = np.arange(3, 15), (np.array([20, 21]), np.array([22]), np.array([20, 23, 2]))
    examples = [EncodedExample(np.append(prompt, 30 + i), choices[0], choices, False) for i in range(3)]
    trees, alone = (
        choice_log_likelihoods(
            EdgeModel(model.eval(), "sdpa", fast=fast), examples, tokens_per_batch=256, packing=packing
        )
        for packing in ("tree", "none")
    )
    np.testing.assert_allclose(trees, alone, atol=0.05)


def test_a_predictor_serves_it(adapted, tmp_path):
    base, model = adapted
    folder = save_adapter(model, base.tokenizer, tmp_path / "adapter", base.files)
    predictor = load_predictor(folder, device=CPU, quantization="fp8")
    (answer,) = predictor.predict(["Profit rose 12%."])
    assert sum(answer.probabilities.values()) == pytest.approx(1.0)


def test_training_all_weights_is_refused(load_tiny):
    with pytest.raises(AdapterError, match="held in fp8"):
        attach_adapter(load_tiny(quantization="fp8"), AdapterSection(kind="none"), seed=0)


def test_a_width_the_card_cannot_multiply_is_refused():
    with pytest.raises(ModelError, match="multiples of 16"):
        Fp8Linear(torch.nn.Linear(24, 32), CPU)


@pytest.mark.parametrize("safe", [False, True])
def test_merging_is_refused_in_words_before_anything_changes(adapted, safe):
    _, model = adapted
    before = [layer.weight.clone() for layer in fp8_layers(model)]
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ModelError, match="held in fp8"):
            merge(safe_merge=safe)
    assert all(torch.equal(layer.weight, own) for layer, own in zip(fp8_layers(model), before, strict=True))


def test_a_checkpoint_in_four_bits_is_not_held_in_fp8_as_well(load_tiny, tmp_path):
    load_tiny(quantization="nf4").model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="already quantised to nf4"):
        from fintune.models import load_base

        load_base(ModelSection(base=str(tmp_path), quantization="fp8"), device=CPU, for_training=True)


@pytest.mark.parametrize("family", ["mistral", "gemma2"])
def test_other_families(load_tiny, tmp_path, family):
    base = load_tiny(write_tiny_model(tmp_path, family), quantization="fp8")
    model = attach_adapter(base, AdapterSection(rank=4), seed=0)
    assert is_fast(model)
    found, expected = (loss_and_gradients(model, fast=fast)[0] for fast in (True, False))
    assert found == pytest.approx(expected, rel=2e-3)
