"""The rows of a run: what is trained on and validated on is not what is scored."""

import csv
import time
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest

from fintune.evaluation import suite
from fintune.evaluation.baselines import VADER_WINDOW, run_baselines
from fintune.evaluation.suite import load_run_data, scored_documents
from fintune.schema.errors import RecipeError
from fintune.schema.example import Example, Message
from fintune.schema.loading import load_recipe
from fintune.schema.recipe import EvaluationSection
from fintune.sources import near_duplicates
from fintune.tasks import get_task

THEMES = (
    "Quarterly profit of {} rises on strong demand for machinery",
    "{} cuts its dividend after losses in the shipping division",
    "Board of {} keeps the outlook for the financial year unchanged",
)


def write(path, names):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for name in names:
            writer.writerows([theme.format(name), label] for label, theme in zip((1, 0, 2), THEMES, strict=True))


def test_validation_and_training_rows_are_unlike_every_scored_row(tmp_path):
    # Equal but for a letter: near-duplicates of the test rows in both other splits.
    write(tmp_path / "test.csv", ["Metsälautatalo Oyj", "Kiinteistö-Invest"])
    write(tmp_path / "validation.csv", ["Metsälautatalo Oy", "Quxbar Zymurgy Holdings Incorporated"])
    write(tmp_path / "train.csv", ["Kiinteistö Invests", "Vandelay Import and Export Corporation of America"])
    recipe = load_recipe(
        {
            "name": "x",
            "model": {"base": "b"},
            "data": {"tasks": [{"name": "tfns", "source": str(tmp_path)}], "near_duplicate_threshold": 0.7},
        }
    )
    data = load_run_data(recipe)
    tests = [example.document for _, rows in data.tested for example in rows]
    assert len(tests) == 6 and len(data.train) == len(data.validation) == 3
    for rows in (data.train, data.validation):
        assert not any(near_duplicates([example.document for example in rows], tests, threshold=0.7))
    assert data.counts["tfns"]["validation_rows_like_test"] == 3
    kept = load_run_data(load_recipe(recipe, ["data.remove_overlap=false"]))
    assert len(kept.train) == len(kept.validation) == 6


def test_a_proportion_of_the_training_rows_is_drawn_by_the_seed_and_counted():
    def rows(*changes):
        data = load_run_data(load_recipe("quickstart", ["data.near_duplicate_threshold=null", *changes]))
        return [example.example_id for example in data.train], data.counts["tfns"], data.tested

    whole, counts, tested = rows()
    part, counted, tested_beside = rows("data.tasks.0.proportion=0.67")
    assert len(part) == round(0.67 * len(whole)) == counted["trained"] and set(part) < set(whole)
    assert counted["left_out_by_proportion"] == len(whole) - len(part) and "left_out_by_proportion" not in counts
    assert rows("data.tasks.0.proportion=0.67")[0] == part != rows("data.tasks.0.proportion=0.67", "seed=18")[0]
    assert [len(documents) for _, documents in tested] == [len(documents) for _, documents in tested_beside]
    assert len(rows("data.tasks.0.proportion=1e-6")[0]) == 1


def test_the_lexicon_reads_long_documents_in_windows_of_words():
    choices = ("negative", "neutral", "positive")

    def example(name, text):
        return Example(name, "tfns", (Message.around("user", "?", text),), "positive", choices)

    good = "great profit and excellent growth " * 2000
    bad = "terrible loss and awful failure " * 2000
    started = time.monotonic()
    found = run_baselines(
        ("lexicon",), [], [example("g", good), example("b", bad), example("s", "great profit")], get_task("tfns"), 17
    )
    (records,) = found.values()
    assert [record.prediction for record in records] == ["positive", "negative", "positive"]
    assert len(good.split()) > 20 * VADER_WINDOW and time.monotonic() - started < 20


def conversations(history, lengths):
    """A task whose dialogues have these many turns; two of them at a time are about one page."""
    rows = tuple(
        Example(
            f"{number}-{turn}", "fpb", (Message("user", "?"),), "x", group=f"page {number // 2}",
            metadata={"turn": turn, "dialogue_id": f"d{number}"},
        )
        for number, length in enumerate(lengths)
        for turn in range(length)
    )  # fmt: skip
    return SimpleNamespace(task=replace(get_task("fpb"), history=history), splits={"test": rows})


@pytest.mark.parametrize("history", ["given", "own"])
def test_a_limit_keeps_dialogues_whole(history):
    loaded = conversations(history, [3] * 9)
    for limit, expected in ((7, 6), (1, 3), (None, 27)):
        kept = scored_documents(loaded, EvaluationSection(limit=limit))
        assert len(kept) == expected
        assert set(Counter(row.metadata["dialogue_id"] for row in kept).values()) == {3}


