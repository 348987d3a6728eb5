"""Named adapters from the outside: the Python functions, the command line, and names in the place of paths."""

from __future__ import annotations

import io
import json
import shutil

import pandas as pd
import pytest

import fintune
from fintune.cli import main
from fintune.models import write_tiny_model
from fintune.models.adapter_files import read_adapter_info
from fintune.schema.adapter_records import get_stored, registry_root
from fintune.schema.errors import AdapterError
from tests.runs import run

TEXTS = ["Profit rose 5% on strong demand", "Sales fell sharply after the warning", "The board met in Helsinki"]
pytestmark = pytest.mark.usefixtures("own_cache", "own_home")


@pytest.fixture(scope="module")
def runs(base, tmp_path_factory):
    """Two runs that differ in rank, scale, prompt length and what they learnt."""
    place = tmp_path_factory.mktemp("runs")
    return [
        run(base, place / "one", "training.learning_rate=5e-3"),
        run(
            base,
            place / "two",
            "seed=3",
            "adapter.rank=2",
            "adapter.rslora=true",
            "adapter.targets=[q_proj, down_proj]",
            "training.learning_rate=2e-2",
            "training.max_length=64",
            "training.packing=none",
        ),
    ]


def answers(predictions):
    return [prediction.probabilities for prediction in predictions]


def test_a_record_says_where_an_adapter_came_from(runs, base):
    outcome = runs[0]
    first = fintune.adapters.add(outcome.run_dir, "fin")
    second = fintune.adapters.add(outcome.adapter_dir, "fin", parent="fin@1")
    assert (first.version, second.version) == (1, 2)
    for record in (first, second):
        assert record.run == str(outcome.run_dir.resolve()) and record.base == str(base)
        assert record.base_content_hash == outcome.facts["base_sha256"]
        (score,) = record.scores
        measured = outcome.results.find("tfns", "tuned")
        assert (score.value, score.n) == (measured.metrics[measured.primary].value, measured.n)
    assert second.parents == (first.as_parent(),)
    details = fintune.adapters.show("fin")
    assert [parent.reference for parent in details.lineage] == ["fin@1"]
    assert details.contents.rank == 4 and set(details.contents.norms) >= {"q_proj", "down_proj"}
    assert [record.reference for record in fintune.adapters.records()] == ["fin@1", "fin@2"]


def test_what_training_started_from_is_the_parent(runs, base, tmp_path):
    one, two = (outcome.run_dir for outcome in runs)
    shutil.copytree(one, tmp_path / "earlier")
    onward = run(base, tmp_path / "onward", f"adapter.init_adapter={tmp_path / 'earlier'}")
    before = fintune.adapters.add(onward.run_dir, "unnamed")
    (parent,) = before.parents
    assert (parent.name, parent.version, parent.reference) == (str(tmp_path / "earlier"), None, parent.name)
    assert parent.content_hash == read_adapter_info(one / "adapter").content_hash
    shutil.rmtree(tmp_path / "earlier")
    assert fintune.adapters.add(onward.run_dir, "unnamed").parents[0].content_hash is None
    first = fintune.adapters.add(one, "fin")
    fintune.adapters.add(two, "fin")
    assert fintune.adapters.add(onward.adapter_dir, "onward").parents == (first.as_parent(),), "by its hash"
    named = run(base, tmp_path / "named", "adapter.init_adapter=fin@1")
    fintune.adapters.add(one, "afterwards")
    assert fintune.adapters.add(named.run_dir, "named").parents == (first.as_parent(),), "the name it was given by"
    with pytest.raises(AdapterError, match="lineage would lead nowhere"):
        fintune.adapters.remove("fin@1")
    assert fintune.adapters.add(named.run_dir, "named", parent="afterwards").parents[0].name == "afterwards"
    assert fintune.adapters.add(two, "alone").parents == ()


