"""GPTs from scratch against the architectures of ``transformers``, and against what they promise of themselves."""

from __future__ import annotations

import math

import pytest
import torch
import transformers
from tests.models.gpts import MAKE, VOCABULARY, random_gpt, randomised, tokens
from torch import nn
from torch._dynamo.testing import CompileCounter
from transformers import AutoModelForCausalLM

from fintune.models.gpt import SIZES, GPTForCausalLM, baseline, compile_blocks, optimised, write_untrained
from fintune.models.gpt.blocks import FeedForward
from fintune.models.load import load_base
from fintune.models.shape import read_shape
from fintune.models.tiny import tiny_tokenizer
from fintune.schema.errors import ModelError
from fintune.schema.recipe import ModelSection
from fintune.training.run import recompute_layers

KINDS = list(MAKE)
GPT2_COUNTS = {"124m": 124_439_808, "350m": 354_823_168}  # of openai-community/gpt2 and gpt2-medium on the hub


@torch.no_grad()
def test_the_baseline_is_gpt2():
    theirs = randomised(
        transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4, n_positions=1024)
        )
    )
    ours = GPTForCausalLM(baseline("tiny", VOCABULARY)).eval()
    given, taken = theirs.transformer, ours.model
    pairs = [(taken.embed_tokens, given.wte), (taken.embed_positions, given.wpe), (taken.norm, given.ln_f)]
    for own, other in zip(taken.layers, given.h, strict=True):
        pairs += [(own.input_layernorm, other.ln_1), (own.post_attention_layernorm, other.ln_2)]
        parts = zip(other.attn.c_attn.weight.chunk(3, 1), other.attn.c_attn.bias.chunk(3), strict=True)
        names = (own.self_attn.q_proj, own.self_attn.k_proj, own.self_attn.v_proj)
        matrices = [*zip(names, parts, strict=True)]
        for linear, conv in (
            (own.self_attn.o_proj, other.attn.c_proj),
            (own.mlp.up_proj, other.mlp.c_fc),
            (own.mlp.down_proj, other.mlp.c_proj),
        ):
            matrices.append((linear, (conv.weight, conv.bias)))
        for linear, (weight, bias) in matrices:
            linear.weight.copy_(weight.T)
            linear.bias.copy_(bias)
    for own, other in pairs:
        own.load_state_dict(other.state_dict())
    read = tokens(2, 20)
    expected = theirs(read).logits
    for attention in ("eager", "sdpa"):
        ours.set_attn_implementation(attention)
        torch.testing.assert_close(ours(read).logits, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_rope_rmsnorm_and_swiglu_are_llamas():
    shape = {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    theirs = randomised(
        transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, intermediate_size=192, rms_norm_eps=1e-5))
    )
    ours = GPTForCausalLM(
        optimised("tiny", VOCABULARY, activation="swiglu", qk_norm=False, final_logit_softcapping=None)
    ).eval()
    ours.load_state_dict(theirs.state_dict())  # also: 64 * 8/3 is rounded up to 192, and the names are Llama's
    read = tokens(2, 20)
    torch.testing.assert_close(ours(read).logits, theirs(read).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_sizes_have_the_weights_of_the_formula(size):
    layers, _, width = SIZES[size]
    with torch.device("meta"):
        configs = (baseline(size), optimised(size), optimised(size, activation="swiglu"))
        plain, better, gated = (GPTForCausalLM(config).num_parameters() for config in configs)
    block = 12 * width**2 + 13 * width  # matrices; their biases 9 W, and two norms with biases 4 W
    assert plain == GPT2_COUNTS.get(size, plain) == 50257 * width + 1024 * width + layers * block + 2 * width
    around = 2 * 50304 * width + layers * 2 * width + width  # embedding, head and norms
    assert better == around + layers * 12 * width**2
    inner = 64 * math.ceil(8 * width / 3 / 64)
    assert gated == around + layers * (4 * width**2 + 3 * width * inner)


@pytest.mark.parametrize(("kind", "tolerance"), [("baseline", 0.1), ("optimised", 1e-5)])
def test_the_first_loss_is_that_of_a_guess(kind, tolerance):
    torch.manual_seed(0)
    model = GPTForCausalLM(MAKE[kind]("tiny", VOCABULARY))
    read = tokens(8, 64)
    assert model(read, labels=read).loss.item() == pytest.approx(math.log(VOCABULARY), abs=tolerance)


def test_initial_spreads():
    torch.manual_seed(0)
    layer = GPTForCausalLM(baseline("tiny", VOCABULARY)).model.layers[0]
    assert layer.mlp.up_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
    for end in (layer.mlp.down_proj, layer.self_attn.o_proj):
        assert end.weight.std().item() == pytest.approx(0.02 / math.sqrt(4), rel=0.05)
    model = GPTForCausalLM(optimised("tiny", VOCABULARY))
    layer = model.model.layers[0]
    assert model.model.embed_tokens.weight.std().item() == pytest.approx(1, rel=0.05)
    assert layer.mlp.up_proj.weight.std().item() == pytest.approx(64**-0.5, rel=0.05)
    assert not any(end.weight.any() for end in (layer.mlp.down_proj, layer.self_attn.o_proj, model.lm_head))


@pytest.mark.parametrize("kind", KINDS)
def test_written_and_read_again(kind, tmp_path):
    folder = write_untrained(tmp_path / "gpt", MAKE[kind]("tiny", VOCABULARY), tiny_tokenizer(VOCABULARY), seed=3)
    section = ModelSection(base=str(folder))
    base = load_base(section, device=torch.device("cpu"), for_training=True)
    assert type(base.model) is GPTForCausalLM and base.model.config.eos_token_id == base.tokenizer.eos_token_id
    shape, _ = read_shape(section)
    assert (shape.parameters, shape.layers, shape.vocabulary) == (base.facts.parameters, 2, VOCABULARY)
    model = randomised(base.model)
    model.save_pretrained(tmp_path / "trained")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "trained")
    read = tokens(1, 12)
    assert not list(tmp_path.rglob("*.bin")) and list((tmp_path / "trained").glob("*.safetensors"))
    assert torch.equal(again(read).logits, model(read).logits)


