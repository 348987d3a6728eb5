"""Finished runs side by side: paired tests, repeated runs, and what cannot be compared."""

from __future__ import annotations

import json
import statistics

import pytest
from tests.reporting.conftest import LABELS, scored_results, simulated_records

import fintune
from fintune.metrics import compare, summarise
from fintune.schema.errors import DataError, FintuneError, RunError
from fintune.schema.results import Comparison, DocumentRecord, Estimate, EvaluationResults
from fintune.schema.run_directory import RunDirectory, write_records


def write_run(place, share, *, system="tuned", task="tfns", seed=0, n=60, **fields):
    """A run with the records of one system of some skill; returns them."""
    records = simulated_records(system, share, n=n, task=task, seed=seed)
    place.mkdir(parents=True)
    run = RunDirectory(place)
    results = scored_results({(system, task): records}, **fields)
    run.results.write_text(results.model_dump_json())
    write_records(run.predictions, records)
    return records


def test_each_pair_of_systems_is_tested_on_the_documents_both_answered(tmp_path):
    poor = write_run(tmp_path / "poor", 0.4, system="base")
    good = write_run(tmp_path / "good", 0.9)
    write_run(tmp_path / "other", 0.6, seed=5)
    found = fintune.compare({"base": tmp_path / "poor", "alone": tmp_path / "good", "together": tmp_path / "other"})
    pairs = [(c.system, c.reference) for c in found.comparisons]
    assert pairs == [("alone", "base"), ("together", "base"), ("together", "alone")]
    direct = compare(good, poor, labels=LABELS, seed=17)
    assert found.comparisons[0].model_copy(update={"system": "tuned"}) == direct
    assert direct.only_system_correct > direct.only_reference_correct
    assert found.find("tfns", "alone").metrics["accuracy"].value == sum(r.correct for r in good) / 60


def test_holm_corrects_over_the_tasks_of_a_pair(tmp_path):
    for task in ("tfns", "fpb"):
        write_run(tmp_path / f"base-{task}", 0.5, system="base", task=task)
        write_run(tmp_path / f"tuned-{task}", 0.75, task=task)
    found = fintune.compare({"base": str(tmp_path / "base-*"), "tuned": str(tmp_path / "tuned-*")})
    assert [c.task for c in found.comparisons] == ["fpb", "tfns"]  # a pattern's runs are sorted by name
    smallest = min(found.comparisons, key=lambda c: c.sign_flip_p)
    assert smallest.holm_p == pytest.approx(min(1, 2 * smallest.sign_flip_p))


def test_runs_of_one_name_and_task_are_repeats(tmp_path):
    write_run(tmp_path / "base", 0.4, system="base")
    places, values = [], []
    for seed in (17, 1, 2):
        places.append(tmp_path / f"seed-{seed}")
        values.append(sum(r.correct for r in write_run(places[-1], 0.8, seed=seed)) / 60)
    found = fintune.compare({"base": tmp_path / "base", "tuned": places}, output_dir=tmp_path / "out")
    (accuracy,) = [score for score in found.repeats if score.metric == "accuracy"]
    assert accuracy.values == pytest.approx(tuple(values)) and len(set(values)) > 1
    assert accuracy.mean == pytest.approx(statistics.fmean(values))
    assert accuracy.deviation == pytest.approx(statistics.stdev(values))
    assert found.find("tfns", "tuned").metrics["accuracy"].value == values[0]
    assert len(found.comparisons) == 1
    saved = EvaluationResults.model_validate_json((tmp_path / "out" / "results.json").read_text())
    assert saved == found
    assert f"{statistics.fmean(values):.3f}" in (tmp_path / "out" / "report.md").read_text()
    lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    systems = {json.loads(line)["system"] for line in lines}
    assert systems == {"base", "tuned"} and (tmp_path / "out" / "report.html").is_file()


