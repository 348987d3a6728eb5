"""Held-out conversations: what is counted, against the plain model; and whole runs on chat and text mixtures."""

import json
import math

import numpy as np
import pytest
import torch
from tests.runs import QUICK, losses, metrics, weights

import fintune
from fintune.evaluation.conversations import conversation_records, likelihood_counts
from fintune.evaluation.scoring import Scorer
from fintune.evaluation.suite import load_run_data
from fintune.inference.forward import EdgeModel
from fintune.metrics.summary import compare, summarise
from fintune.models.load import load_base
from fintune.schema.conversations import ConversationsSection
from fintune.schema.errors import DataError
from fintune.schema.example import Example, Message
from fintune.schema.loading import list_recipes, load_recipe, recipe_text
from fintune.schema.recipe import ModelSection
from fintune.schema.results import LOWER_IS_BETTER, DocumentRecord
from fintune.tasks.conversations import conversation_task, with_candidates
from fintune.trees.chat import ChatFormat

pytestmark = pytest.mark.usefixtures("own_cache")
WORDS = ("rates", "bonds", "stocks", "funds", "yields", "spreads", "margins", "sales", "costs", "cash")


def talk(number, exchanges=2):
    turns = []
    for turn in range(exchanges):
        a, b = WORDS[number % 10], WORDS[(number * 7 + turn * 3) % 10]
        turns.append(Message("user", f"Question {number}.{turn}: how do {a} act on {b}?"))
        turns.append(Message("assistant", f"In case {number * 31 + turn} {a} move {b} by {number} points."))
    return Example(f"t{number}", "chat", tuple(turns[:-1]), turns[-1].content, group=f"g{number // 2}", learnt="turns")


@pytest.fixture(scope="module")
def edge_model(base):
    return EdgeModel(
        load_base(ModelSection(base=str(base)), device=torch.device("cpu"), for_training=False).model, "sdpa"
    )


@pytest.fixture
def make_scorer(base, edge_model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)

    def make(max_length=512, packing="tree"):
        return Scorer(edge_model, ChatFormat(tokenizer, max_length), 300, packing)

    return make


def plain_nats(scorer, tokens, start):
    """Nats of ``tokens[start:]`` given what is before, by the model's own forward pass."""
    scorer.model.use_plain_attention()
    with torch.no_grad():
        logits = scorer.model.model(torch.tensor([tokens])).logits[0].double().log_softmax(-1)
    return -sum(float(logits[i - 1, tokens[i]]) for i in range(start, len(tokens)))


@pytest.mark.parametrize("packing", ["tree", "sequence", "none"])
def test_nats_tokens_and_bytes_are_those_of_every_answer(make_scorer, packing):
    scorer, examples = make_scorer(packing=packing), [talk(number) for number in range(5)]
    counts, truncated = likelihood_counts(scorer, examples)
    assert not any(truncated)
    for example, found in zip(examples, counts, strict=True):
        turns = [*example.messages, Message("assistant", example.target)]
        nats, n_tokens = 0.0, 0
        for position in (1, 3):
            prompt = scorer.chat.prompt(turns[:position]).tolist()
            answer = scorer.chat.completion(turns[position].content).tolist()
            nats, n_tokens = nats + plain_nats(scorer, prompt + answer, len(prompt)), n_tokens + len(answer)
        assert found["nats"] == pytest.approx(nats, rel=1e-4)
        assert found["tokens"] == n_tokens
        assert found["bytes"] == sum(len(turn.content) for turn in turns if turn.role == "assistant")


def test_a_text_is_counted_over_its_blocks(make_scorer):
    scorer = make_scorer(max_length=24)
    text = "Operating profit rose to EUR 13.1 mn from EUR 8.7 mn in the corresponding period of 2007. Größe 日本."
    (found,), _ = likelihood_counts(scorer, [Example("1", "news", (), text, learnt="text")])
    tokenizer = scorer.chat.tokenizer
    tokens = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    nats, before = 0.0, tokenizer.bos_token_id
    for start in range(0, len(tokens), 23):
        block = [before, *tokens[start : start + 23]]
        nats, before = nats + plain_nats(scorer, block, 1), block[-1]
    assert found["nats"] == pytest.approx(nats, rel=1e-4)
    assert (found["tokens"], found["bytes"]) == (len(tokens), len(text.encode()))


