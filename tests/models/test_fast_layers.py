"""Decoder layers run by our own kernels against the same model run by transformers and peft."""

import copy
import logging
import pickle

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file
from tests.trees.samples import sample
from transformers import AutoConfig, AutoModelForCausalLM

from fintune.inference.forward import EdgeModel
from fintune.inference.generate import generate
from fintune.kernels import decoder_layer
from fintune.kernels.frozen_weight import Nf4Weight
from fintune.models import attach_adapter, fast_layers, load_adapter, save_adapter
from fintune.models.adapters import peft_quiet
from fintune.models.fast_layers import FastLayers
from fintune.schema.recipe import AdapterSection
from fintune.training.run import recompute_layers
from fintune.trees.packing import pack_samples

LOSS_TOLERANCE = 1e-5
SHAPE = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.1,
    "attention_dropout": 0.0,
}
FAMILIES = {
    "llama": {},
    "mistral": {"sliding_window": 7},
    "qwen2": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "qwen3": {},
    "gemma": {},
    "gemma2": {"sliding_window": 5, "query_pre_attn_scalar": 16},
    "gemma3_text": {"sliding_window": 5, "query_pre_attn_scalar": 16},
}
EVERY, TWO, ENDS = "all-linear", ["q_proj", "v_proj"], ["o_proj", "down_proj"]


def random_base(family="llama", **more):
    torch.manual_seed(0)
    shape = {**SHAPE, **FAMILIES.get(family, {}), **more}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **shape), dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms and biases, which start as ones and zeros
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.requires_grad_(False)


def with_adapter(base, targets=EVERY, **options):
    torch.manual_seed(1)
    options = {"r": 4, "lora_alpha": 8, "init_lora_weights": False, "target_modules": targets, **options}
    with peft_quiet():
        return get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **options))


@pytest.fixture
def model():
    return with_adapter(random_base())