def test_a_run_holds_several_systems_and_one_is_named_after_a_colon(tmp_path):
    base = simulated_records("base", 0.4, n=60)
    tuned = simulated_records("tuned", 0.8, n=60)
    (tmp_path / "run").mkdir()
    run = RunDirectory(tmp_path / "run")
    run.results.write_text(scored_results({("base", "tfns"): base, ("tuned", "tfns"): tuned}).model_dump_json())
    write_records(run.predictions, [*base, *tuned])
    found = fintune.compare({"before": f"{run.path}:base", "after": run.path})
    assert found.find("tfns", "before").metrics["accuracy"].value == sum(r.correct for r in base) / 60
    assert found.find("tfns", "after").metrics["accuracy"].value == sum(r.correct for r in tuned) / 60
    with pytest.raises(RunError, match=r"no scores of 'lexicon'; it has base, tuned"):
        fintune.compare({"before": f"{run.path}:lexicon", "after": run.path})


def test_other_documents_or_versions_are_refused_with_both_places(tmp_path):
    write_run(tmp_path / "one", 0.4, system="base")
    write_run(tmp_path / "fewer", 0.9, n=40)
    with pytest.raises(DataError, match=r"n 40 in .*fewer and 60 in .*one"):
        fintune.compare({"base": tmp_path / "one", "tuned": tmp_path / "fewer"})
    write_run(tmp_path / "others", 0.9)
    rows = [
        r.model_copy(update={"example_id": "x" + r.example_id})
        for r in RunDirectory(tmp_path / "others").read_records()
    ]
    write_records(RunDirectory(tmp_path / "others").predictions, rows)
    with pytest.raises(DataError, match=r"between .*others and .*one: .*different documents"):
        fintune.compare({"base": tmp_path / "one", "tuned": tmp_path / "others"})
    write_run(tmp_path / "newer", 0.9)
    run = RunDirectory(tmp_path / "newer")
    run.results.write_text(run.results.read_text().replace('"task_version":"1"', '"task_version":"2"'))
    with pytest.raises(DataError, match=r"task_version '2' in .*newer and '1' in .*one"):
        fintune.compare({"base": tmp_path / "one", "tuned": tmp_path / "newer"})
    with pytest.raises(DataError, match=r"task_version"):  # nor are they repeats of one another
        fintune.compare({"base": tmp_path / "others", "tuned": [tmp_path / "one", tmp_path / "newer"]})


def test_answers_may_be_asked_for_in_another_form_but_labels_may_not(tmp_path):
    asked = [
        DocumentRecord(
            system=system, task="finqa", example_id=str(i), group=str(i), target=target, prediction="x", output="x",
            correct=i % 3 == 0 or i < right, counts={"exact": float(i < right)},
        )
        for system, target, right in (("base", "0.5", 5), ("tuned", "divide(1, 2)", 20))
        for i in range(40)
    ]  # fmt: skip
    for system in ("base", "tuned"):
        records = [record for record in asked if record.system == system]
        (tmp_path / system).mkdir()
        run = RunDirectory(tmp_path / system)
        result = summarise(records, task_version="1", split="test", scoring="qa", n_resamples=100)
        run.results.write_text(EvaluationResults(model="m", adapter=None, results=(result,)).model_dump_json())
        write_records(run.predictions, records)
    found = fintune.compare({"base": tmp_path / "base", "tuned": tmp_path / "tuned"})
    assert found.comparisons[0].only_system_correct == sum(5 <= i < 20 and i % 3 != 0 for i in range(40))
    write_run(tmp_path / "one", 0.4, system="base")
    write_run(tmp_path / "relabelled", 0.9)
    records = [r.model_copy(update={"target": "other"}) for r in RunDirectory(tmp_path / "relabelled").read_records()]
    write_records(RunDirectory(tmp_path / "relabelled").predictions, records)
    with pytest.raises(DataError, match="another task, target or group"):
        fintune.compare({"base": tmp_path / "one", "tuned": tmp_path / "relabelled"})


