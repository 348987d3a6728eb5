"""Classical baselines: what each answers, from the training rows alone, in the example's own label words."""

import pytest

from fintune.evaluation.baselines import run_baselines
from fintune.schema.errors import RecipeError
from fintune.schema.recipe import TaskSection
from fintune.tasks import get_task, load_task
from fintune.tasks.base import Row

TASK = get_task("fiqa_sa")
TEXTS = {"positive": "Profits soar, great gains", "negative": "Terrible losses and fraud", "neutral": "The board met"}


def examples(labels, prompt="flare"):
    return [
        TASK.make_example(Row(f"{number}", f"{TEXTS[label]} {number % 7}", label, "headline"), prompt)
        for number, label in enumerate(labels)
    ]


def test_majority_answers_the_commonest_training_label_with_its_frequencies():
    train, test = examples(["neutral"] * 3 + ["positive"]), examples(["positive", "neutral"])
    records = run_baselines(["majority"], train, test, TASK, 1)["majority"]
    assert [(r.prediction, r.correct) for r in records] == [("Neutral", False), ("Neutral", True)]
    assert records[0].probabilities == (0.0, 0.75, 0.25) and records[0].choices == ("Negative", "Neutral", "Positive")


def test_the_lexicon_needs_no_training_rows():
    test = examples(["positive", "negative", "neutral"])
    records = run_baselines(["lexicon", "majority", "tfidf"], [], test, TASK, 1)
    assert set(records) == {"lexicon"}
    assert [r.prediction for r in records["lexicon"]] == ["Positive", "Negative", "Neutral"]


def test_tfidf_learns_and_is_deterministic():
    train, test = examples(list(TEXTS) * 8), examples(list(TEXTS))
    first = run_baselines(["tfidf"], train, test, TASK, 1)["tfidf"]
    assert all(r.correct for r in first)
    assert all(sum(r.probabilities) == pytest.approx(1) for r in first)
    assert first == run_baselines(["tfidf"], train, test, TASK, 1)["tfidf"]


def test_training_rows_under_another_prompt_count_in_the_test_prompts_words():
    train, test = examples(list(TEXTS) * 8 + ["neutral"], "short"), examples(list(TEXTS), "flare")
    records = run_baselines(["majority", "tfidf"], train, test, TASK, 1)
    assert all(r.correct for r in records["tfidf"])
    assert records["majority"][0].prediction == "Neutral"


@pytest.mark.parametrize("labels", [["neutral"] * 4, ["neutral", "positive"], ["neutral"] * 3 + ["positive"] * 3])
def test_tfidf_survives_few_rows_and_absent_classes(labels):
    records = run_baselines(["tfidf"], examples(labels), examples(list(TEXTS)), TASK, 1)["tfidf"]
    assert all(len(r.probabilities) == 3 and r.probabilities[0] == 0 for r in records)


def test_an_unknown_baseline_is_named():
    with pytest.raises(RecipeError, match="no baseline named 'svm'"):
        run_baselines(["svm"], [], examples(["neutral"]), TASK, 1)


@pytest.mark.slow
def test_on_the_shipped_sample_tfidf_beats_the_lexicon_beats_the_majority():
    loaded = load_task(TaskSection(name="tfns", source="sample"))
    train, test = loaded.splits["train"], loaded.splits["test"]
    records = run_baselines(["majority", "lexicon", "tfidf"], train, test, loaded.task, 17)
    accuracy = {name: sum(r.correct for r in rows) / len(rows) for name, rows in records.items()}
    assert (
        accuracy["majority"] == pytest.approx(1 / 3) and accuracy["majority"] < accuracy["lexicon"] < accuracy["tfidf"]
    )