def test_a_limit_does_not_favour_short_dialogues():
    loaded = conversations("given", [1, 5] * 20)
    drawn = [row.metadata["dialogue_id"] for row in scored_documents(loaded, EvaluationSection())]
    in_order = list(dict.fromkeys(drawn))
    for limit in range(1, 30):
        kept = scored_documents(loaded, EvaluationSection(limit=limit))
        found = list(dict.fromkeys(row.metadata["dialogue_id"] for row in kept))
        assert found == in_order[: len(found)], "one after the other"
        following = in_order[len(found)]
        assert len(kept) + drawn.count(following) > limit, "and as many as fit"


def test_one_row_is_not_called_rows(tmp_path):
    write(tmp_path / "test.csv", ["Metsälautatalo"])
    write(tmp_path / "train.csv", ["Vandelay Import and Export Corporation of America"])
    tasks = [{"name": "tfns", "source": str(tmp_path)}]
    recipe = load_recipe({"name": "x", "model": {"base": "b"}, "data": {"tasks": tasks, "train_limit": 1}})
    lines = load_run_data(load_recipe(recipe, ["evaluation.limit=1"])).summary()
    assert lines[-2:] == ["tfns: 1 training row.", "tfns: 1 document to score."]
    assert load_run_data(recipe).summary()[-1] == "tfns: 3 documents to score."


def fpb_and_tfns(tmp_path):
    """A recipe on two data sets, each with texts that occur twice."""
    tasks = []
    for name in ("fpb", "tfns"):
        (tmp_path / name).mkdir()
        for split, names in {"train": ["Quxbar", "Vandelay", "Quxbar"], "test": ["Metsälautatalo", "Zymurgy"]}.items():
            write(tmp_path / name / f"{split}.csv", names)
        tasks.append({"name": name, "source": str(tmp_path / name)})
    data = {"tasks": tasks, "near_duplicate_threshold": None}
    return load_recipe({"name": "x", "model": {"base": "b"}, "data": data})


def test_an_evaluation_only_counts_the_flaws_that_training_must_know(tmp_path):
    recipe = fpb_and_tfns(tmp_path)
    trained, measured = (load_run_data(recipe, training=training).findings() for training in (True, False))
    assert len(trained) >= 2 and any("text of an earlier row" in line for line in trained)
    (line,) = measured
    assert "`fintune data check --tasks fpb,tfns`" in line and f"{len(trained)} kinds of flaws" in line


def test_a_prompt_that_no_task_has_is_named_before_any_row_is_read(tmp_path, monkeypatch):
    recipe = fpb_and_tfns(tmp_path)
    wrong = load_recipe(recipe, ["data.tasks.0.prompt=flaer", "data.tasks.1.prompt=flaer"])
    monkeypatch.setattr(suite, "load_task", lambda *a, **k: pytest.fail("rows were read"))
    with pytest.raises(RecipeError, match="Task fpb has no prompt named 'flaer'"):
        load_run_data(wrong, training=False, optional=("fpb", "tfns"))


def test_a_suites_task_without_the_prompt_is_left_out_for_that_reason(tmp_path):
    wrong = load_recipe(fpb_and_tfns(tmp_path), ["data.tasks.0.prompt=flaer"])
    loaded = []
    data = load_run_data(wrong, training=False, optional=("fpb", "tfns"), on_loaded=loaded.append)
    assert [task.task.name for task, _ in data.tested] == ["tfns"] and loaded == [1, 1]
    assert "no prompt named 'flaer'" in data.skipped["fpb"]


def test_under_a_limit_baselines_learn_from_nothing_like_the_scored_documents(tmp_path):
    write(tmp_path / "test.csv", ["Metsälautatalo Oyj", "Kiinteistö-Invest"])
    write(tmp_path / "train.csv", ["Metsälautatalo Oy", "Kiinteistö Invests"])
    recipe = load_recipe(
        {
            "name": "x",
            "model": {"base": "b"},
            "data": {"tasks": [{"name": "tfns", "source": str(tmp_path)}], "near_duplicate_threshold": 0.7},
        }
    )
    assert not load_run_data(recipe, training=False).train, "all held-out rows count"
    data = load_run_data(load_recipe(recipe, ["evaluation.limit=2"]), training=False)
    scored = [example.document for _, rows in data.tested for example in rows]
    assert len(scored) == 2 and len(data.train) == 6 - 2
    assert not any(near_duplicates([example.document for example in data.train], scored, threshold=0.7))
    assert not load_run_data(load_recipe(recipe, ["evaluation.baselines=[lexicon]"]), training=False).train