def test_records_that_were_lost_are_noticed(tmp_path):
    write_run(tmp_path / "one", 0.4, system="base")
    write_run(tmp_path / "cut", 0.9)
    lines = (tmp_path / "cut" / "predictions.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "cut" / "predictions.jsonl").write_text("".join(lines[:-5]))
    with pytest.raises(DataError, match=r"cut scores 60 documents of tfns, but its predictions.jsonl has 55"):
        fintune.compare({"base": tmp_path / "one", "tuned": tmp_path / "cut"})


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ({"base": "nowhere", "tuned": "nowhere"}, "There is no run nowhere"),
        ({"base": "one", "tuned": "none-*"}, r"No evaluated run matches none-\*"),
        ({"base": "one"}, "only one system"),
        ({"base": "one", "tuned": "empty"}, "has no results.json"),
        ({"base": "one", "tuned": ["two", "t*o"]}, "two is named twice"),
        ({"base": "one", "tuned": []}, "'tuned' has no name or no run"),
        ({"base": "one", "tuned": "torn"}, "has a line that is no record"),
    ],
)
def test_what_is_no_run_is_one_sentence(tmp_path, monkeypatch, runs, words):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "one", 0.4, system="base")
    write_run(tmp_path / "two", 0.6)
    write_run(tmp_path / "torn", 0.6)
    (tmp_path / "torn" / "predictions.jsonl").write_text('{"system": 5}\n{}\n')
    (tmp_path / "empty").mkdir()
    with pytest.raises(FintuneError, match=words):
        fintune.compare(runs)


def test_a_run_is_not_overwritten_but_a_comparison_is(tmp_path):
    write_run(tmp_path / "one", 0.4, system="base")
    write_run(tmp_path / "two", 0.9)
    runs = {"base": tmp_path / "one", "tuned": tmp_path / "two"}
    (tmp_path / "two" / "recipe.yaml").write_text("name: two")
    before = (tmp_path / "two" / "results.json").read_bytes()
    with pytest.raises(RunError, match="holds a run"):
        fintune.compare(runs, output_dir=tmp_path / "two")
    assert (tmp_path / "two" / "results.json").read_bytes() == before
    for _ in range(2):
        fintune.compare(runs, output_dir=tmp_path / "out")


def test_a_name_chooses_the_system_of_that_name(tmp_path):
    base, tuned = simulated_records("base", 0.4, n=60), simulated_records("tuned", 0.8, n=60)
    (tmp_path / "run").mkdir()
    run = RunDirectory(tmp_path / "run")
    run.results.write_text(scored_results({("base", "tfns"): base, ("tuned", "tfns"): tuned}).model_dump_json())
    write_records(run.predictions, [*base, *tuned])
    found = fintune.compare({"base": run.path, "mine": run.path}, output_dir=tmp_path / "out")
    assert found.find("tfns", "base").metrics["accuracy"].value == sum(r.correct for r in base) / 60
    assert found.counts == {"base stands for": f"{run.path}:base", "mine stands for": f"{run.path}:tuned"}
    page = (tmp_path / "out" / "report.md").read_text()
    assert "mine against Base model: better on tfns." in page and "no tuned model" not in page
    assert "published figures beside ours (mine)" in page


@pytest.mark.parametrize(("p", "side"), [(0.01, "above"), (0.25, "unclear"), (None, "above")])
def test_an_interval_off_zero_is_not_enough_where_the_test_says_otherwise(p, side):
    kept = Estimate(value=0.4, low=0.1, high=0.7)
    wrong = Estimate(value=-0.4, low=-0.7, high=-0.1)
    comparison = Comparison(
        task="ner", system="alone", reference="base", n=98, only_system_correct=50, only_reference_correct=0,
        mcnemar_p=None, sign_flip_p=p, primary="entity_f1", differences={"accuracy": wrong, "entity_f1": kept},
    )  # fmt: skip
    assert comparison.headline == ("entity_f1", kept)
    assert comparison.side == side