def tree_batch(prompts=2):
    """Samples of which some share a prompt, a duplicate among them."""
    generator = np.random.default_rng(0)
    samples = []
    for prompt in range(prompts):
        head = generator.integers(3, 128, 9).tolist()
        for own in (0, 1, 8, 14):
            tokens = [*head[: 4 + own % 6], *generator.integers(3, 128, own).tolist()]
            samples.append(sample(tokens, len(tokens) // 2, 4 * prompt + own))
    samples.append(samples[-1])
    (batch,) = pack_samples(samples, "tree", 1000)
    assert len(batch) < sum(len(one.tokens) for one in samples)
    return batch


def loss_and_gradients(model, *, fast, memory="keep", whole_layers=0, dtype=torch.float32):
    edge_model = EdgeModel(model, "sdpa", dtype, fast=fast)
    edge_model.memory, edge_model.whole_layers = memory, whole_layers
    model.zero_grad()
    loss = edge_model.loss_sum(tree_batch().to(edge_model.device))
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return loss.item(), gradients


def is_fast(model, dtype=torch.float32):
    return isinstance(fast_layers.fast_layers(model, dtype), FastLayers)


def reason(model, dtype=torch.float32):
    found = fast_layers.fast_layers(model, dtype)
    assert isinstance(found, str), "the model runs on the fast path"
    return found


def assert_equal(found, expected):
    assert found[0] == pytest.approx(expected[0], rel=LOSS_TOLERANCE)
    assert found[1].keys() == expected[1].keys() and expected[1]
    whole = torch.stack([g.norm() for g in expected[1].values()]).norm()
    for name, gradient in expected[1].items():
        # A gradient that vanishes by symmetry is pure rounding, so it is compared with the whole instead.
        assert (found[1][name] - gradient).norm() <= max(1e-4 * gradient.norm(), 1e-6 * whole), name


def assert_fast_equals_plain(model, **options):
    assert is_fast(model)
    assert_equal(loss_and_gradients(model, fast=True, **options), loss_and_gradients(model, fast=False))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("targets", [EVERY, TWO, ENDS], ids=["all-linear", "q and v", "o and down"])
@pytest.mark.parametrize("family", FAMILIES)
def test_fast_equals_plain(family, targets, training):
    model = with_adapter(random_base(family), targets).train(training)
    assert_fast_equals_plain(model)
    assert_fast_equals_plain(model, memory="recompute")


@pytest.mark.parametrize("memory", ["recompute", "offload"])
def test_the_last_layers_keep_everything_where_there_is_room(model, monkeypatch, memory):
    kept, layer = [], fast_layers.decoder_layer

    def noted(h, own, given, attend):
        kept.append(given.keep_mlp)
        return layer(h, own, given, attend)

    monkeypatch.setattr(fast_layers, "decoder_layer", noted)
    assert_fast_equals_plain(model, memory=memory, whole_layers=1)
    assert kept == [False] * (len(kept) - 1) + [True] and len(kept) > 1


def test_the_next_layer_is_unpacked_ahead_forward_and_backward(model, monkeypatch):
    ahead = []
    monkeypatch.setattr(decoder_layer, "unpack_ahead", lambda dtype, gate_up, down: ahead.append((gate_up, down)))
    assert_fast_equals_plain(model, memory="recompute")
    layers = fast_layers.fast_layers(model, torch.float32).layers
    weights = [(layer.gate_up.weight, layer.down.weight) for layer in layers]
    assert len(weights) > 1 and ahead == [*weights, *weights[-2::-1]]
    ahead.clear()
    assert_fast_equals_plain(model, memory="keep")
    assert not ahead


def count_runs(monkeypatch):
    """A list to which every layer that runs on the fast path will add its number."""
    runs, run = [], FastLayers.run

    def counted(self, call, index, *given, **named):
        runs.append(index)
        return run(self, call, index, *given, **named)

    monkeypatch.setattr(FastLayers, "run", counted)
    return runs


def test_the_comparison_would_notice_layers_that_are_not_run(model, monkeypatch):
    runs = count_runs(monkeypatch)
    loss_and_gradients(model, fast=False)
    assert runs == []
    loss_and_gradients(model, fast=True)
    assert runs == [0, 1, 2]


@pytest.mark.parametrize(
    "options", [{"use_rslora": True}, {"rank_pattern": {"k_proj": 9}, "alpha_pattern": {"q_proj": 3}}]
)
def test_scales_and_ranks_of_their_own(options):
    assert_fast_equals_plain(with_adapter(random_base("qwen2"), **options))


def test_trained_embeddings_below_the_first_layer():
    model = with_adapter(random_base(tie_word_embeddings=False))
    model.get_input_embeddings().weight.requires_grad_(True)
    assert_fast_equals_plain(model)


def test_a_frozen_adapter_gets_no_gradient(model):
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name and "layers.1" in name)
    assert_fast_equals_plain(model)


@pytest.mark.parametrize("memory", ["keep", "recompute"])
def test_nf4(load_tiny, memory):
    model = attach_adapter(load_tiny(quantization="nf4"), AdapterSection(rank=4), seed=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    assert_fast_equals_plain(model.train(), memory=memory)


def test_weights_are_held_ready_for_training_alone(load_tiny):
    model = attach_adapter(load_tiny(quantization="nf4"), AdapterSection(rank=4), seed=0)
    expected = loss_and_gradients(model, fast=True)
    assert_equal(loss_and_gradients(model, fast=True, memory="ready"), expected)
    held = fast_layers.fast_layers(model, torch.float32).layers[0].qkv.weight
    assert held.ready is not None
    with torch.no_grad():
        EdgeModel(model, "sdpa").loss_sum(tree_batch())
    assert held.ready is not None, "an evaluation between two steps leaves them"
    EdgeModel(model, "sdpa").end_training()
    assert held.ready is None and not model.training
    assert_equal(loss_and_gradients(model, fast=True), expected)


def test_weights_are_let_go_of_where_memory_ends_while_they_are_made_ready(load_tiny, monkeypatch):
    model = attach_adapter(load_tiny(quantization="nf4"), AdapterSection(rank=4), seed=0)
    expected = loss_and_gradients(model, fast=True)
    layers = fast_layers.fast_layers(model, torch.float32).layers
    weights = [group.weight for layer in layers for group in layer.groups]
    hold = Nf4Weight.hold_ready

    def ends(weight, dtype):
        if weight is weights[-1]:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        hold(weight, dtype)

    monkeypatch.setattr(Nf4Weight, "hold_ready", ends)
    with pytest.raises(torch.OutOfMemoryError):
        loss_and_gradients(model, fast=True, memory="ready")
    assert all(weight.ready is None for weight in weights)
    assert_equal(loss_and_gradients(model, fast=True), expected)


# -- on the plain path -----------------------------------------------------------------------------


def several_adapters(model):
    model.add_adapter("second", LoraConfig(r=2, target_modules=TWO, task_type="CAUSAL_LM", init_lora_weights=False))
    model.base_model.set_adapter(["default", "second"])
    return model


def hooked(model, name):
    model.get_submodule(name).register_forward_hook(lambda module, inputs, output: None)
    return model


LAYER = "base_model.model.model.layers.1"
PLAIN = {
    "DoRA": (lambda: with_adapter(random_base(), use_dora=True), "DoRA"),
    "several adapters": (lambda: several_adapters(with_adapter(random_base())), "several adapters"),
    "all weights": (lambda: random_base().requires_grad_(True), "all its weights are trained"),
    "norms": (lambda: norms_trained(with_adapter(random_base())), "frozen RMSNorm"),
    "family": (lambda: with_adapter(random_base("phi3"), ["qkv_proj"]), "Phi3DecoderLayer"),
    "hook on a layer": (lambda: hooked(with_adapter(random_base()), LAYER), "hooks"),
    "hook on a part": (lambda: hooked(with_adapter(random_base()), f"{LAYER}.mlp.act_fn"), "hooks"),
    "hook in an adapter": (lambda: hooked(with_adapter(random_base()), f"{LAYER}.mlp.up_proj.lora_A.default"), "hooks"),
    "activation": (lambda: with_adapter(random_base(hidden_act="relu")), "neither SiLU nor GELU"),
    "bias of an adapter": (lambda: with_adapter(random_base("qwen2"), TWO, lora_bias=True), "biases"),
}


def norms_trained(model):
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad or "norm" in name)
    return model


@pytest.mark.parametrize(("build", "because"), PLAIN.values(), ids=PLAIN)
def test_what_the_kernels_do_not_know_runs_plainly_and_is_said_once(build, because, caplog):
    model = build()
    fast_layers.say_plain.cache_clear()
    with caplog.at_level(logging.INFO, "fintune.models.fast_layers"):
        found = [loss_and_gradients(model, fast=fast) for fast in (True, True, False)]
    assert_equal(found[0], found[2])
    assert [because in record.getMessage() for record in caplog.records] == [True]
    assert "runs on the plain path" in caplog.text and ".." not in caplog.text


def test_int8_runs_plainly(load_tiny):
    assert "Linear8bitLt" in reason(attach_adapter(load_tiny(quantization="int8"), AdapterSection(rank=4), seed=0))


def test_a_base_computed_with_in_another_type_runs_plainly(model, load_tiny):
    assert "float32" in reason(model, torch.bfloat16)
    assert is_fast(model.bfloat16(), torch.bfloat16)
    nf4 = attach_adapter(load_tiny(quantization="nf4"), AdapterSection(rank=4), seed=0)
    assert "float32" in reason(nf4, torch.bfloat16)


def test_a_call_without_a_tree_runs_plainly(model):
    tokens = torch.arange(3, 20)[None]
    before = model(input_ids=tokens).logits
    loss_and_gradients(model, fast=True)
    EdgeModel(model, "sdpa").use_plain_attention()
    assert torch.equal(model(input_ids=tokens).logits, before)


# -- changes are noticed ---------------------------------------------------------------------------


def test_disabling_and_enabling_adapters(model):
    whole = loss_and_gradients(model, fast=True)
    edge_model = EdgeModel(model, "sdpa")
    with model.disable_adapter(), torch.no_grad():
        assert is_fast(model)
        bare = edge_model.loss_sum(tree_batch()).item()
    expected = EdgeModel(random_base(), "sdpa", fast=False).loss_sum(tree_batch()).item()
    assert bare == pytest.approx(expected, rel=LOSS_TOLERANCE) and abs(bare - whole[0]) > 0.1
    assert_equal(loss_and_gradients(model, fast=True), whole)


def adapters_replaced(model):
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = parameter.data * 3


def head_norms_replaced(model):
    for layer in model.get_base_model().model.layers:
        norm = layer.self_attn.q_norm
        norm.weight = torch.nn.Parameter(norm.weight.detach() + 1, requires_grad=False)


def dropout_set(model):
    for name, module in model.named_modules():
        if name.endswith("lora_dropout.default"):
            module.p = 0.0


def epsilon_set(model):
    for layer in model.get_base_model().model.layers:
        layer.input_layernorm.variance_epsilon = 1.0


@pytest.mark.parametrize(
    ("change", "family", "options"),
    [
        (adapters_replaced, "llama", {}),
        (head_norms_replaced, "qwen3", {}),
        (dropout_set, "llama", {"lora_dropout": 0.5}),
        (epsilon_set, "llama", {}),
    ],
)
def test_a_change_after_the_first_pass_is_seen(change, family, options):
    model = with_adapter(random_base(family), **options).train()
    before, _ = loss_and_gradients(model, fast=True)
    change(model)
    assert_fast_equals_plain(model)
    assert abs(loss_and_gradients(model, fast=True)[0] - before) > 1e-3


def test_head_norms_unfrozen_after_a_pass_are_trained():
    model = with_adapter(random_base("qwen3"))
    loss_and_gradients(model, fast=True)
    for layer in model.get_base_model().model.layers:
        layer.self_attn.q_norm.weight.requires_grad_(True)
    _, gradients = loss_and_gradients(model, fast=True)
    assert sum("q_norm" in name for name in gradients) == SHAPE["num_hidden_layers"]


def test_adding_switching_scaling_and_deleting_adapters(model):
    loss_and_gradients(model, fast=True)
    model.add_adapter("second", LoraConfig(r=7, target_modules=TWO, task_type="CAUSAL_LM", init_lora_weights=False))
    losses = []
    for name in ("default", "second", "default"):
        model.set_adapter(name)
        assert_fast_equals_plain(model)
        losses.append(loss_and_gradients(model, fast=True)[0])
    assert losses[0] == losses[2] != losses[1]
    model.base_model.model.model.layers[0].self_attn.q_proj.scaling["default"] *= 3
    assert_fast_equals_plain(model)
    model.delete_adapter("second")
    assert_fast_equals_plain(model)


def test_hooks_attached_and_taken_off_again(model):
    loss_and_gradients(model, fast=True)
    seen = []
    handle = model.get_submodule(f"{LAYER}.mlp").register_forward_hook(lambda *given: seen.append(1))
    loss_and_gradients(model, fast=True)
    assert seen == [1]
    handle.remove()
    assert is_fast(model)


def test_merging_and_unmerging(model):
    before = loss_and_gradients(model, fast=True)
    model.merge_adapter()
    assert "merged" in reason(model)
    assert loss_and_gradients_of_merged(model) == pytest.approx(before[0], rel=1e-4)
    model.unmerge_adapter()
    assert loss_and_gradients(model, fast=True)[0] == pytest.approx(before[0], rel=1e-4)


def loss_and_gradients_of_merged(model):
    with torch.no_grad():
        return EdgeModel(model, "sdpa").loss_sum(tree_batch()).item()


@pytest.mark.parametrize("safe", [False, True])
def test_merging_for_good_and_saving_the_base(model, tmp_path, safe):
    before = loss_and_gradients(model, fast=True)[0]
    merged = model.merge_and_unload(safe_merge=safe)
    with torch.no_grad():
        assert is_fast(merged)
        after = EdgeModel(merged, "sdpa").loss_sum(tree_batch()).item()
    assert after == pytest.approx(before, rel=1e-4)
    merged.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, tensor in merged.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert sum(file.stat().st_size for file in tmp_path.glob("*.safetensors")) < 1.1 * again.get_memory_footprint()


def test_weights_unfrozen_after_an_evaluation_are_trained():
    base = random_base()
    with torch.no_grad():
        EdgeModel(base, "sdpa").loss_sum(tree_batch())
    assert is_fast(base)
    base.requires_grad_(True)
    _, gradients = loss_and_gradients(base, fast=True)
    assert len(gradients) == len(list(base.parameters()))


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_loading_other_weights_into_a_model_that_has_run(family):
    model = with_adapter(random_base(family))
    loss_and_gradients(model, fast=True)
    torch.manual_seed(5)
    model.load_state_dict(
        {name: tensor + 0.05 * torch.randn_like(tensor) for name, tensor in model.state_dict().items()}
    )
    assert_fast_equals_plain(model)


def test_moving_a_model_that_has_run(model):
    before = loss_and_gradients(model, fast=True)
    model.double().float()
    assert_equal(loss_and_gradients(model, fast=True), before)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
            parameter.mul_(1.1)
    assert_fast_equals_plain(model)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_a_copy_is_a_model_of_its_own(model, copied):
    before = loss_and_gradients(model, fast=True)
    twin = copied(model)
    assert_equal(loss_and_gradients(twin, fast=True), before)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1.2)
    assert_fast_equals_plain(twin)
    assert_equal(loss_and_gradients(model, fast=True), before)
    assert all(p.grad is None for p in twin.parameters())


