"""Drawn tokens are those that ``generate`` of ``transformers`` draws, with and without a cache, alone or in company."""

from __future__ import annotations

import inspect

import pytest
import torch
from tests.models.gpts import random_gpt, tokens
from tests.trees.samples import sample
from transformers import AutoModelForCausalLM

from fintune.inference.choosing import Sampling
from fintune.inference.forward import EdgeModel
from fintune.inference.generate import generate
from fintune.schema.errors import DataError, ModelError
from fintune.trees.plan import make_step

LENGTHS = (9, 5, 9)
ANSWER = Sampling(seed=3)  # the defaults of ``fintune.answer``
LIVELY = Sampling(temperature=1.3, top_p=0.95, seed=3)  # leaves chance a say
GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module", params=["baseline", "optimised", "llama"])
def model(request, base):
    network = AutoModelForCausalLM.from_pretrained(base) if request.param == "llama" else random_gpt(request.param)
    return EdgeModel(network.eval(), "sdpa")


def write(model, prompts, sampling, n=14, **options):
    options = {"max_new_tokens": n, "stop_ids": [], "batch_size": 2, "tokens_per_batch": 64, **options}
    return [found.tolist() for found in generate(model, [p.numpy() for p in prompts], sampling=sampling, **options)]


def theirs(model, prompt, sampling, n=14):
    """One answer by ``transformers`` alone."""
    model.use_plain_attention()
    drawn = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
    torch.manual_seed(sampling.seed)
    found = model.model.generate(
        prompt[None],
        attention_mask=torch.ones_like(prompt[None]),
        max_new_tokens=n,
        repetition_penalty=sampling.repetition_penalty,
        no_repeat_ngram_size=sampling.no_repeat_ngram_size,
        eos_token_id=2**31 - 1,
        pad_token_id=0,
        **(drawn if sampling.temperature else {"do_sample": False}),
    )
    return found[0, len(prompt) :].tolist()


@pytest.mark.parametrize("sampling", [ANSWER, LIVELY, GREEDY, None], ids=str)
def test_every_answer_is_that_of_transformers_with_and_without_a_cache(model, sampling):
    prompts = [tokens(length, seed=length) for length in LENGTHS]
    neither = Sampling(temperature=0, repetition_penalty=1, no_repeat_ngram_size=0)
    expected = [theirs(model, prompt, sampling or neither) for prompt in prompts]
    assert write(model, prompts, sampling) == expected
    assert write(model, prompts, sampling, packing="none") == expected
    assert write(model, prompts, sampling, use_cache=False) == expected


def test_a_cache_is_really_gone_without_one(model, monkeypatch):
    lengths = []
    forward = model.model.forward

    def seen(input_ids, **kwargs):
        lengths.append(input_ids.shape[1])
        return forward(input_ids=input_ids, **kwargs)

    seen.__signature__ = inspect.signature(forward)  # ``generate`` looks for what may be passed
    monkeypatch.setattr(model.model, "forward", seen)
    write(model, [tokens(5)], LIVELY, n=3, use_cache=False)
    assert lengths == [5, 6, 7]
    lengths.clear()
    write(model, [tokens(5)], LIVELY, n=3)
    assert lengths == [5, 1, 1]


def test_the_seed_decides():
    model, prompt = EdgeModel(random_gpt(), "sdpa"), [tokens(6)]
    one, again, other = (write(model, prompt, Sampling(1.5, 1.0, seed=seed)) for seed in (1, 1, 2))
    assert one == again != other


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", -1), ("top_p", 0), ("top_p", 1.1), ("repetition_penalty", 0), ("no_repeat_ngram_size", -1)],
)
def test_what_cannot_be_is_one_sentence(name, value):
    with pytest.raises(DataError, match=f"{name} is {value}"):
        Sampling(**{name: value})


def test_learned_positions_are_never_passed():
    model = EdgeModel(random_gpt("baseline", max_position_embeddings=32), "sdpa")
    assert len(write(model, [tokens(20)], None, n=13)[0]) == 13  # the last token is not read
    with pytest.raises(ModelError, match="take 33 tokens, but the model learned 32 positions"):
        write(model, [tokens(20)], None, n=14)
    long = make_step([sample(tokens(33).tolist(), 1, 0)], "tree", 1000).batches[0]
    with pytest.raises(ModelError, match="text of 33 tokens, but the model learned 32"):
        model.loss_sum(long)
    two = [sample(tokens(20, seed=i).tolist(), 1, i) for i in range(2)]
    model.loss_sum(make_step(two, "sequence", 1000).batches[0])  # 40 tokens, of two texts that fit
