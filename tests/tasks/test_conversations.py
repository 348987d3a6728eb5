"""Sources of conversations: every format, what is left out and counted, splits, candidates."""

import csv
import json

import pytest
from tests.public_data import public_data

from fintune.schema.conversations import ConversationsSection
from fintune.schema.errors import DataError, RecipeError
from fintune.schema.loading import load_recipe
from fintune.schema.recipe import TaskSection
from fintune.sources.text import latin_share
from fintune.tasks.conversations import with_candidates
from fintune.tasks.loading import load_task

TURNS = [("user", "What is a bond?"), ("assistant", "A loan to an issuer."), ("user", "And a stock?"),
         ("assistant", "A share of a company.")]  # fmt: skip


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load(source, **conversations):
    section = TaskSection(name="chat", source=str(source), conversations=ConversationsSection(**conversations))
    return load_task(section)


def turns_of(example):
    return [*((m.role, m.content) for m in example.messages), ("assistant", example.target)]


def listed(turns, role="role", text="content", names=()):
    names = dict(names)
    return [{role: names.get(who, who), text: said} for who, said in turns]


ROWS = {
    "messages": {"messages": listed(TURNS)},
    "messages in parts": {"messages": [{"role": r, "content": [{"type": "text", "text": t}]} for r, t in TURNS]},
    "sharegpt": {"conversations": listed(TURNS, "from", "value", {"user": "human", "assistant": "gpt"})},
    "alpaca": {"instruction": "Sum up.", "input": "Rates rose.", "output": "Up."},
    "alpaca without input": {"instruction": "Sum up.", "input": "", "output": "Up."},
    "prompt_completion": {"prompt": " Capital of France? ", "completion": "Paris"},
    "question_answer": {"question": "Capital of France?", "answer": "Paris", "context": "..."},
    "text": {"text": "Rates rose."},
}
EXPECTED = {
    "alpaca": [("user", "Sum up.\n\nRates rose."), ("assistant", "Up.")],
    "alpaca without input": [("user", "Sum up."), ("assistant", "Up.")],
    "prompt_completion": [("user", "Capital of France?"), ("assistant", "Paris")],
    "question_answer": [("user", "Capital of France?"), ("assistant", "Paris")],
    "text": [("assistant", "Rates rose.")],
}


@pytest.mark.parametrize("name", ROWS)
def test_every_format_is_detected_and_read(tmp_path, name):
    loaded = load(write(tmp_path / "rows.jsonl", [ROWS[name]]), test_share=1.0)
    assert loaded.section.conversations.format == name.split()[0]
    (example,) = loaded.splits["test"]
    assert turns_of(example) == EXPECTED.get(name, TURNS)
    assert example.learnt == ("text" if name == "text" else "turns")
    again = load_task(loaded.section)
    assert again.splits == loaded.splits and again.content_hash == loaded.content_hash


def test_columns_are_named_and_worded(tmp_path):
    rows = [{"term": "ETF", "definition": "A fund.", "meta": {"area": "funds"}}]
    path = write(tmp_path / "rows.jsonl", rows)
    loaded = load(path, prompt="In {meta.area}, what is {term}?", answer="definition", system="Be brief.", test_share=1)
    assert turns_of(loaded.splits["test"][0]) == [
        ("system", "Be brief."), ("user", "In funds, what is ETF?"), ("assistant", "A fund."),
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"no column terms.*") as caught:
        load(path, prompt="What is {terms}?", answer="definition")
    assert "Did you mean term?" in caught.value.remedy
    with pytest.raises(DataError, match="in no format that is known"):
        load(path)


def test_rows_of_one_exchange_each_are_joined(tmp_path):
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["talk", "customer", "adviser"])
        writer.writerows([("a", "Hi", "Hello"), ("b", "Loan?", "Yes"), ("a", "Card?", "Here"), ("b", "", "Odd")])
    loaded = load(path, prompt="customer", answer="adviser", conversation="talk", test_share=1)
    (example,) = loaded.splits["test"]
    assert turns_of(example) == [("user", "Hi"), ("assistant", "Hello"), ("user", "Card?"), ("assistant", "Here")]
    assert loaded.counts["dropped"] == {"empty turn": 1} and loaded.counts["read"] == {"all": 2}
    cut = load(path, prompt="customer", answer="adviser", conversation="talk", test_share=1, faulty_turns="cut")
    assert [turns_of(one)[-1][1] for one in cut.splits["test"]] == ["Here", "Yes"]


def test_rows_that_name_no_conversation_are_not_joined(tmp_path):
    talks = ["a", "", None, "a", ""]
    rows = [{"talk": talk, "question": f"Q{n}?", "answer": f"A{n}."} for n, talk in enumerate(talks)]
    loaded = load(write(tmp_path / "rows.jsonl", rows), conversation="talk", test_share=1, near_duplicates=None)
    said = sorted([text for role, text in turns_of(one) if role == "assistant"] for one in loaded.splits["test"])
    assert said == [["A0.", "A3."], ["A1."], ["A2."], ["A4."]]