# -- files and generation --------------------------------------------------------------------------


def test_names_and_values_of_the_state_stay(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapter = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(model).items()}
    loss_and_gradients(model, fast=True)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert get_peft_model_state_dict(model).keys() == adapter.keys()
    named = dict(model.named_parameters())
    assert named.keys() == dict(with_adapter(random_base()).named_parameters()).keys()


def trained_a_step(base, *, fast):
    model = attach_adapter(base, AdapterSection(rank=4), seed=3).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(2):
        EdgeModel(model, "sdpa", fast=fast).loss_sum(tree_batch()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def test_an_adapter_trained_either_way_is_saved_in_pefts_format(load_tiny, tmp_path):
    bases = {fast: load_tiny() for fast in (True, False)}
    models = {fast: trained_a_step(base, fast=fast) for fast, base in bases.items()}
    for fast, model in models.items():
        save_adapter(model, bases[fast].tokenizer, tmp_path / str(fast), bases[fast].files)
    ours, theirs = (load_file(tmp_path / str(fast) / "adapter_model.safetensors") for fast in (True, False))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=1e-6)
    again = load_adapter(load_tiny(), tmp_path / "True")
    with peft_quiet():
        foreign = PeftModel.from_pretrained(load_tiny().model, str(tmp_path / "True"))
    with torch.no_grad():
        expected = EdgeModel(models[True].eval(), "sdpa").loss_sum(tree_batch()).item()
        for other, fast in ((again, True), (foreign, False)):
            found = EdgeModel(other.eval(), "sdpa", fast=fast).loss_sum(tree_batch()).item()
            assert found == pytest.approx(expected, rel=LOSS_TOLERANCE)


