"""A new GPT by command: its tokenizer trained on text or taken, single choices, and what is refused."""

from __future__ import annotations

import json

import pytest

from fintune.cli import main
from fintune.models.gpt.making import new_gpt
from fintune.models.gpt.vocabulary import read_texts, train_tokenizer
from fintune.models.load import load_base
from fintune.schema.errors import DataError, ModelError
from fintune.schema.recipe import ModelSection

TEXT = "Net sales rose 12% to EUR 1,314.5 mn in 2009. <|endoftext|> Übernahme € 日本\n\tThe board met."


@pytest.fixture
def table(tmp_path):
    file = tmp_path / "news.jsonl"
    rows = [{"body": TEXT}, {"body": " "}, {"body": "Shares fell after the profit warning. " * 20}]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return file


def test_a_trained_tokenizer_round_trips_and_the_folder_is_a_base(table, tmp_path, capsys):
    import torch

    options = ["--size", "tiny", "--train-tokenizer", str(table), "--text-column", "body", "--vocab-size", "300"]
    assert main(["--json", "gpt", "new", str(tmp_path / "gpt"), "qk_norm=false", *options]) == 0
    made = json.loads(capsys.readouterr().out)
    base = load_base(ModelSection(base=str(tmp_path / "gpt")), device=torch.device("cpu"), for_training=True)
    assert made["vocabulary"] == len(base.tokenizer) == 300 and made["parameters"] == base.facts.parameters
    assert base.model.config.qk_norm is False and base.model.config.vocab_size == 384
    plain = TEXT.replace("<|endoftext|>", "")
    assert base.tokenizer.decode(base.tokenizer(plain)["input_ids"]) == plain
    assert base.tokenizer.eos_token == "<|endoftext|>" and base.tokenizer.chat_template


def test_a_tokenizer_may_be_taken_from_a_base(base, tmp_path):
    made = new_gpt(tmp_path / "gpt", kind="baseline", size="tiny", tokenizer=str(base))
    assert made.kind == "baseline" and made.vocabulary <= 512


def test_numbers_are_cut_into_at_most_three_digits():
    tokenizer = train_tokenizer(["1234567 " * 50], 300)
    assert all(len(token.strip("Ġ")) <= 3 for token in tokenizer.tokenize("1234567"))


def test_what_cannot_be_is_said_before_anything_is_written(table, tmp_path):
    place = tmp_path / "gpt"
    for changes, words in (
        ({"qknorm": False}, "has no qknorm"),
        ({"num_attention_heads": 5}, "no multiple of 5 heads"),
        ({"activation": "tanh"}, "activation=tanh: Input should be 'gelu', 'relu2' or 'swiglu'"),
        ({"qk_norm": 3}, "should be a valid boolean"),
    ):
        with pytest.raises(ModelError, match=words):
            new_gpt(place, size="tiny", tokenizer="no-such-base", changes=changes)
    with pytest.raises(DataError, match="no column text"):
        list(read_texts(str(table)))
    with pytest.raises(DataError, match="no room for the 256 bytes"):
        train_tokenizer([TEXT], 100)
    assert not place.exists()
    place.mkdir()
    with pytest.raises(ModelError, match="exists already"):
        new_gpt(place)