def test_the_next_turn_is_the_likeliest_by_byte(make_scorer):
    examples = with_candidates([talk(number) for number in range(12)])
    task = conversation_task("chat", ConversationsSection(format="messages"))
    scorer = make_scorer()
    records = conversation_records(scorer, task, examples, "base")
    for example, record in zip(examples, records, strict=True):
        prompt = scorer.chat.prompt(example.messages).tolist()
        candidates = example.metadata["candidates"]
        nats = [plain_nats(scorer, prompt + scorer.chat.completion(text).tolist(), len(prompt)) for text in candidates]
        by_byte = [one / len(text) for one, text in zip(nats, candidates, strict=True)]
        assert record.prediction == candidates[int(np.argmin(by_byte))]
        assert record.correct == (record.prediction == example.target)
        assert record.counts["chance"] == pytest.approx(1 / 10) and record.counts["ranked"] == 1
    assert len({record.prediction for record in records}) > 1
    result = summarise(records, task_version="1", split="test", scoring="chat", n_resamples=200)
    assert result.metrics["next_turn_accuracy"].value == np.mean([record.correct for record in records])
    assert result.metrics["next_turn_chance"].value == pytest.approx(0.1)
    assert result.primary == "next_turn_accuracy" and result.n_groups == 6


def test_a_long_history_loses_its_oldest_exchanges_and_what_never_fits_is_missing(make_scorer):
    examples = with_candidates([talk(number, exchanges=4) for number in range(12)])
    task = conversation_task("chat", ConversationsSection(format="messages"))
    records = conversation_records(make_scorer(max_length=130), task, examples, "base")
    assert all(record.truncated and record.counts["ranked"] == 1 for record in records)
    whole = conversation_records(make_scorer(max_length=1000), task, examples, "base")
    assert all(cut.counts["tokens"] < one.counts["tokens"] for cut, one in zip(records, whole, strict=True))
    lost = conversation_records(make_scorer(max_length=16), task, examples, "base")
    assert all(record.output is None and record.prediction is None and not record.counts for record in lost)
    with pytest.raises(DataError, match="None of the 12 documents of chat fits"):
        summarise(lost, task_version="1", split="test", scoring="chat")


def test_a_share_of_no_numbers_is_no_score():
    task = conversation_task("chat", ConversationsSection(format="question_answer", measure="answers"))

    def scored(system, target, answers):
        records = []
        for number, answer in enumerate(answers):
            asked = Example(str(number), "chat", (Message("user", "What is it?"),), target, group=str(number))
            found = task.judge(asked, answer)
            records.append(record(number, system, 9.0, 9.0, 9.0).model_copy(update={"counts": found.counts}))
        return records

    wordy, numeric = scored("tuned", "A fund.", ["A fund.", "A bond."]), scored("base", "A fund.", ["5", "A fund."])
    results = [summarise(rows, task_version="1", split="test", scoring="chat", n_resamples=50)
               for rows in (wordy, numeric)]  # fmt: skip
    assert all("numbers_right" not in one.metrics for one in results), "no reference has a number"
    assert "invented_numbers" not in results[0].metrics and results[1].metrics["invented_numbers"].value == 1
    for pair in ((wordy, numeric), (numeric, wordy)):
        assert "invented_numbers" not in compare(*pair, scoring="chat", n_resamples=50).differences
    counted = scored("tuned", "It was 5.", ["5", "6"])
    found = summarise(counted, task_version="1", split="test", scoring="chat", n_resamples=50).metrics
    assert (found["numbers_right"].value, found["invented_numbers"].value) == (0.5, 0.5)


def record(number, system, nats, tokens, n_bytes):
    counts = {"nats": nats, "tokens": tokens, "bytes": n_bytes}
    return DocumentRecord(
        system=system, task="chat", example_id=str(number), group=str(number), target="", prediction="",
        correct=False, output="", counts=counts,
    )  # fmt: skip


