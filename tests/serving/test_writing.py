"""Free answers: ``fintune.answer``, whole files, conversations, and the two commands."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sys
from dataclasses import replace

import pytest
import torch
from tests.inference.test_equality import with_random_adapter
from transformers import AutoTokenizer

import fintune
from fintune import answering
from fintune.cli import main, streamed
from fintune.inference.choosing import Sampling
from fintune.models.gpt import baseline, write_untrained
from fintune.models.tiny import tiny_tokenizer, write_tiny_model
from fintune.schema.errors import DataError, ModelError
from fintune.schema.example import Message
from fintune.serving import written_files
from fintune.serving.asking import ask
from fintune.serving.conversation import Conversation
from fintune.serving.parts import PartStore
from fintune.serving.predictor import template_of
from fintune.serving.writing import WritingOptions, stream_written
from fintune.serving.written_files import write_file
from fintune.trees.chat_format import ChatFormat

PROMPT = "Shares of the bank fell"
SHORT = WritingOptions(8, 128, Sampling(1.0, seed=2))


@pytest.fixture(scope="module")
def gpt(tmp_path_factory):
    """A GPT that learnt 96 positions, with a tokenizer that has no chat template."""
    tokenizer = tiny_tokenizer(chat_template=None)
    config = baseline("tiny", len(tokenizer), max_position_embeddings=96)
    return write_untrained(tmp_path_factory.mktemp("own") / "gpt", config, tokenizer)


@pytest.fixture(scope="module")
def writer(gpt):
    return fintune.load(gpt, device="cpu")


@pytest.fixture(scope="module")
def chatty(base):
    return fintune.load(base, device="cpu")


@pytest.fixture(autouse=True)
def nothing_kept():
    yield
    answering.forget()


def write(place, prompt=PROMPT, **options):
    return fintune.answer(prompt, place, **{"max_new_tokens": 8, "temperature": 1.0, "device": "cpu", **options})


def test_an_answer_is_what_transformers_writes_with_its_defaults(base):
    answer = fintune.answer(PROMPT, base, seed=5, device="cpu")
    answering.forget()
    model, tokenizer = fintune.load(base, device="cpu").scorer.model, AutoTokenizer.from_pretrained(base)
    model.use_plain_attention()
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPT}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    torch.manual_seed(5)
    whole = model.model.generate(
        **asked, do_sample=True, max_new_tokens=128, temperature=0.2, top_p=0.7, repetition_penalty=1.2,
        no_repeat_ngram_size=3, pad_token_id=0,
    )  # fmt: skip
    assert answer == tokenizer.decode(whole[0, asked["input_ids"].shape[1] :], skip_special_tokens=True) != ""


def test_seeds_adapters_and_models_without_a_template(base, gpt, tmp_path):
    adapter = tmp_path / "adapter"
    with_random_adapter(base, 0.5).save_pretrained(adapter)
    for place in (base, gpt, adapter):
        assert write(place, seed=1) == write(place, seed=1) != write(place, seed=2)
    assert write(adapter, temperature=0) != write(base, temperature=0)
    assert write(base, seed=1, chat=False) != write(base, seed=1)
    assert write(gpt, seed=1, chat=False) == write(gpt, seed=1)
    with pytest.raises(ModelError, match="no chat template to ask for labels"):
        fintune.load(gpt, device="cpu").predict([PROMPT])
    with pytest.raises(DataError, match="The prompt is empty"):
        write(base, "  ")


def test_a_model_is_loaded_once_until_its_files_change(tmp_path, monkeypatch):
    loaded = []
    load = answering.load_writer
    monkeypatch.setattr(answering, "load_writer", lambda place, **how: loaded.append(place) or load(place, **how))
    places = [write_tiny_model(tmp_path / name, seed=seed) for seed, name in enumerate("abc")]
    first = write(places[0], seed=1)
    assert write(places[0], seed=1) == first and len(loaded) == 1
    adapter = tmp_path / "adapter"
    with_random_adapter(places[0]).save_pretrained(adapter)
    write(adapter)
    shutil.rmtree(places[0])
    write_tiny_model(places[0], seed=9)
    assert write(places[0], seed=1) != first and len(loaded) == 3
    write(adapter)
    assert len(loaded) == 4, "an adapter's base is looked at too"
    write(places[1])
    assert len(answering._kept.models) == answering.MOST_KEPT == 2


def test_a_long_prompt_keeps_its_newest_tokens(writer, chatty, caplog):
    text = "".join(f" share {number}" for number in range(200))
    whole = writer.scorer.chat.text(text)
    asked = ask(writer, [Message("user", text)], most=30)
    assert asked.tokens[1:].tolist() == whole[-29:].tolist() and asked.tokens[0] == 1
    assert asked.dropped == len(whole) - 29
    asked = ask(chatty, [Message("system", "Be brief."), Message("user", text)], most=60)
    shown = chatty.scorer.chat.tokenizer.decode(asked.tokens.tolist())
    assert len(asked.tokens) <= 60 and "Be brief." in shown and "share 199<|im_end|>" in shown
    kept = shown.split("user\n")[1].split("<|im_end|>")[0]
    assert text.endswith(kept) and asked.dropped == len(whole) - len(chatty.scorer.chat.text(kept))
    with pytest.raises(ModelError, match="Nothing of the prompt fits into 8 tokens"):
        ask(chatty, [Message("user", text)], most=8)
    chatty.write(text, WritingOptions(4, 60))
    assert "oldest" in caplog.text and "60 with the template" in caplog.text


def test_the_window_is_never_passed(gpt):
    assert write(gpt, PROMPT * 50, max_new_tokens=90)
    with pytest.raises(ModelError, match="96 new tokens leave no room for a prompt in the model's window of 96"):
        write(gpt, max_new_tokens=96)


def test_which_models_are_asked_in_plain_text():
    def trained(kind):
        task = {"name": "news", "source": "x", "conversations": {"format": kind}}
        return fintune.Recipe.model_validate({"name": "x", "model": {"base": "b"}, "data": {"tasks": [task]}})

    assert template_of(trained("text"), "plain") == "text"
    assert template_of(trained("messages"), "plain") == "plain"
    assert template_of(trained("text"), "own") == "own"
    assert template_of(None, "none") == "none"


def test_a_stream_tells_what_it_took(writer):
    asked = SHORT.ask(writer, [Message("user", PROMPT)])
    steps = list(stream_written(writer, asked, SHORT))
    assert [step.n_tokens for step in steps] == [*range(1, 9), 8] and steps[-1].ended == "limit"
    assert steps[-1].text == writer.write(PROMPT, SHORT)
    assert 0 < steps[-1].time_to_first_token_s < steps[-1].elapsed_s and steps[-1].tokens_per_s > 0


class Killed(BaseException):
    """Nothing that the code under test could catch by mistake."""


def test_a_file_resumes_after_a_kill_with_the_answers_of_each_prompt_alone(writer, tmp_path, monkeypatch):
    prompts = [PROMPT, "", "Profit rose", PROMPT * 40, "Dividend kept", PROMPT]
    source, output = tmp_path / "in.txt", tmp_path / "out.jsonl"
    source.write_text("\n".join(prompts))
    monkeypatch.setitem(written_files._ROWS_A_PART, "cpu", 2)
    with monkeypatch.context() as patched:
        store, written = PartStore.write, []

        def dies(self, start, rows):
            if len(written) == 2:
                raise Killed
            written.append(start)
            store(self, start, rows)

        patched.setattr(PartStore, "write", dies)
        with pytest.raises(Killed):
            write_file(writer, source, output, SHORT, progress=False)
    other = WritingOptions(8, 128, Sampling(1.0, seed=3))
    with pytest.raises(DataError, match="unfinished work with another options"):
        write_file(writer, source, output, other, progress=False)
    outcome = write_file(writer, source, output, SHORT, progress=False)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == prompts
    assert [row["answer"] for row in rows] == [writer.write(p, SHORT) if p else None for p in prompts]
    assert rows[1]["note"] == "no text" and rows[3]["dropped_prompt_tokens"] > 0
    assert (outcome.resumed_from, outcome.rows, outcome.unanswered, outcome.shortened) == (4, 6, 1, 1)
    assert outcome.tokens_per_s > 0 and outcome.tokens == sum(row["answer_tokens"] or 0 for row in rows)


def test_columns_of_a_table_are_kept(writer, tmp_path):
    (tmp_path / "in.jsonl").write_text(json.dumps({"q": PROMPT, "answer": "mine"}) + "\n")
    write_file(writer, tmp_path / "in.jsonl", tmp_path / "out.jsonl", SHORT, column="q", progress=False)
    row = json.loads((tmp_path / "out.jsonl").read_text())
    assert row["answer"] == "mine" and row["fintune_answer"] == writer.write(PROMPT, SHORT)


def said(conversation, text):
    return list(conversation.say(text))[-1].text


def test_a_conversation_is_read_whole_and_loses_its_oldest_exchanges(chatty):
    chat = Conversation(chatty, WritingOptions(8, 100, Sampling(1.0, seed=2)), system="Be brief.")
    first = said(chat, PROMPT)
    prompt = chatty.scorer.chat.prompt(
        [Message("system", "Be brief."), Message("user", PROMPT), Message("assistant", first), Message("user", "Why?")]
    )
    last = list(chat.say("Why?"))[-1]
    assert last.prompt_tokens == len(prompt) <= 100 and chat.forgotten == 0
    said(chat, PROMPT * 7)
    assert chat.forgotten > 0 and len(chat.turns) == 6
    answered = list(chat.say(PROMPT * 60))[-1]
    assert answered.dropped_tokens > 0 and answered.prompt_tokens <= 100 and chat.forgotten == 3
    chat.reset()
    assert said(chat, PROMPT) == first and chat.forgotten == 0


def test_exchanges_that_fit_again_are_read_again(chatty):
    chat = Conversation(chatty, WritingOptions(8, 100, Sampling(1.0, seed=2)))
    said(chat, PROMPT)
    said(chat, PROMPT * 30)
    assert chat.forgotten == 1
    chat.options = replace(chat.options, max_prompt_tokens=None)
    whole = chatty.scorer.chat.prompt([*chat.turns, Message("user", "Why?")])
    assert list(chat.say("Why?"))[-1].prompt_tokens == len(whole) and chat.forgotten == 0


def test_a_long_question_that_is_stopped_at_once_forgets_nothing(chatty, monkeypatch):
    chat = Conversation(chatty, WritingOptions(8, 100, Sampling(1.0, seed=2)))
    said(chat, PROMPT)

    def stopped(*given):
        raise KeyboardInterrupt
        yield

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("fintune.serving.conversation.stream_written", stopped)
        list(chat.say(PROMPT * 30))
    assert chat.forgotten == 0 and len(chat.turns) == 2
    whole = chatty.scorer.chat.prompt([*chat.turns, Message("user", "Why?")])
    assert list(chat.say("Why?"))[-1].prompt_tokens == len(whole)


def test_a_template_without_a_system_role_gets_it_folded_in(chatty):
    tokenizer = tiny_tokenizer(
        chat_template="{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
        "[{{ m.role }}] {{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    )
    chat = ChatFormat(tokenizer, 256)
    predictor = replace(chatty, scorer=replace(chatty.scorer, chat=chat))
    asked = ask(predictor, [Message("system", "Be kind."), Message("user", "Hi")], most=100)
    assert tokenizer.decode(asked.tokens.tolist()) == "[user] Be kind.\n\nHi"


def test_a_conversation_saved_is_a_conversation_loaded(chatty, tmp_path):
    chat = Conversation(chatty, SHORT, system="Be brief.")
    said(chat, PROMPT)
    chat.save(tmp_path / "chat.jsonl")
    again = Conversation(chatty, SHORT)
    again.load(tmp_path / "chat.jsonl")
    assert again.messages() == chat.messages() and said(again, "Why?") == said(chat, "Why?")
    for content in ('{"messages": [{"role": "user", "content": "x"}]}', "[]", "no", '{"messages": [1]}'):
        (tmp_path / "bad").write_text(content)
        with pytest.raises(DataError, match="no conversation of whole exchanges"):
            again.load(tmp_path / "bad")


def test_halves_of_characters_do_not_lose_a_conversation(chatty, tmp_path):
    (tmp_path / "given").write_text(
        '{"messages": [{"role": "system", "content": "\\ud83d"}, {"role": "user", "content": "a\\ud83d"},'
        ' {"role": "assistant", "content": "\\udc00b"}]}'
    )
    chat = Conversation(chatty, SHORT)
    chat.load(tmp_path / "given")
    chat.system += "\udce9"
    said(chat, "caf\udce9")
    chat.save(tmp_path / "kept")
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["given", "kept"]
    turns = json.loads((tmp_path / "kept").read_text(encoding="utf-8"))["messages"]
    assert [turn["content"] for turn in turns[:4]] == ["\ufffd\ufffd", "a\ufffd", "\ufffdb", "caf\ufffd"]


def chat(gpt, monkeypatch, lines, *options):
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
    return main(["chat", str(gpt), "--max-new-tokens", "8", "--seed", "2", *options])


def test_the_chat_command_through_a_pipe(gpt, monkeypatch, tmp_path, capsys):
    file = tmp_path / "c.jsonl"
    commands = [
        "/set temperature 1.5",
        "/set nonsense 1",
        f"/save {file}",
        f"/save {file}",
        "/foo",
        "//x",
        "/set",
        "/quit",
    ]
    assert chat(gpt, monkeypatch, [PROMPT, *commands, "never said"]) == 0
    out, err = capsys.readouterr()
    for words in ("temperature 1.5", "nonsense is no setting", "/foo is no command", "1 exchanges in", "top_k 50"):
        assert words in err
    (line,) = file.read_text().splitlines()
    turns = json.loads(line)["messages"]
    assert [turn["role"] for turn in turns] == ["user", "assistant"] and out.startswith(turns[1]["content"])
    assert chat(gpt, monkeypatch, [f"/save {file}"]) == 0
    assert "exists already" in capsys.readouterr().err
    assert chat(gpt, monkeypatch, ["Why?"], "--load", str(file), "--json") == 0
    out, err = capsys.readouterr()
    assert [turn["content"] for turn in json.loads(out)["messages"]][:3] == [PROMPT, turns[1]["content"], "Why?"]


def test_a_byte_that_is_no_utf_8_does_not_end_the_chat(gpt, monkeypatch, tmp_path):
    file = tmp_path / "c.jsonl"
    typed = io.TextIOWrapper(io.BytesIO(b"caf\xe9\n/save %b\n" % str(file).encode()), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", typed)
    assert main(["chat", str(gpt), "--max-new-tokens", "4"]) == 0
    assert json.loads(file.read_text(encoding="utf-8"))["messages"][0]["content"] == "caf\ufffd"


@pytest.fixture
def interruptible():
    """What a terminal gives a process; one started in the background ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_stops_the_answer_and_keeps_the_session(gpt, monkeypatch, capsys):
    shown = streamed.Shown._add
    calls = []

    def interrupted(self, text):
        shown(self, text)
        calls.append(text)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(streamed.Shown, "_add", interrupted)
    assert chat(gpt, monkeypatch, [PROMPT, "Why?"], "--max-new-tokens", "60", "--temperature", "1", "--json") == 0
    out, err = capsys.readouterr()
    turns = json.loads(out)["messages"]
    assert "Stopped." in err and len(turns) == 4 and len(calls) > 3
    assert turns[1]["content"].startswith(calls[1]) and len(turns[1]["content"]) < 60


def test_the_generate_command(gpt, writer, tmp_path, capsys):
    options = ["--max-new-tokens", "8", "--temperature", "1", "--seed", "2", "--max-prompt-tokens", "128"]
    assert main(["generate", str(gpt), "--prompt", PROMPT, *options, "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["text"] == writer.write(PROMPT, SHORT) and found["n_tokens"] == 8 and found["tokens_per_s"] > 0
    assert "first after" in err
    (tmp_path / "in.txt").write_text(f"{PROMPT}\n")
    places = ["--input", str(tmp_path / "in.txt"), "--output", str(tmp_path / "out.jsonl")]
    assert main(["generate", str(gpt), *places, *options, "--quiet"]) == 0
    assert "1 rows in" in capsys.readouterr().out
    assert json.loads((tmp_path / "out.jsonl").read_text())["answer"] == found["text"]
    assert main(["generate", str(gpt), "--prompt", "x", *places]) == 2
    assert main(["generate", str(gpt), "--prompt", "x", "--temperature", "-1"]) == 2
    assert "temperature is -1.0" in capsys.readouterr().err