def test_conversations_are_not_joined_to_conversations(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"id": "a", "messages": listed(TURNS)}])
    with pytest.raises(DataError, match=r"format messages, but conversations\.conversation joins"):
        load(path, conversation="id")


def test_the_first_row_that_tells_decides_on_the_format(tmp_path):
    rows = [{"messages": [], "conversation": "7"}, {"messages": listed(TURNS), "conversation": "8"}]
    loaded = load(write(tmp_path / "rows.jsonl", rows), test_share=1)
    assert turns_of(loaded.splits["test"][0]) == TURNS
    assert loaded.counts["dropped"] == {"row without turns": 1}


@pytest.mark.parametrize(("given", "kept"), [("", "Be brief."), ("Be long.", "Be long."), (None, "Be brief.")])
def test_a_system_message_is_added_where_there_is_none_or_an_empty_one(tmp_path, given, kept):
    turns = TURNS if given is None else [("system", given), *TURNS]
    loaded = load(write(tmp_path / "rows.jsonl", [{"messages": listed(turns)}]), system="Be brief.", test_share=1)
    assert turns_of(loaded.splits["test"][0]) == [("system", kept), *TURNS]


FAULTS = {
    "row without turns": [],
    "turn of an unknown role": [("user", "Hi"), ("tool", "{}")],
    "empty turn": [("user", "Hi"), ("assistant", " ")],
    "roles that do not alternate": [("user", "Hi"), ("user", "Ho"), ("assistant", "Hey")],
    "conversation that does not begin with the user": [("assistant", "Hi"), ("user", "Ho"), ("assistant", "Hey")],
    "conversation without an answer at its end": [("user", "Hi"), ("assistant", "Hey"), ("user", "Well?")],
}


def test_what_does_not_fit_is_left_out_and_counted_by_reason(tmp_path):
    good = [("user", "What moved markets?"), ("assistant", "The central bank did.")]
    rows = [{"messages": listed(turns)} for turns in (good, *FAULTS.values())]
    rows.append({"messages": [{"role": "user", "content": 5}, {"role": "assistant", "content": "x"}]})
    rows.append({"messages": listed([("user", "Что нового на рынке сегодня?"), ("assistant", "Ставки выросли.")])})
    rows.append({"messages": listed([("user", "What moved  markets!"), ("assistant", "The central bank did")])})
    rows.append({"messages": listed([("user", "What moved markets?"), ("assistant", "Central bank did it.")])})
    rows.append({"messages": listed([("user", "A"), ("assistant", "B")])})
    rows.append({"messages": listed([("user", "long " * 50), ("assistant", "x")])})
    loaded = load(
        write(tmp_path / "rows.jsonl", rows),
        format="messages", test_share=1, min_characters=10, max_characters=200, near_duplicates=0.6,
    )  # fmt: skip
    wanted = {
        **dict.fromkeys(FAULTS, 1),
        "turn that is no text": 1,
        "too few Latin letters": 1,
        "repeats an earlier one": 1,
        "nearly repeats an earlier one": 1,
        "shorter than min_characters": 1,
        "longer than max_characters": 1,
    }
    assert loaded.counts["dropped"] == wanted == loaded.quality.left_out
    assert [turns_of(one) for one in loaded.splits["test"]] == [good]
    (problem,) = [one for one in loaded.quality.problems if one.kind == "left_out"]
    assert problem.severity == "warning" and "1 too few Latin letters" in problem.message
    assert sum(wanted.values()) + 1 == len(rows)


def test_a_cut_conversation_keeps_the_exchanges_before_the_fault(tmp_path):
    rows = [{"messages": listed([*TURNS, *turns])} for turns in ([("user", "Bye")], [("tool", "x")], [])]
    rows[1]["messages"][0]["content"] = "Something quite different, is it?"
    rows[2]["messages"][1]["content"] = "An answer that nobody else has given so far."
    loaded = load(write(tmp_path / "rows.jsonl", rows), faulty_turns="cut", test_share=1)
    assert [len(turns_of(one)) for one in loaded.splits["test"]] == [4, 4, 4]
    assert loaded.counts["dropped"] == {
        "(cut, not left out) conversation without an answer at its end": 1,
        "(cut, not left out) turn of an unknown role": 1,
    }


def test_nothing_left_says_why(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"question": "Привет?", "answer": "Да, привет."}])
    with pytest.raises(DataError, match="too few Latin letters"):
        load(path)
    assert len(load(path, min_latin_share=0, test_share=1).splits["test"]) == 1


@pytest.mark.parametrize(
    ("text", "share"),
    [("abc", 1), ("", 1), ("42 %", 1), ("Grüße", 1), ("日本", 0), ("ab日本", 0.5), ("ΑΒ cd", 0.5), ("１２３ é", 1)],
)
def test_the_share_of_latin_letters(text, share):
    assert latin_share(text) == share