def test_perplexities_are_over_all_tokens_and_less_is_better():
    generator = np.random.default_rng(3)
    tokens = generator.integers(5, 200, 60)
    better = [record(i, "tuned", 1.1 * n, float(n), 4.0 * n) for i, n in enumerate(tokens)]
    worse = [record(i, "base", 1.5 * n + generator.normal(), float(n), 4.0 * n) for i, n in enumerate(tokens)]
    result = summarise(worse, task_version="1", split="test", scoring="chat", n_resamples=500)
    total = sum(one.counts["nats"] for one in worse)
    assert result.primary == "perplexity" in LOWER_IS_BETTER
    assert result.metrics["perplexity"].value == pytest.approx(math.exp(total / tokens.sum()))
    assert result.metrics["byte_perplexity"].value == pytest.approx(math.exp(total / (4 * tokens.sum())))
    low, value, high = (getattr(result.metrics["perplexity"], name) for name in ("low", "value", "high"))
    assert low < value < high
    found = compare(better, worse, scoring="chat", n_resamples=500)
    assert found.differences["perplexity"].high < 0 and found.side == "above"
    assert compare(worse, better, scoring="chat", n_resamples=500).side == "below"
    assert found.sign_flip_p < 0.01


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A folder with conversations, questions and texts, laid out as the shipped recipes expect FinSight's files."""
    place = tmp_path_factory.mktemp("data")
    (place / "finsight_sft").mkdir()
    (place / "financial_qa_10k").mkdir()
    rows = [(number, talk(number)) for number in range(80)]
    chat = [
        {
            "messages": [
                {"role": "system", "content": "You are FinSight."},
                *({"role": m.role, "content": m.content} for m in (*one.messages, Message("assistant", one.target))),
            ],
            "metadata": {"ticker": f"T{number % 16}"},
        }
        for number, one in rows
    ]
    parts = {
        "finsight_sft/reddit_finance_conversations.jsonl": chat[:26],
        "finsight_sft/company_conversations.jsonl": chat[26:54],
        "finsight_sft/intro_conversations.jsonl": chat[54:],
        "finsight_sft/financial_definitions.jsonl": [
            {"term": f"{WORDS[n % 10]} {n * 7919}", "definition": f"Number {n} of {WORDS[n % 7]} {n * 104729}"}
            for n in range(30)
        ],
        "financial_qa_10k/Financial-QA-10k.jsonl": [
            {
                "question": f"How much of {WORDS[n % 9]} {n}?",
                "answer": f"It was {n * 104729}.",
                "context": f"We sold {n * 104729} of {WORDS[n % 9]}, up {n} percent.",
                "ticker": f"T{n % 16}",
            }
            for n in range(48)
        ],
    }
    for name, lines in parts.items():
        (place / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return place


CHAT_QUICK = (
    *(change for change in QUICK if not change.startswith(("data.", "evaluation.baselines"))),
    "data.near_duplicate_threshold=null",
    "training.max_steps=4",
    "training.eval_steps=4",
    "training.warmup_ratio=null",
    "training.max_length=256",
    "training.log_steps=1",
    "evaluation.limit=6",
)


def at_hand(name):
    """Overrides that name the test's files, which are not packed."""
    recipe = load_recipe(name)
    changes = []
    for part, tasks in (("data", recipe.data.tasks), ("evaluation", recipe.evaluation.tasks or ())):
        for number, task in enumerate(tasks):
            plain = task.source.replace(".jsonl.gz", ".jsonl").replace(".csv.gz", ".jsonl")
            changes += [f"{part}.tasks.{number}.source={plain}"]
            changes += [f"{part}.tasks.{number}.conversations.{key}" for key in ("near_duplicates=null",)]
    return changes


CHAT_RECIPES = [info.name for info in list_recipes() if "format: messages" in recipe_text(info.name)]


@pytest.mark.parametrize("name", CHAT_RECIPES)
def test_a_chat_recipe_runs_whole_on_a_tiny_model(base, sources, tmp_path, monkeypatch, name):
    monkeypatch.setenv("FINTUNE_DATA_DIR", str(sources))
    outcome = fintune.train(
        name,
        overrides=[f"model.base={base}", *CHAT_QUICK, *at_hand(name), "report.enabled=true", "evaluation.limit=3"],
        output_dir=tmp_path / "run",
        progress=False,
    )
    recipe = load_recipe(outcome.run_dir)
    names = [task.name for task in recipe.data.tasks]
    assert set(outcome.facts["by_task"]) == set(names)
    for row in metrics(outcome):
        told = row.get("loss_by_task", {})
        if told:
            total = sum(told[one] * row["supervised_by_task"][one] for one in told)
            assert total / sum(row["supervised_by_task"].values()) == pytest.approx(row["loss"], rel=1e-5)
    for task in recipe.evaluation.tasks or recipe.data.tasks:
        for system in ("base", "tuned"):
            found = outcome.results.find(task.name, system)
            assert found.scoring == "chat" and {"perplexity", "byte_perplexity"} <= found.metrics.keys()
            primary = "token_f1" if task.conversations.measure == "answers" else "next_turn_accuracy"
            assert found.primary == primary
    assert any("eval_loss" in row for row in metrics(outcome))
    report = json.loads((outcome.run_dir / "data_report.json").read_text())
    assert all("left_out" in task for task in report["tasks"])
    page = (outcome.run_dir / "report.md").read_text()
    assert "Perplexity (token)" in page and "By chance" in page


@pytest.mark.parametrize("name", CHAT_RECIPES)
def test_a_chat_recipe_takes_two_thirds_of_its_first_kind_of_source_and_all_of_the_others(sources, monkeypatch, name):
    monkeypatch.setenv("FINTUNE_DATA_DIR", str(sources))
    asked = {task.name: (task.proportion, task.epochs) for task in load_recipe(name).data.tasks}
    partly = "definitions" if name == "finsight-chat-smollm2" else "reddit_finance"
    assert asked == {partly: (0.67, 1), "company": (1, 1), "intro": (1, 1)}

    def trained(*changes):
        plain = [*at_hand(name), "data.near_duplicate_threshold=null", *changes]
        return load_run_data(load_recipe(name, plain)).counts

    counts = trained()
    position = list(asked).index(partly)
    whole = trained(f"data.tasks.{position}.proportion=1.0")
    n_rows = whole[partly]["trained"]
    assert counts[partly]["trained"] == round(0.67 * n_rows) < n_rows
    assert counts[partly]["left_out_by_proportion"] == n_rows - counts[partly]["trained"]
    for other in asked.keys() - {partly}:
        assert counts[other]["trained"] == whole[other]["trained"] and "left_out_by_proportion" not in counts[other]


def test_the_zero2_recipe_differs_in_what_each_process_holds_alone():
    one, shared = load_recipe("finsight-chat"), load_recipe("finsight-chat-zero2")
    assert (shared.distributed.strategy, shared.distributed.offload_optimizer) == ("zero2", True)
    assert not shared.distributed.offload_param, "ZeRO-2 shares no weights"
    same = {"name": one.name, "description": one.description, "distributed": one.distributed}
    assert shared.model_copy(update=same) == one


def mixture(base, place, sources, *changes):
    (sources / "news.txt").write_text(" ".join(f"{WORDS[n % 10]} rose by {n * 7919} points." for n in range(400)))
    tasks = [
        {"name": "talk", "source": str(sources / "finsight_sft/intro_conversations.jsonl"), "conversations": {}},
        {"name": "news", "source": str(sources / "news.txt"), "conversations": {"test_share": 0}},
        {"name": "tfns", "source": "sample"},
    ]
    tested = "evaluation.tasks=[{name: tfns, source: sample}]"
    recipe = {
        "name": "mixture",
        "model": {"base": str(base)},
        "data": {"tasks": tasks, "train_limit": 20, "near_duplicate_threshold": None},
        "training": {"samples_per_step": 8, "tokens_per_batch": 512, "max_length": 128, "learning_rate": 0.01},
    }
    recipe["data"]["tasks"][0]["conversations"]["near_duplicates"] = None
    quick = [change for change in CHAT_QUICK if not change.startswith(("training.max_length", "evaluation.limit"))]
    changes = [*quick, tested, "evaluation.limit=8", "training.best_metric=null", *changes]
    return fintune.train(recipe, overrides=changes, output_dir=place, progress=False)


def test_conversations_texts_and_labels_train_together_and_every_token_of_a_text_is_learnt(base, sources, tmp_path):
    outcome = mixture(base, tmp_path / "run", sources, "training.max_steps=null", "training.eval_steps=null")
    by_task = outcome.facts["by_task"]
    text = (sources / "news.txt").read_text().strip()
    from transformers import AutoTokenizer

    n_tokens = len(AutoTokenizer.from_pretrained(base)(text)["input_ids"]) + 1
    assert by_task["news"]["supervised"] == n_tokens, "one pass over one document, its end included"
    assert by_task["news"]["samples"] == math.ceil(n_tokens / 127) == by_task["news"]["tokens"] - n_tokens
    assert 0 < by_task["talk"]["supervised"] < by_task["talk"]["tokens"]


@pytest.mark.parametrize("packing", ["sequence", "none"])
def test_packings_follow_the_same_trajectory_on_a_chat_mixture(base, sources, tmp_path, packing):
    tree = mixture(base, tmp_path / "tree", sources)
    other = mixture(base, tmp_path / packing, sources, f"training.packing={packing}")
    np.testing.assert_allclose(losses(other), losses(tree), atol=2e-4)


def test_a_chat_run_is_reproduced_by_its_resolved_recipe(base, sources, tmp_path):
    first = mixture(base, tmp_path / "first", sources)
    again = fintune.train(first.run_dir / "recipe.yaml", output_dir=tmp_path / "again", progress=False)
    assert losses(again) == losses(first) and weights(again) == weights(first)
    assert "format: sharegpt" not in (resolved := (first.run_dir / "recipe.yaml").read_text())
    assert "format: messages" in resolved and "format: text" in resolved


def test_repeats_of_an_earlier_source_are_left_out_and_counted(base, sources, tmp_path):
    file = sources / "finsight_sft/intro_conversations.jsonl"
    first, second = ({"name": name, "source": str(file), "conversations": {"near_duplicates": 0.95}} for name in "ab")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    copy = tmp_path / "more.jsonl"
    extra = [{"messages": [{"role": "user", "content": f"Other {n}?"}, {"role": "assistant", "content": f"{n * 7919}"}]}
             for n in range(9)]  # fmt: skip
    copy.write_text("".join(json.dumps(row) + "\n" for row in (*rows, *extra)))
    second["source"] = str(copy)
    recipe = load_recipe(
        {"name": "r", "model": {"base": str(base)}, "data": {"tasks": [first, second], "remove_overlap": False}}
    )
    data = load_run_data(recipe)
    texts = [one.document for one in data.train]
    assert len(texts) == len(set(texts))
    repeats = data.counts["b"]["repeats of earlier sources"]
    assert repeats > 10 and data.quality[1].left_out["repeats of earlier sources"] == repeats


def test_a_conversation_that_shares_half_of_its_answers_with_a_held_out_one_is_not_trained_on():
    from fintune.sources import remove_overlap

    def chat(*answers, asks="Q"):
        turns = [Message(role, text) for n, answer in enumerate(answers)
                 for role, text in (("user", f"{asks} {n}"), ("assistant", answer))]  # fmt: skip
        return Example(str(answers), "chat", tuple(turns[:-1]), turns[-1].content, learnt="turns")

    a, b, c, d, e = (
        f"The {word} of the company grew by many points in the year, as the filing says." for word in WORDS[:5]
    )
    heldout = [chat(a), chat(b, c, d, "2023")]
    train = [chat(a, e, c, asks="X"), chat(b, c, e), chat(b, e, "x", "y"), chat("2023"), chat(e)]
    kept, report = remove_overlap(train, heldout)
    assert kept == (train[2], train[3], train[4])
    assert (report.removed_from_train, report.same_exchanges) == (2, 2)
    assert remove_overlap(train, heldout, same_document=False)[0] == tuple(train)


def test_preview_shows_every_answer(base, sources):
    shown = fintune.preview(
        {
            "name": "r",
            "model": {"base": str(base)},
            "data": {"tasks": [{"name": "talk", "source": str(sources / "finsight_sft/intro_conversations.jsonl"),
                                "conversations": {"near_duplicates": None}}]},
        }
    )  # fmt: skip
    supervised = "".join(text for text, _, learnt in shown[0].tokens if learnt)
    assert supervised.count("<|im_end|>") == 2