def test_the_seed_decides_the_weights_and_nothing_is_overwritten(tmp_path):
    config, tokenizer = optimised("tiny", VOCABULARY), tiny_tokenizer(VOCABULARY)
    folders = [write_untrained(tmp_path / str(i), config, tokenizer, seed=seed) for i, seed in enumerate((1, 1, 2))]
    same, twin, other = ((folder / "model.safetensors").read_bytes() for folder in folders)
    assert same == twin != other
    with pytest.raises(ModelError, match="exists already"):
        write_untrained(folders[0], config, tokenizer)
    with pytest.raises(ModelError, match="embeds 128"):
        write_untrained(tmp_path / "small", optimised("tiny", 128), tokenizer)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "answer"])
def test_generation_with_and_without_a_cache_is_equal(kind, sampled):
    model = random_gpt(kind)
    # The defaults of ``answer``, but for a temperature and a share of tokens that leave chance a say.
    chosen = {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.2, "no_repeat_ngram_size": 3}
    written = []
    for use_cache in (True, False):
        torch.manual_seed(5)
        options = chosen if sampled else {"do_sample": False}
        written.append(model.generate(tokens(1, 9), max_new_tokens=24, use_cache=use_cache, **options)[0].tolist())
    assert written[0] == written[1] and len(written[0]) == 9 + 24
    if sampled:
        triples = [*zip(written[0], written[0][1:], written[0][2:], strict=False)]
        assert len(set(triples)) == len(triples)


def test_answers_parameters_each_change_what_is_written():
    model, prompt = random_gpt(), tokens(1, 9)
    defaults = {"temperature": 0.2, "top_p": 0.7, "repetition_penalty": 1.2, "no_repeat_ngram_size": 3}

    def write(**changes):
        torch.manual_seed(5)
        return model.generate(prompt, do_sample=True, max_new_tokens=128, **{**defaults, **changes})[0].tolist()

    usual = write()
    assert len(usual) == 9 + 128
    assert usual != write(temperature=2.0) != write(temperature=2.0, top_p=0.01)
    assert usual != write(repetition_penalty=1.0)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_padding_on_the_left_changes_nothing(kind):
    model, read = random_gpt(kind), tokens(1, 8)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), read], 1)
    mask = torch.tensor([[0] * 3 + [1] * 8])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(padded, attention_mask=mask, position_ids=positions).logits[:, 3:]
    torch.testing.assert_close(logits, model(read).logits, atol=1e-5, rtol=1e-5)


