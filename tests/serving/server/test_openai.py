"""OpenAI's own client against the server: answers are those of the model asked alone."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openai
import pytest
from tests.serving.server.conftest import chat

import fintune
from fintune.inference.choosing import Sampling
from fintune.serving.writing import WritingOptions

GREEDY = WritingOptions(8, None, Sampling(0, 1.0, 1.0, 0, 0))
TEXTS = ["Shares of the bank fell", "Profit rose", "The dividend was cut by 12 percent, below estimates", "Sales"]


@pytest.fixture(scope="module")
def alone(places):
    """Each model loaded by itself, by the name it is served under."""
    found = {"tiny": fintune.load(places.base, device="cpu")}
    return found | {name: fintune.load(place, device="cpu") for name, place in places.adapters.items()}


def test_answers_of_a_full_batch_of_three_models_are_those_of_each_alone(live, alone):
    client = live.openai
    asked = [(name, text) for text in TEXTS * 2 for name in alone]
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = pool.map(lambda pair: client.chat.completions.create(**chat(*pair), temperature=0), asked)
    written = {pair: answer.choices[0].message.content for pair, answer in zip(asked, answers, strict=True)}
    expected = {(name, text): alone[name].write(text, GREEDY) for name, text in asked}
    assert written == expected and len(set(expected.values())) > len(TEXTS)


def test_a_stream_is_the_answer_in_pieces_with_its_usage(live):
    client = live.openai
    options = {**chat(max_tokens=24), "seed": 7, "temperature": 1.0, "n": 2}
    whole = client.chat.completions.create(**options)
    texts, ended, usage = {0: "", 1: ""}, {}, None
    for chunk in client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            ended[choice.index] = choice.finish_reason
    assert [texts[choice.index] for choice in whole.choices] == [c.message.content for c in whole.choices]
    assert texts[0] != texts[1] and ended == {c.index: c.finish_reason for c in whole.choices}
    assert usage == whole.usage and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_completions_go_on_with_plain_text(live, alone):
    client = live.openai
    asked = {"model": "two", "prompt": TEXTS[:2], "max_tokens": 8, "temperature": 0}
    whole = client.completions.create(**asked)
    plain = WritingOptions(8, None, GREEDY.sampling, chat=False)
    assert [choice.text for choice in whole.choices] == [alone["two"].write(text, plain) for text in TEXTS[:2]]
    pieces = {0: "", 1: ""}
    for chunk in client.completions.create(**asked, stream=True):
        pieces[chunk.choices[0].index] += chunk.choices[0].text
    assert list(pieces.values()) == [choice.text for choice in whole.choices]


def test_stops_bias_and_penalties(live):
    client = live.openai
    free = client.chat.completions.create(**chat(max_tokens=40), temperature=0).choices[0]
    text = free.message.content
    stop = text[len(text) // 2 :][:3]
    for stream in (False, True):
        found = client.chat.completions.create(**chat(max_tokens=40), temperature=0, stop=[stop], stream=stream)
        if stream:
            found = "".join(chunk.choices[0].delta.content or "" for chunk in found)
        else:
            assert found.choices[0].finish_reason == "stop"
            found = found.choices[0].message.content
        assert found == text[: text.index(stop)]
    biased = client.chat.completions.create(**chat(), temperature=0, logit_bias={"40": 100}).choices[0]
    with_penalty = client.chat.completions.create(**chat(), temperature=0, logit_bias={"40": 2}, presence_penalty=2)
    assert len(set(biased.message.content)) == 1 and with_penalty.choices[0].message.content != biased.message.content


def test_labels_have_the_probabilities_of_the_predictor(live, alone):
    with live.client() as client:
        for name in alone:
            got = client.post("/v1/classify", json={"model": name, "input": TEXTS}).json()
            for row, expected in zip(got["data"], alone[name].predict(TEXTS), strict=True):
                assert row["label"] == expected.label
                assert np.allclose([*row["probabilities"].values()], [*expected.probabilities.values()], atol=1e-5)
        question = "Is this good news? Shares fell. Answer yes or no."
        given = client.post("/v1/classify", json={"model": "one", "input": question, "choices": ["yes", "no"]}).json()
        assert set(given["data"][0]["probabilities"]) == {"yes", "no"}
        assert sum(given["data"][0]["probabilities"].values()) == pytest.approx(1)
        fpb = client.post("/v1/classify", json={"model": "one", "input": TEXTS[:1], "task": "fpb"}).json()
        assert set(fpb["data"][0]["probabilities"]) == {"negative", "neutral", "positive"}
        for body, words in (
            ({"input": "x", "task": "nonsense"}, "nonsense"),
            ({"input": "x", "task": "finqa"}, "no labels"),
            ({"input": [], "task": "fpb"}, "input"),
            ({"input": ["x", " "]}, "Text 1"),
            ({"input": "x", "choices": ["a", "a"]}, "twice"),
            ({"input": "x", "choices": ["a", "b"], "task": "fpb"}, "not both"),
            ({"input": "x " * 5000, "choices": ["a", "b"]}, "does not fit"),
        ):
            refused = client.post("/v1/classify", json={"model": "one", **body})
            assert refused.status_code == 400 and words in refused.json()["error"]["message"]


def test_models_are_listed_and_found(live):
    client = live.openai
    by_name = {model.id: model for model in client.models.list()}
    assert {"tiny", "one", "two"} <= set(by_name) and by_name["one"].parent == "tiny"
    assert client.models.retrieve("two").id == "two"
    with pytest.raises(openai.NotFoundError, match="There is"):
        client.models.retrieve("three")
    with pytest.raises(openai.NotFoundError, match="no such model"):
        client.chat.completions.create(**chat("three"))


def test_what_is_not_served_is_refused_and_not_ignored(live):
    client = live.openai
    for options, words in (
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"logprobs": True}, "logprobs"),
        ({"store": True}, "only false"),
        ({"extra_body": {"store": 0.0}}, "store"),
        ({"temperature": 3}, "temperature"),
        ({"max_tokens": 100_000}, "at most 512"),
        ({"n": 100}, "32 answers"),
        ({"logit_bias": {"99999": 1}}, "beyond the 512"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": " "}]}, "empty"),
        ({"messages": [{"role": "user", "content": "x " * 5000}]}, "tokens, and"),
    ):
        with pytest.raises(openai.BadRequestError, match=words):
            client.chat.completions.create(**{**chat(), **options})
    parts = [{"type": "text", "text": "Shares of "}, {"type": "text", "text": "the bank fell"}]
    by_part = client.chat.completions.create(**{**chat(), "messages": [{"role": "user", "content": parts}]}, seed=1)
    assert (
        by_part.choices[0].message.content
        == client.chat.completions.create(**chat(), seed=1).choices[0].message.content
    )


def test_fields_that_ask_for_nothing_change_nothing(live):
    client = live.openai
    plain = client.chat.completions.create(**chat(), temperature=0).choices[0].message
    nothing = dict.fromkeys(("tools", "tool_choice", "top_logprobs", "functions", "reasoning_effort", "audio"))
    asked = {**chat(), "temperature": 0, "logprobs": False, "parallel_tool_calls": False, "extra_body": nothing}
    assert client.chat.completions.create(**asked).choices[0].message == plain
    completed = client.completions.create(model="one", prompt="Shares", max_tokens=4, suffix=None, logprobs=None)
    assert completed.choices[0].text
    turns = [*chat()["messages"], plain.model_dump(), {"role": "user", "content": "Why?"}]
    assert client.chat.completions.create(model="one", messages=turns, max_tokens=4).choices
    read = []
    for content in ("", None):
        turns[1] = {"role": "assistant", "content": content}
        read.append(client.chat.completions.create(model="one", messages=turns, max_tokens=4).usage.prompt_tokens)
    assert read[0] == read[1]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"tools": []}, "tools is not served here: leave it out, or send null."),
        ({"logprobs": True}, "logprobs: only false is served."),
        ({"bogus\u00e9": 1}, "bogus\\u00e9 is no field that is served here."),
        ({"model": None}, "model should be a valid string."),
        ({"messages": [{"content": "x"}]}, "messages.0.role is missing."),
        ({"messages": [{"role": "tool", "content": "x"}]},
         "messages.0.role should be one of 'system', 'developer', 'user', 'assistant'."),
        ({"messages": [{"role": "user"}]}, "messages.0.content is missing."),
        ({"messages": [{"role": "user", "content": None}]},
         "messages.0.content should be a valid string or a valid list."),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
         "messages.0.content.0.type should be 'text'."),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": []}]},
         "messages.0.tool_calls is not served here: leave it out, or send null."),
        ({"model": "\ud800"}, "model should be Unicode text without halves of surrogate pairs."),
        ({"stop": [""]}, "stop.0 should have at least 1 character."),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema is missing."),
        ({"response_format": {"type": "xml"}},
         "response_format.type should be one of 'text', 'json_object', 'json_schema'."),
        ({"temperature": 3}, "temperature should be less than or equal to 2."),
        ({"logit_bias": {"-1": 5}}, "logit_bias.-1 should match pattern '^[0-9]{1,9}$'."),
    ],
    ids=lambda value: ascii(value)[:40],
)  # fmt: skip
def test_what_is_wrong_is_one_sentence(live, wrong, sentence):
    with live.client() as client:
        body = json.dumps({**chat(), **wrong})
        refused = client.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
        assert (refused.status_code, refused.json()["error"]["message"]) == (400, sentence)


def test_answers_keep_to_a_schema_or_to_choices(live):
    client = live.openai
    properties = {"label": {"enum": ["up", "down"]}, "percent": {"type": "integer", "minimum": 0, "maximum": 99}}
    schema = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "move", "schema": schema, "strict": True}}
    for seed in range(5):
        found = client.chat.completions.create(**chat(max_tokens=64), response_format=form, seed=seed, temperature=1.5)
        move = json.loads(found.choices[0].message.content)
        assert set(move) == {"label", "percent"} and move["label"] in ("up", "down") and 0 <= move["percent"] <= 99
        assert found.choices[0].finish_reason == "stop"
        choices = ["positive", "neutral", 'so "so"\n', "posit"]
        chosen = client.chat.completions.create(**chat(max_tokens=40), extra_body={"choices": choices}, seed=seed)
        assert chosen.choices[0].message.content in choices
    streamed = client.chat.completions.create(**chat(max_tokens=64), response_format=form, stream=True, temperature=0)
    assert set(json.loads("".join(chunk.choices[0].delta.content or "" for chunk in streamed))) == {"label", "percent"}
    for bad in ({"type": "nonsense"}, {"$ref": "http://127.0.0.1:1/schema"}, {"type": "string", "pattern": "(?=x)"}):
        wrong = {"type": "json_schema", "json_schema": {"name": "x", "schema": bad}}
        with pytest.raises(openai.BadRequestError, match="cannot be used"):
            client.chat.completions.create(**chat(), response_format=wrong)
    deep = {"type": "object"}
    for _ in range(300):
        deep = {"type": "object", "properties": {"x": deep}}
    with pytest.raises(openai.BadRequestError):
        deep_form = {"type": "json_schema", "json_schema": {"name": "x", "schema": deep}}
        client.chat.completions.create(**chat(), response_format=deep_form)
    with pytest.raises(openai.BadRequestError, match="cannot be combined"):
        client.chat.completions.create(**chat(), response_format=form, extra_body={"choices": ["a"]})
