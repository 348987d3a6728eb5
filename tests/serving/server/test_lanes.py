"""One answer that cannot be written ends alone: bytes that are no text, errors of libraries, memory that runs out."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from fintune.inference.continuous import SlotWriter
from fintune.serving.predictor import load_predictor
from fintune.serving.server.jobs import Job, Manner
from fintune.serving.server.lanes import SlotLane
from fintune.serving.server.models import open_models
from fintune.serving.server.text import AnswerText
from fintune.trees.chat import ChatFormat

LETTERS = ("a", "b", "▁", "▁a")
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
VOCABULARY = {token: number for number, token in enumerate(["<unk>", *LETTERS, *BYTES])}


def byte_fallback():
    """A tokenizer whose decoder is that of Llama 2 and Gemma."""
    tokenizer = Tokenizer(models.BPE(vocab=VOCABULARY, merges=[], byte_fallback=True, unk_token="<unk>"))
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    return tokenizer


@pytest.fixture(scope="module")
def predictor(places):
    return load_predictor(str(places.base), device=torch.device("cpu"))


@dataclass
class Asked:
    """Answers of a lane by name, and how each ended."""

    lane: SlotLane
    decoder: object
    ended: dict = field(default_factory=dict)

    def add(self, name, length=10, **manner):
        def deliver(piece):
            if piece.is_last:
                self.ended[name] = piece.ended or (piece.problem.status, piece.problem.code)

        manner = Manner(**{"limit": 3, "temperature": 0.0, **manner})
        self.lane.add(Job(SimpleNamespace(decoder=self.decoder), np.full(length, 5), manner, deliver))

    def write(self):
        with self.lane.using(), torch.no_grad():
            while not self.lane.is_idle:
                self.lane.step()
        return self.ended


@pytest.fixture
def asked(predictor):
    return Asked(SlotLane(predictor, 4), predictor.scorer.chat.tokenizer.backend_tokenizer)


@example(["<0xC3>", "<0xA9>", "<0xFF>", "a"])
@given(st.lists(st.sampled_from([*LETTERS, "<0xC3>", "<0xA9>", "<0xFF>", "<0xE2>"]), max_size=14))
def test_bytes_that_are_no_text_lose_no_letter(tokens):
    decoder, numbers = byte_fallback(), [VOCABULARY[token] for token in tokens]
    text = AnswerText(decoder)
    got = "".join([text.add(number) for number in numbers] + [text.rest()])
    whole = decoder.decode(numbers)
    assert len(got) == len(whole)
    assert [letter for letter in got if letter in "ab "] == [letter for letter in whole if letter in "ab "]


def test_an_answer_whose_text_fails_ends_alone_and_quotes_nothing(asked, monkeypatch, caplog):
    class PanicException(BaseException):  # what PyO3 raises where Rust panics
        pass

    whole = AnswerText.add

    def add(text, token):
        if token == 7:
            raise PanicException("the answer says: buy")
        return whole(text, token)

    monkeypatch.setattr(AnswerText, "add", add)
    asked.add("broken", logit_bias={7: 1e4})
    for name in ("first", "second"):
        asked.add(name, logit_bias={8: 1e4})
    assert asked.write() == {"broken": (500, "failed"), "first": "length", "second": "length"}
    assert "PanicException at " in caplog.text and "buy" not in caplog.text


def test_an_answer_that_does_not_fit_ends_alone_and_the_slots_come_back(asked, monkeypatch):
    whole, together = SlotWriter._read_tree, []

    def with_little_memory(writer, drafts, samples):
        if any(len(draft) > 100 for draft in drafts):
            raise torch.OutOfMemoryError
        together.append(len(drafts))
        whole(writer, drafts, samples)

    monkeypatch.setattr(SlotWriter, "_read_tree", with_little_memory)
    asked.add("giant", length=150)
    names = [f"small {number}" for number in range(6)]
    for name in names:
        asked.add(name)
    assert asked.write() == {"giant": (503, "out_of_memory")} | dict.fromkeys(names, "length")
    assert max(together) == 1
    for name in names:
        asked.add(name)
    asked.write()
    assert max(together) == 4


def test_the_engine_tokenises_nothing_with_the_readers_tokenizer(places, monkeypatch):
    def make_lane(predictor):
        return SlotLane(predictor, 2)

    named = {name: str(place) for name, place in places.adapters.items()}
    opened = open_models(str(places.base), named, device=torch.device("cpu"), make_lane=make_lane)
    monkeypatch.setattr(ChatFormat, "completion", lambda *given: 1 / 0)
    for model in opened.by_name.values():
        lane, ended = model.lane, []
        lane.add(Job(model, np.full(4, 5), Manner(limit=1, temperature=0.0), ended.append))
        with lane.using(), torch.no_grad():
            lane.step()
        assert ended[-1].ended in ("length", "stop")
