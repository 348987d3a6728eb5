"""Losses from hidden states against losses from whole logits, through the same model."""

from __future__ import annotations

import logging

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.inference.test_equality import (
    GRADIENT_TOLERANCE,
    LOSS_TOLERANCE,
    gradients,
    shared_prompt_samples,
    with_random_adapter,
)
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from fintune.inference import heads
from fintune.inference.forward import EdgeModel
from fintune.inference.heads import find_head, head_replaced
from fintune.models.adapters import peft_quiet
from fintune.models.tiny import write_tiny_model
from fintune.schema.errors import InternalError
from fintune.trees.packing import Batch
from fintune.trees.plan import make_step

PACKINGS = ("tree", "sequence", "none")
SHAPE = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attention_dropout": 0.0,
    "residual_dropout": 0.0,
    "resid_pdrop": 0.0,
}


def random_model(kind, **more):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SHAPE, **more)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@pytest.fixture(params=["llama", "gemma2", "qwen2"])
def base(request, tmp_path):
    return write_tiny_model(tmp_path / request.param, request.param)


def cap(model, bound):
    if hasattr(model.config, "final_logit_softcapping"):
        model.config.final_logit_softcapping = bound
    return model


def first_batch(packing: str = "tree", samples=None) -> Batch:
    return make_step(samples or shared_prompt_samples(), packing, 10_000).batches[0]


def assert_fused_equals_plain(model, packings=PACKINGS):
    samples = shared_prompt_samples()
    fused, plain = EdgeModel(model, "sdpa", fast=True), EdgeModel(model, "sdpa", fast=False)
    assert fused.output_head() is not None and plain.output_head() is None
    for packing in packings:
        ours, twin = gradients(fused, samples, packing), gradients(plain, samples, packing)
        assert ours[0] == pytest.approx(twin[0], abs=LOSS_TOLERANCE)
        for name, expected in twin[1].items():
            assert (ours[1][name] - expected).norm() <= GRADIENT_TOLERANCE * expected.norm() + 1e-9, name
        batch = first_batch(packing)
        torch.testing.assert_close(
            fused.edge_log_probabilities(batch), plain.edge_log_probabilities(batch), rtol=0, atol=1e-5
        )
        for a, b in zip(fused.loss_by_edge(batch), plain.loss_by_edge(batch), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-5)


def test_an_adapter_gets_the_same_gradients(base):
    assert_fused_equals_plain(cap(with_random_adapter(base), 2.0))  # a cap low enough to matter


def test_all_weights_get_the_same_gradients_tied_head_included(base):
    model = cap(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), 2.0)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert_fused_equals_plain(model)


@pytest.mark.parametrize("kind", sorted(heads._PLAIN_HEADS))
def test_every_architecture_named_has_a_plain_head(kind):
    assert_fused_equals_plain(random_model(kind), ("none",))


@pytest.mark.parametrize(("kind", "setting"), [("granite", {"logits_scaling": 3.0}), ("cohere", {"logit_scale": 0.25})])
def test_architectures_that_scale_logits_take_the_plain_path_and_say_so_once(kind, setting, caplog):
    heads.say_plain.cache_clear()
    model = random_model(kind, **setting)
    batch = first_batch()
    with caplog.at_level(logging.INFO, "fintune.inference.heads"):
        losses = [EdgeModel(model, "sdpa", fast=fused).loss_sum(batch) for fused in (True, True, False)]
    assert losses[0] == losses[1] == losses[2]
    assert [record.getMessage() for record in caplog.records] == [
        f"The loss is computed from whole logits: {type(model).__name__} may change its logits after the head."
    ]


def test_a_head_with_an_adapter_of_its_own_takes_the_plain_path():
    model = random_model("llama")
    with peft_quiet():
        adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM"))
    nn.init.normal_(adapted.get_base_model().lm_head.lora_B["default"].weight)
    fused, plain = (EdgeModel(adapted, "sdpa", fast=fused) for fused in (True, False))
    assert fused.output_head() is None
    ours, twin = (gradients(one, shared_prompt_samples(), "tree") for one in (fused, plain))
    assert ours[0] == twin[0] and any("lm_head" in name for name in ours[1])


