"""Products in bf16 in a model that computes in fp32, and adapters added to its weights for labelling."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.models.test_fast_layers import is_fast, random_base, with_adapter

import fintune
from fintune.inference.forward import EdgeModel
from fintune.inference.likelihood import choice_log_likelihoods
from fintune.models import attach_adapter, save_adapter
from fintune.models.bf16_linear import Bf16Linear, multiplies_in_bf16, multiply_in_bf16, require_bf16_products
from fintune.schema.errors import ModelError
from fintune.schema.recipe import AdapterSection
from fintune.serving.posed import Posed
from fintune.serving.predictor import load_predictor
from fintune.trees.chat import EncodedExample

CPU = torch.device("cpu")
LINEAR_LAYERS = 2 * 7
TEXTS = ["Profit rose 12%.", "Sales fell.", "The board met on Monday in Espoo."]


@pytest.fixture
def adapted(load_tiny):
    base = load_tiny()
    model = attach_adapter(base, AdapterSection(rank=4), seed=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    return base, model.eval()


@pytest.fixture
def adapter(adapted, tmp_path):
    base, model = adapted
    return save_adapter(model, base.tokenizer, tmp_path / "adapter", base.files)


def probabilities(predictor):
    return np.array([list(found.probabilities.values()) for found in predictor.predict(TEXTS)])


def test_every_layer_but_the_head_and_the_adapters_multiplies_in_bf16(adapted):
    _, model = adapted
    multiply_in_bf16(model)
    layers = [module for module in model.modules() if isinstance(module, Bf16Linear)]
    assert len(layers) == LINEAR_LAYERS and all(layer.weight.dtype == torch.bfloat16 for layer in layers)
    others = [p for p in model.parameters() if not any(p is layer.weight for layer in layers)]
    assert {p.dtype for p in others} == {torch.float32} and len(others) >= 2 * LINEAR_LAYERS


@pytest.mark.parametrize("options", [{"modules_to_save": ["lm_head"]}, {"target_modules": ["q_proj", "lm_head"]}])
def test_a_head_with_an_adapter_stays_as_it_is(options):
    model = with_adapter(random_base(), **{"targets": ["q_proj"], **options}).eval()
    multiply_in_bf16(model)
    rounded = [name for name, module in model.named_modules() if isinstance(module, Bf16Linear)]
    assert len(rounded) == 3 * 7 and not any("lm_head" in name for name in rounded)


def test_biases_and_leading_dimensions_stay():
    linear, x = torch.nn.Linear(8, 5), torch.randn(2, 3, 8)
    y = Bf16Linear(linear)(x)
    assert y.dtype == torch.float32 and y.shape == (2, 3, 5) and not torch.equal(y, linear(x))
    torch.testing.assert_close(y, linear(x), rtol=0.02, atol=0.02)
    assert torch.equal(Bf16Linear(linear)(torch.zeros(1, 8)), linear.bias[None])


def test_trees_by_our_kernels_equal_padded_rows_by_the_plain_path(adapted):
    _, model = adapted
    choices = (np.array([20, 21]), np.array([22]), np.array([20, 23, 2]))
    examples = [EncodedExample(np.append(np.arange(3, 15), 30 + i), choices[0], choices, False) for i in range(3)]

    def scores(fast, packing):
        edge = EdgeModel(model, "sdpa", fast=fast)
        return np.array(choice_log_likelihoods(edge, examples, tokens_per_batch=256, packing=packing))

    exact = scores(True, "tree")
    multiply_in_bf16(model)
    assert is_fast(model)
    found = scores(True, "tree")
    # fp32 sums in another order may round to the other bf16 neighbour.
    np.testing.assert_allclose(found, scores(False, "none"), atol=0.02)
    gap = np.abs(found - exact).max()
    assert 0 < gap < 0.1


def test_an_adapter_added_to_the_weights_answers_as_beside_them(adapter):
    beside, merged = (load_predictor(adapter, device=CPU, merge=merge) for merge in (False, True))
    assert hasattr(beside.scorer.model.model, "peft_config") and not hasattr(merged.scorer.model.model, "peft_config")
    np.testing.assert_allclose(probabilities(merged), probabilities(beside), atol=1e-5)
    assert merged.identity != beside.identity, "their last bits differ, so neither goes on with the work of the other"


def test_files_are_labelled_with_a_merged_adapter_and_texts_with_one_that_can_be_switched(adapter):
    labeller = Posed(str(adapter), device="cpu").open().labeller
    assert not hasattr(labeller.scorer.model.model, "peft_config")
    assert hasattr(fintune.load(adapter, device="cpu").scorer.model.model, "peft_config")


def test_an_adapter_on_four_bits_stays_beside_them(adapter):
    predictor = load_predictor(adapter, device=CPU, quantization="nf4", merge=True)
    assert hasattr(predictor.scorer.model.model, "peft_config")


def test_a_predictor_in_bf16_products_is_near_and_is_told_apart(adapter, monkeypatch):
    monkeypatch.setattr("fintune.models.bf16_linear.multiplies_in_bf16", lambda capabilities: True)
    plain, rounded = (load_predictor(adapter, device=CPU, bf16_products=asked) for asked in (False, True))
    gap = np.abs(probabilities(rounded) - probabilities(plain)).max()
    assert 0 < gap < 0.05
    assert rounded.fingerprint(None) != plain.fingerprint(None)
    assert replace(rounded, identity=plain.identity).fingerprint(None) == plain.fingerprint(None)


@pytest.mark.parametrize(
    ("device", "dtype", "quantization", "named"),
    [
        ("cuda", torch.float32, "none", "float32 on cuda"),
        ("cpu", torch.bfloat16, "none", "bfloat16 on cpu"),
        ("cpu", torch.float32, "nf4", "nf4 on cpu"),
    ],
)
def test_what_they_are_not_for_is_refused(device, dtype, quantization, named):
    with pytest.raises(ModelError, match=named):
        require_bf16_products(torch.device(device), dtype, quantization)


def test_a_processor_without_the_instructions_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": False, "amx_bf16": False})
    with pytest.raises(ModelError, match="no instructions"):
        require_bf16_products(CPU, torch.float32, "none")
    assert multiplies_in_bf16({"avx512_bf16": True}) and multiplies_in_bf16({"amx_bf16": True})


def test_several_adapters_on_one_base_are_refused(adapter):
    with pytest.raises(ModelError, match="several"):
        fintune.load("base", adapters={"one": adapter}, bf16_products=True)
