"""The recipes of continued pretraining on a tiny model: news, other text beside them, a task before and after."""

import json

import pytest
import yaml
from tests.runs import QUICK, losses, run

from fintune.schema.loading import list_recipes, load_recipe

CPT_RECIPES = [info.name for info in list_recipes() if info.name.startswith("news-cpt")]
WORDS = ("rates", "bonds", "stocks", "funds", "yields", "spreads", "margins", "sales", "costs", "cash")


def article(number):
    return " ".join(f"{WORDS[(number * 7 + i * i) % 10]} rose {number * 31 + i} points." for i in range(30))


@pytest.fixture
def data(tmp_path, monkeypatch):
    files = ("news-corpus/documents/train", "news-corpus/documents/test", "news-corpus/documents/validation")
    for number, name in enumerate((*files, "general/wikipedia")):
        place = tmp_path / f"{name}.jsonl"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("".join(json.dumps({"text": article(number * 100 + i)}) + "\n" for i in range(24)))
    monkeypatch.setenv("FINTUNE_DATA_DIR", str(tmp_path))


@pytest.mark.usefixtures("own_cache", "data")
@pytest.mark.parametrize("name", CPT_RECIPES)
def test_news_are_learnt_and_other_text_is_measured_beside_them(base, tmp_path, name):
    tasks = load_recipe(name).evaluation.tasks
    texts = [task.model_dump(mode="json", exclude_unset=True) for task in tasks if task.conversations is not None]
    measured = [*texts, {"name": "tfns", "source": "sample"}]
    changes = ("training.max_steps=3", "training.samples_per_step=8", "training.max_length=96", "evaluation.limit=6")
    outcome = run(
        base,
        tmp_path / "run",
        *(change for change in QUICK if not change.startswith("data.")),
        *changes,
        "training.learning_rate=1e-2",
        "training.warmup_ratio=null",
        "training.eval_steps=2",
        "training.log_steps=1",
        "evaluation.baselines=[]",
        f"evaluation.tasks={yaml.safe_dump(measured, default_flow_style=True, width=10**6).strip()}",
        recipe=name,
    )
    assert losses(outcome)[-1] < losses(outcome)[0]
    for task in ("news", "general"):
        tuned, untuned = (outcome.results.find(task, system).metrics["byte_perplexity"] for system in ("tuned", "base"))
        assert tuned.value != untuned.value
    assert outcome.results.find("tfns", "tuned").n == 6