def test_a_hooked_or_foreign_head_is_left_alone():
    model = random_model("llama")
    handle = model.lm_head.register_forward_hook(lambda module, inputs, output: output * 2)
    assert "hooked" in str(find_head(model))
    handle.remove()
    assert not isinstance(find_head(model), str)

    class Tampered(type(model)):
        """A class of the same architecture that is not the library's own."""

    assert "may change its logits" in str(find_head(Tampered(model.config)))


class Wrapper(nn.Module):
    """Calls the module it holds, as DDP does, and counts."""

    def __init__(self, module):
        super().__init__()
        self.module, self.calls = module, 0

    def forward(self, **inputs):
        self.calls += 1
        return self.module(**inputs)


def test_a_wrapped_model_is_called_through_its_wrapper(base):
    model = with_random_adapter(base)
    wrapper = Wrapper(model)
    edge_model = EdgeModel(model, "sdpa", fast=True)
    for packing in PACKINGS:
        batch = first_batch(packing)
        torch.testing.assert_close(edge_model.loss_sum(batch, wrapper), edge_model.loss_sum(batch))
    assert wrapper.calls == len(PACKINGS)


class CallsTwice(Wrapper):
    def forward(self, **inputs):
        super().forward(**inputs)
        return super().forward(**inputs)


def test_a_head_called_twice_is_an_error_and_everything_is_put_back(base):
    model = cap(with_random_adapter(base), 7.0)
    edge_model = EdgeModel(model, "sdpa", fast=True)
    with pytest.raises(InternalError, match="called 2 times"):
        edge_model.loss_sum(first_batch(), CallsTwice(model))
    unwrapped = model.get_base_model()
    assert "forward" not in vars(unwrapped.get_output_embeddings())
    assert getattr(unwrapped.config, "final_logit_softcapping", 7.0) == 7.0


def test_the_cap_comes_back_after_an_error():
    model = random_model("gemma2")
    head = find_head(model)
    assert not isinstance(head, str)
    with pytest.raises(ZeroDivisionError), head_replaced(head, lambda hidden: hidden):
        assert model.config.final_logit_softcapping is None
        raise ZeroDivisionError
    assert model.config.final_logit_softcapping == head.linear().softcap == 30.0
    logits = model(input_ids=torch.tensor([[5, 6]])).logits
    assert logits.shape == (1, 2, 512)


def test_bf16_stays_close_to_fp32(base):
    model = with_random_adapter(base)
    samples = shared_prompt_samples()
    exact = gradients(EdgeModel(model, "sdpa", fast=True), samples, "tree")
    whole = torch.stack([g.norm() for g in exact[1].values()]).norm()
    for fused in (True, False):
        half = gradients(EdgeModel(model, "sdpa", torch.bfloat16, fast=fused), samples, "tree")
        assert half[0] == pytest.approx(exact[0], rel=2e-2)
        distance = torch.stack([(half[1][name] - g).norm() for name, g in exact[1].items()]).norm()
        assert distance < 6e-2 * whole


def test_a_batch_without_edges_or_without_weight_gives_zero(base):
    model = EdgeModel(with_random_adapter(base), "sdpa", fast=True)
    filler = first_batch().as_filler()
    loss = model.loss_sum(filler)
    loss.backward()
    assert loss == 0 and all(p.grad is None or not p.grad.any() for p in model.model.parameters())


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2), (torch.float16, 1e-2)])
def test_fused_equals_plain_on_a_gpu(base, dtype, tolerance):
    model = cap(with_random_adapter(base), 2.0).cuda()
    for packing in PACKINGS:
        found = []
        for fused in (True, False):
            edge_model = EdgeModel(model, "sdpa", dtype, fast=fused)
            model.zero_grad()
            loss = edge_model.loss_sum(first_batch(packing).to(torch.device("cuda")))
            loss.backward()
            found.append((loss.item(), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
        assert found[0][0] == pytest.approx(found[1][0], rel=tolerance)
        distance = torch.stack([(a - b).norm() for a, b in zip(found[0][1], found[1][1], strict=True)]).norm()
        assert distance < tolerance * torch.stack([b.norm() for b in found[1][1]]).norm()