def test_groups_are_held_out_whole_and_the_seed_changes_nothing(tmp_path):
    rows = [
        {"question": f"What is {n * 7919} in {n}?", "answer": f"It is {n * 104729}.", "company": f"C{n % 20}"}
        for n in range(400)
    ]
    path = write(tmp_path / "rows.jsonl", rows)
    loaded = load(path, group="company", test_share=0.2, validation_share=0.1, near_duplicates=None)
    groups = {split: {one.group for one in found} for split, found in loaded.splits.items()}
    assert {split: len(found) for split, found in groups.items()} == {"train": 14, "validation": 2, "test": 4}
    assert sum(map(len, loaded.splits.values())) == 400 and len(set.union(*groups.values())) == 20
    section = loaded.section
    assert load_task(section, seed=99).splits == loaded.splits
    shuffled = load(write(tmp_path / "other.jsonl", rows[::-1]), **section.conversations.model_dump())
    assert {one.group for one in shuffled.splits["test"]} == groups["test"]


def test_a_source_keeps_its_own_splits(tmp_path):
    for split, numbers in {"train": range(50), "test": range(50, 60)}.items():
        rows = [{"question": f"{n * 7919}?", "answer": f"{n * 104729} {n * n}"} for n in numbers]
        write(tmp_path / f"{split}.jsonl", rows)
    loaded = load(tmp_path, near_duplicates=None)
    assert {split: len(found) for split, found in loaded.splits.items()} == {"train": 48, "validation": 2, "test": 10}
    assert loaded.split_note.startswith("The source's own splits.")


def test_a_text_file_is_one_document_and_a_folder_one_a_file(tmp_path):
    (tmp_path / "one.txt").write_text("Rates rose.\nStocks fell@positive\n")
    loaded = load(tmp_path / "one.txt", format="text", test_share=1)
    assert [one.target for one in loaded.splits["test"]] == ["Rates rose.\nStocks fell@positive"]
    (tmp_path / "two.md").write_text("# Bonds")
    assert sorted(one.target for one in load(tmp_path, test_share=1).splits["test"]) == [
        "# Bonds", "Rates rose.\nStocks fell@positive",
    ]  # fmt: skip
    (tmp_path / "two.md").write_text("")
    (tmp_path / "one.txt").write_text(" \n")
    with pytest.raises(DataError, match="holds no text"):
        load(tmp_path)


def test_candidates_are_other_turns_and_do_not_depend_on_the_order(tmp_path):
    rows = [{"question": f"Why {n * 7919}?", "answer": f"Because {n % 30} of {(n % 30) * 77}."} for n in range(60)]
    examples = load(write(tmp_path / "rows.jsonl", rows), test_share=1, near_duplicates=None).splits["test"]
    assert examples == tuple(with_candidates(examples))
    for example in examples:
        true, *others = example.metadata["candidates"]
        assert true == example.target and len(set(others)) == 9 and true not in others
    again = with_candidates(examples[::-1])
    assert {one.example_id: one.metadata for one in again} == {one.example_id: one.metadata for one in examples}
    lonely = with_candidates([one for one in examples if one.target == examples[0].target])
    assert "candidates" in lonely[0].metadata  # as loaded: nothing better was found


def test_conversations_need_a_source_of_their_own():
    recipe = {"name": "r", "model": {"base": "x"}, "data": {"tasks": [{"name": "chat", "conversations": {}}]}}
    with pytest.raises(RecipeError, match="has no source"):
        load_recipe(recipe)
    recipe["data"]["tasks"][0]["source"] = "rows.jsonl"
    recipe["data"]["balance"] = True
    with pytest.raises(RecipeError, match="no classes to balance"):
        load_recipe(recipe)
    del recipe["data"]["balance"]
    load_recipe(recipe)
    recipe["data"]["tasks"][0]["table"] = {"text": "a", "label": "b"}
    with pytest.raises(RecipeError, match="both table and conversations"):
        load_recipe(recipe)


def test_the_finsight_files_as_counted_by_their_readme():
    source = public_data("finsight_sft/company_conversations.jsonl.gz")
    loaded = load(source, group="metadata.ticker")
    assert loaded.counts["read"] == {"all": 1354} and loaded.counts["dropped"]["empty turn"] == 2
    assert sum(loaded.counts["kept"].values()) + sum(loaded.counts["dropped"].values()) == 1354
    questions = load(public_data("financial_qa_10k/Financial-QA-10k.csv.gz"), group="ticker", answer="answer")
    assert questions.counts["read"] == {"all": 7000}
    held_out = {split: {one.group for one in loaded.splits[split]} for split in loaded.splits}
    assert held_out["test"] == {one.group for one in questions.splits["test"]}, "the same companies in both sources"