def test_the_same_rows_have_the_same_data_hash_and_other_rows_another(runs, tmp_path):
    other = shutil.copytree(runs[0].adapter_dir, tmp_path / "other")
    rows = fintune.api.load_recipe(other).data.tasks[0].content_hash
    text = (other / "recipe.yaml").read_text()
    (other / "recipe.yaml").write_text(text.replace(rows, "f" * 64))
    one, two = (fintune.adapters.add(place, "fin") for place in (runs[0].run_dir, other))
    assert one.data_hash != two.data_hash and one.recipe_hash != two.recipe_hash
    (other / "recipe.yaml").write_text(text.replace("seed: 17", "seed: 18"))
    three = fintune.adapters.add(other, "fin")
    assert one.data_hash == three.data_hash and one.recipe_hash != three.recipe_hash
    (other / "recipe.yaml").write_text(text.replace(rows, "null"))
    assert fintune.adapters.add(other, "fin").data_hash is None


def test_names_stand_for_paths(runs, base, tmp_path, capsys):
    fintune.adapters.add(runs[0].run_dir, "fin")
    fintune.adapters.add(runs[1].run_dir, "fin")
    for reference, outcome in (("fin@1", runs[0]), ("fin", runs[1])):
        expected = fintune.load(outcome.run_dir)
        found = fintune.load(reference)
        assert found.identity == expected.identity and found.tasks == expected.tasks
        assert answers(found.predict(TEXTS)) == answers(expected.predict(TEXTS))
    options = {"tasks": ["tfns"], "limit": 6, "progress": False}
    by_path = fintune.evaluate(base, adapter=runs[0].adapter_dir, **options)
    by_name = fintune.evaluate(base, adapter="fin@1", **options)
    as_model = fintune.evaluate("fin@1", **options)
    assert by_path.results == by_name.results == as_model.results
    assert main(["predict", "fin@1", *TEXTS, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [row["probabilities"] for row in shown] == answers(fintune.load(runs[0].run_dir).predict(TEXTS))
    with pytest.raises(AdapterError, match=r"called fim\. The nearest are fin"):
        fintune.evaluate(base, adapter="fim", **options)
    assert main(["predict", "fim", "x"]) == 2 and "Did you mean fin?" in capsys.readouterr().err


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_switched_adapters_answer_as_each_does_alone(runs, base, tmp_path, quantization):
    fintune.adapters.add(runs[0].run_dir, "fin")
    together = fintune.load(base, adapters={"fin": "fin", "two": runs[1].run_dir}, quantization=quantization)
    alone = {
        "fin": fintune.load(runs[0].run_dir, quantization=quantization),
        "two": fintune.load(runs[1].run_dir, quantization=quantization),
        None: fintune.load(base, quantization=quantization),
    }
    expected = {name: answers(model.predict(TEXTS)) for name, model in alone.items()}
    assert expected["fin"] != expected["two"] != expected[None] != expected["fin"]
    for name in ("fin", "two", None, "two", "fin", None):
        assert answers(together.predict(TEXTS, adapter=name)) == expected[name]
    frame = pd.DataFrame({"text": TEXTS})
    for name in ("two", "fin"):
        found = together.predict_frame(frame, "text", adapter=name)
        pd.testing.assert_frame_equal(found, alone[name].predict_frame(frame, "text"))
        assert together.on(name).identity == alone[name].identity
    with pytest.raises(AdapterError, match=r"name nothing\. Choose fin or two"):
        together.predict(TEXTS, adapter="nothing")


def test_adapters_of_other_bases_or_held_otherwise_are_refused(runs, base, tmp_path):
    fintune.adapters.add(runs[0].run_dir, "fin")
    other = write_tiny_model(tmp_path / "other", seed=5)
    with pytest.raises(AdapterError, match="was trained on"):
        fintune.load(other, adapters=["fin"])
    foreign = run(other, tmp_path / "foreign", "evaluation.limit=3", "model.quantization=nf4", "training.max_steps=2")
    with pytest.raises(AdapterError, match="one base"):
        fintune.adapters.add(foreign.run_dir, "foreign", parent="fin")
    fintune.adapters.add(foreign.run_dir, "foreign")
    with pytest.raises(AdapterError, match=r"another model\.quantization: none and nf4"):
        fintune.load(base, adapters=["fin", "foreign"])
    with pytest.raises(AdapterError, match="was trained on"):
        fintune.load(base, adapters=["fin", "foreign"], quantization="none")
    with pytest.raises(AdapterError, match="one base"):
        fintune.adapters.combine(["fin", "foreign"], "both", method="cat")
    with pytest.raises(AdapterError, match="one base"):
        fintune.adapters.diff("fin", "foreign")


def test_a_combination_is_an_adapter_like_any_other(runs, base):
    fintune.adapters.add(runs[0].run_dir, "fin")
    fintune.adapters.add(runs[1].run_dir, "two")
    record = fintune.adapters.combine(["fin", "two"], "both", method="cat", weights=(0.75, 0.25))
    assert record.method == "cat" and record.gap < 1e-6 and record.run is None
    assert [(parent.reference, parent.weight) for parent in record.parents] == [("fin@1", 0.75), ("two@1", 0.25)]
    assert record.base_content_hash == get_stored(registry_root(), "fin").record.base_content_hash
    stored = get_stored(registry_root(), "both")
    assert "fintune_validation.json" not in record.files and "tokenizer.json" in record.files
    assert [task.name for task in fintune.api.load_recipe(stored.path).data.tasks] == ["tfns"]
    only_first = fintune.adapters.combine(["fin", "two"], "first", method="cat", weights=(1.0, 0.0))
    found, expected = fintune.load(only_first.reference), fintune.load("fin")
    for one, other in zip(answers(found.predict(TEXTS)), answers(expected.predict(TEXTS)), strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    assert fintune.adapters.diff("fin", "first").relative < 1e-6
    with pytest.raises(AdapterError, match="parent"):
        fintune.adapters.remove("fin")


def test_the_command_line(runs, base, tmp_path, capsys, monkeypatch):
    one, two = (str(outcome.run_dir) for outcome in runs)
    assert main(["adapters", "list"]) == 0 and "No adapter has a name yet" in capsys.readouterr().out
    assert main(["adapters", "add", one, "fin"]) == 0 and "fin@1" in capsys.readouterr().out
    assert main(["adapters", "add", two, "other", "--parent", "fin"]) == 0
    assert main(["adapters", "combine", "fin", "other", "--as", "both", "--method", "svd", "--weights", "1,1"]) == 0
    capsys.readouterr()
    assert main(["adapters", "show", "both", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [parent["name"] for parent in shown["lineage"]] == ["fin", "other"]
    assert main(["adapters", "list"]) == 0
    listed = capsys.readouterr().out
    assert all(word in listed for word in ("fin@1", "both@1", "svd from"))
    assert main(["adapters", "diff", "fin", "other"]) == 0 and "use_rslora: False -> True" in capsys.readouterr().out
    assert main(["adapters", "merge", "both", "--output", str(tmp_path / "merged"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["gap"]["mean"] < report["gap"]["largest"] and fintune.load(tmp_path / "merged").predict(TEXTS)
    assert main(["adapters", "verify"]) == 0 and "3 versions checked, 0 damaged" in capsys.readouterr().out
    assert main(["adapters", "remove", "fin", "--yes"]) == 2
    monkeypatch.setattr("sys.stdin", io.StringIO())  # nobody says yes
    assert main(["adapters", "remove", "both"]) != 0
    assert main(["adapters", "remove", "both", "--yes"]) == 0
    (get_stored(registry_root(), "fin").path / "tokenizer.json").write_text("{}")
    assert main(["adapters", "verify"]) == 1 and "tokenizer.json has changed" in capsys.readouterr().out
    assert main(["adapters", "combine", "fin", "other", "--as", "x", "--weights", "a,b"]) == 2