def test_generation_after_training_on_the_fast_path(load_tiny):
    answers = []
    for fast in (True, False):
        model = trained_a_step(load_tiny(), fast=fast).eval()
        prompts = [np.arange(3, 12), np.arange(40, 60)]
        written = generate(
            EdgeModel(model, "sdpa", fast=fast),
            prompts,
            max_new_tokens=6,
            stop_ids={2},
            batch_size=2,
            tokens_per_batch=256,
        )
        answers.append([list(answer) for answer in written])
    assert answers[0] == answers[1] and any(answers[0])


# -- recomputation and dropout ---------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_layers_recomputed_by_transformers_run_by_the_same_kernels_with_the_same_masks(dropout, monkeypatch):
    model = with_adapter(random_base(), lora_dropout=dropout).train()
    torch.manual_seed(7)
    expected = loss_and_gradients(model, fast=True)
    recompute_layers(model)
    runs = count_runs(monkeypatch)
    torch.manual_seed(7)
    found = loss_and_gradients(model, fast=True)
    assert_equal(found, expected)
    assert runs == [0, 1, 2, 2, 1, 0]


def test_dropout_differs_between_passes_and_layers_but_not_in_evaluation():
    model = with_adapter(random_base(), lora_dropout=0.3)
    edge_model = EdgeModel(model.train(), "sdpa")
    torch.manual_seed(7)
    first, second = edge_model.loss_sum(tree_batch()).item(), edge_model.loss_sum(tree_batch()).item()
    torch.manual_seed(7)
    assert edge_model.loss_sum(tree_batch()).item() == first != second
    state = torch.get_rng_state()
    model.eval()
    assert_fast_equals_plain(model)
    assert torch.equal(torch.get_rng_state(), state)


def test_dropout_leaves_the_mean_of_an_adapter_alone():
    """The mean over many masks is the output without dropout, to first order in the adapter."""
    model = with_adapter(random_base(), lora_dropout=0.2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.mul_(1e-2)
        edge_model = EdgeModel(model.eval(), "sdpa")
        with model.disable_adapter():
            bare = edge_model.loss_sum(tree_batch()).item()
        still = edge_model.loss_sum(tree_batch()).item()
        model.train()
        torch.manual_seed(0)
        losses = torch.tensor([edge_model.loss_sum(tree_batch()).item() for _ in range(60)], dtype=torch.float64)
    standard_error = losses.std() / len(losses) ** 0.5
    assert losses.std() > 0 and abs(losses.mean() - still) < 4 * standard_error
    assert abs(still - bare) > 4 * standard_error, "the adapter is too small to show anything"