CHOICES = [
    {"positions": "learned"},
    {"norm": "layernorm"},
    {"qk_norm": False},
    {"activation": "gelu"},
    {"activation": "swiglu"},
    {"biases": True},
    {"tie_word_embeddings": True},
    {"final_logit_softcapping": None},
]


@pytest.mark.parametrize("change", CHOICES, ids=str)
def test_each_choice_can_be_switched_alone(change):
    read = tokens(1, 12)
    usual, changed = random_gpt(), random_gpt(**change)
    loss = changed(read, labels=read).loss
    loss.backward()
    assert loss.item() != usual(read, labels=read).loss.item()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in changed.parameters())


@torch.no_grad()
def test_normed_heads_do_not_care_how_long_they_were():
    model, read = random_gpt(), tokens(1, 12)
    before = model(read).logits
    for block in model.model.layers:
        block.self_attn.q_proj.weight.mul_(3)
    torch.testing.assert_close(model(read).logits, before, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_squared_relu_and_the_cap_by_hand():
    feed = randomised(FeedForward(optimised("tiny", VOCABULARY)))
    x = torch.randn(5, 64)
    expected = (x @ feed.up_proj.weight.T).clamp(min=0) ** 2 @ feed.down_proj.weight.T
    torch.testing.assert_close(feed(x), expected)
    capped, free = random_gpt(final_logit_softcapping=0.5), random_gpt(final_logit_softcapping=None)
    read = tokens(1, 12)
    torch.testing.assert_close(capped(read).logits, 0.5 * torch.tanh(free(read).logits / 0.5))


@torch.no_grad()
def test_under_autocast_the_residual_stream_may_have_its_type():
    for wanted, expected in ((True, torch.bfloat16), (False, torch.float32)):
        model, found = random_gpt(low_precision_residual=wanted), []
        model.model.layers[1].register_forward_pre_hook(lambda _, given, found=found: found.append(given[0].dtype))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(tokens(1, 12)).logits
        assert found == [expected]
        assert (logits.float() - model(tokens(1, 12)).logits).abs().mean() < 0.1


def test_text_beyond_learned_positions_is_refused():
    model = random_gpt("baseline", max_position_embeddings=16)
    with pytest.raises(ModelError, match="17 tokens, but this GPT learned 16"):
        model(tokens(1, 17))
    with pytest.raises(ModelError, match="learned 16"):
        model.generate(tokens(1, 14), max_new_tokens=4)
    assert random_gpt(max_position_embeddings=16)(tokens(1, 17)).logits.shape == (1, 17, VOCABULARY)


# Dynamo looks at every tensor's gradient and hides the warning by a filter that pytest's own stands before.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_blocks_share_their_graphs():
    graphs = []
    for layers in (2, 4):
        torch.compiler.reset()
        counter = CompileCounter()
        model, twin = (random_gpt(num_hidden_layers=layers) for _ in range(2))
        compile_blocks(model, backend=counter)
        read = tokens(2, 12)
        for gpt in (model, twin):
            gpt(read, labels=read, use_cache=False).loss.backward()
        assert model.state_dict().keys() == twin.state_dict().keys()
        for (name, own), other in zip(model.named_parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(own.grad, other.grad, msg=name)
        graphs.append(counter.frame_count)
    assert graphs == [1, 1]


def test_checkpointed_blocks_give_the_same_gradients():
    model, twin, read = random_gpt().train(), random_gpt().train(), tokens(2, 12)
    recompute_layers(model)
    for gpt in (model, twin):
        gpt(read, labels=read, use_cache=False).loss.backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_no_size_of_this_name():
    with pytest.raises(ModelError, match="no GPT of size 7b"):
        baseline("7b")


def test_heads_that_do_not_fit_are_refused():
    with pytest.raises(Exception, match="no multiple of 5 heads"):
        optimised("tiny", num_attention_heads=5)
    assert isinstance(GPTForCausalLM(optimised("tiny", num_attention_heads=2)).lm_head, nn.Linear)
