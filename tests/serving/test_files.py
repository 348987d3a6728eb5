"""Labelling frames and files: every row once, in order, whatever stops it."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
import subprocess
import sys

import pandas as pd
import pyarrow.parquet as pq
import pytest
from tests.runs import run

import fintune
from fintune.models.tiny import write_tiny_model
from fintune.schema.errors import DataError, RunError
from fintune.schema.loading import load_recipe, save_recipe
from fintune.serving import parts
from fintune.serving import predictor as predictor_module

TEXTS = ["Profit rose 8%", "=SUM(A1) falls", "  ", 'Shares, "quoted"\nand broken', None, "Dividend kept"] * 5


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("serving")


@pytest.fixture(scope="module")
def trained(place):
    base = write_tiny_model(place / "llama")
    return run(base, place / "run", "data.train_limit=24", "data.validation_limit=null")


@pytest.fixture(scope="module")
def predictor(trained):
    return fintune.load(trained.run_dir, device="cpu")


@pytest.fixture(scope="module")
def expected(predictor):
    once = {text: predictor.predict([text])[0] if text and text.strip() else None for text in set(TEXTS)}
    return [once[text] for text in TEXTS]


def frame():
    days = pd.date_range("2024-01-01", periods=len(TEXTS)).as_unit("us")
    return pd.DataFrame({"n": range(len(TEXTS)), "day": days, "headline": TEXTS})


def check(rows, expected):
    assert [int(row["n"]) for row in rows] == list(range(len(TEXTS)))
    for row, answer in zip(rows, expected, strict=True):
        if answer is None:
            assert (pd.isna(row["prediction"]) or not row["prediction"]) and row["note"] == "no text"
        else:
            assert row["prediction"] == answer.label
            assert float(row["confidence"]) == pytest.approx(answer.confidence, abs=1e-5)
            assert float(row["p_neutral"]) == pytest.approx(answer.probabilities["neutral"], abs=1e-5)


def test_a_frame_keeps_its_rows_index_and_columns(predictor, expected):
    given = frame().set_index(pd.Index(range(100, 100 + len(TEXTS))))
    labelled = predictor.predict_frame(given, "headline")
    assert list(labelled.index) == list(given.index)
    pd.testing.assert_frame_equal(labelled[list(given.columns)], given)
    check(labelled.to_dict("records"), expected)


def test_parquet_to_parquet_keeps_types(predictor, expected, tmp_path, small_parts):
    frame().to_parquet(tmp_path / "in.parquet")
    outcome = predictor.predict_file(tmp_path / "in.parquet", "headline", tmp_path / "out.parquet")
    found = pq.read_table(tmp_path / "out.parquet")
    assert found.schema.field("day").type == pq.read_table(tmp_path / "in.parquet").schema.field("day").type
    check(found.to_pylist(), expected)
    assert (outcome.rows, outcome.unlabelled, outcome.resumed_from) == (30, 10, 0)
    assert sum(outcome.labels.values()) == 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.parquet", "out.parquet"]


def test_csv_to_csv_defuses_formulas(predictor, expected, tmp_path, small_parts):
    frame().to_csv(tmp_path / "in.csv", index=False, sep=";")
    predictor.predict_file(tmp_path / "in.csv", "headline", tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    check(rows, expected)
    assert rows[1]["headline"] == "'=SUM(A1) falls"
    assert rows[3]["headline"] == TEXTS[3]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_jsonl_goes_to_other_formats(predictor, expected, tmp_path, small_parts, suffix):
    frame().to_json(tmp_path / "in.jsonl", orient="records", lines=True, date_format="iso")
    out = tmp_path / f"out.{suffix}"
    predictor.predict_file(tmp_path / "in.jsonl", "headline", out)
    rows = (
        pq.read_table(out).to_pylist() if suffix == "parquet" else list(map(json.loads, out.read_text().splitlines()))
    )
    check(rows, expected)
    assert rows[1]["headline"] == "=SUM(A1) falls"


def test_a_stopped_job_goes_on_where_it_was(predictor, expected, tmp_path, small_parts, monkeypatch):
    frame().to_parquet(tmp_path / "in.parquet")
    write = parts.write_part

    def dies(path, answers):
        if "000000000012-" in path.name:
            path.write_bytes(b"half a part")
            raise KeyboardInterrupt
        write(path, answers)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(parts, "write_part", dies)
        predictor.predict_file(tmp_path / "in.parquet", "headline", tmp_path / "out.parquet")
    outcome = predictor.predict_file(tmp_path / "in.parquet", "headline", tmp_path / "out.parquet")
    assert outcome.resumed_from == 12
    check(pq.read_table(tmp_path / "out.parquet").to_pylist(), expected)


def test_unfinished_work_of_another_kind_is_not_mixed(predictor, tmp_path, small_parts, monkeypatch):
    frame().to_csv(tmp_path / "in.csv", index=False)

    def full(self, start, answers):
        if start:
            raise OSError(28, "No space left on device")
        written(self, start, answers)

    written = parts.PartStore.write
    with monkeypatch.context() as patched, pytest.raises(OSError):
        patched.setattr(parts.PartStore, "write", full)
        predictor.predict_file(tmp_path / "in.csv", "headline", tmp_path / "out.csv")
    frame().head(9).to_csv(tmp_path / "in.csv", index=False)
    with pytest.raises(DataError, match="unfinished work with another input"):
        predictor.predict_file(tmp_path / "in.csv", "headline", tmp_path / "out.csv")


def test_what_was_begun_with_the_adapter_apart_is_not_gone_on_with_merged(
    predictor, trained, tmp_path, small_parts, monkeypatch
):
    def stops(store):
        raise KeyboardInterrupt

    frame().to_csv(tmp_path / "in.csv", index=False)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(parts.PartStore, "answers", stops)
        predictor.predict_file(tmp_path / "in.csv", "headline", tmp_path / "out.csv")
    with pytest.raises(DataError, match="unfinished work with another model"):
        fintune.predict_file(trained.run_dir, tmp_path / "in.csv", "headline", tmp_path / "out.csv", device="cpu")


@pytest.mark.parametrize(
    "changed",
    ["evaluation.tokens_per_batch=512", "model.attention=eager", "model.dtype=float32", "training.packing=none"],
)
def test_what_decides_the_last_bits_is_part_of_what_a_model_is(trained, tmp_path, changed):
    copy = shutil.copytree(trained.run_dir, tmp_path / "run")
    before = fintune.load(copy, device="cpu").identity
    for recipe in copy.rglob("recipe.yaml"):
        save_recipe(load_recipe(recipe, [changed]), recipe)
    assert fintune.load(copy, device="cpu").identity != before == fintune.load(trained.run_dir, device="cpu").identity


def test_a_full_disk_is_one_sentence(predictor, tmp_path, monkeypatch):
    frame().to_parquet(tmp_path / "in.parquet")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(parts, "write_part", full)
    with pytest.raises(RunError, match=r"No space left on device.*start the same command again; what is there is kept"):
        predictor.predict_file(tmp_path / "in.parquet", "headline", tmp_path / "out.parquet")


def test_bad_requests_are_named(predictor, tmp_path):
    frame().to_csv(tmp_path / "in.csv", index=False)
    with pytest.raises(DataError, match="no column headlines. Did you mean headline"):
        predictor.predict_file(tmp_path / "in.csv", "headlines", tmp_path / "out.csv")
    with pytest.raises(DataError, match="unknown suffix .txt"):
        predictor.predict_file(tmp_path / "in.csv", "headline", tmp_path / "out.txt")
    (tmp_path / "out.csv").write_text("mine")
    with pytest.raises(DataError, match="exists already"):
        predictor.predict_file(tmp_path / "in.csv", "headline", tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == "mine" and len(list(tmp_path.iterdir())) == 2
    with pytest.raises(DataError, match=f"{tmp_path} is a folder. Name one data file in it"):
        predictor.predict_file(tmp_path, "headline", tmp_path / "other.csv")


def test_what_is_no_frame_or_has_no_such_column_is_named(predictor):
    with pytest.raises(DataError, match="no column x"):
        predictor.predict_frame(frame(), "x")
    with pytest.raises(DataError, match="not a list"):
        predictor.predict_frame(["Profit rose"], "headline")
    twice = pd.concat([frame(), frame()[["headline"]]], axis=1)
    with pytest.raises(DataError, match="two columns named 'headline'"):
        predictor.predict_frame(twice, "headline")
    with pytest.raises(DataError, match="column named 0"):
        predictor.predict_frame(frame().assign(**{"x": 1}).rename(columns={"x": 0}), "headline")
    with pytest.raises(DataError, match="no rows"):
        predictor.predict_frame(frame()[:0], "headline")


@pytest.mark.parametrize("dtype", ["string", "object"])
def test_missing_cells_of_a_frame_are_no_text(predictor, dtype):
    given = pd.DataFrame({"headline": pd.Series(["Profit rose", pd.NA, "Shares fell"], dtype=dtype)})
    labelled = predictor.predict_frame(given, "headline")
    assert [bool(missing) for missing in labelled["prediction"].isna()] == [False, True, False]
    assert labelled["note"][1] == "no text"
    pd.testing.assert_frame_equal(labelled[["headline"]], given)


def test_half_a_surrogate_pair_is_scored_as_the_replacement_character(predictor):
    broken, replaced = predictor.predict(["Profit \ud83d rose", "Profit \ufffd rose"])
    assert broken.probabilities == pytest.approx(replaced.probabilities, abs=1e-5)
    assert broken.text == "Profit \ud83d rose"
    labelled = predictor.predict_frame(pd.DataFrame({"t": ["Profit \ud83d rose"]}, dtype=object), "t")
    assert labelled["prediction"][0] == broken.label


def test_a_task_is_built_once(predictor, monkeypatch):
    built = []
    task_of = predictor_module.task_of
    monkeypatch.setattr(predictor_module, "task_of", lambda section: built.append(section.name) or task_of(section))
    fresh = dataclasses.replace(predictor)
    for _ in range(3):
        fresh.choices()
        fresh.predict(["Profit rose"])
    assert built == ["tfns"]


def test_labelling_files_does_not_need_the_predictor():
    program = "import sys, fintune.serving.files; sys.exit('fintune.serving.predictor' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_existing_columns_are_not_overwritten(predictor, tmp_path):
    given = frame().assign(prediction="mine")
    labelled = predictor.predict_frame(given, "headline")
    assert list(labelled["prediction"]) == ["mine"] * len(given)
    assert labelled["fintune_prediction"].notna().sum() == 20


def test_abstention_takes_its_threshold_from_validation(predictor, trained):
    answers = json.loads((trained.adapter_dir / "fintune_validation.json").read_text())["tasks"]["tfns"]
    share = sum(answers["correct"]) / len(answers["correct"])
    found = predictor.abstention(max(0.05, share - 0.15))
    assert found.n == len(answers["correct"])
    predictions = predictor.predict(["Profit rose", "Shares fell", "Dividend kept"], abstain=max(0.05, share - 0.15))
    assert [p.abstained for p in predictions] == [p.confidence < found.threshold for p in predictions]
    with pytest.raises(DataError, match=r"No threshold is sure to reach an accuracy of 0.999"):
        predictor.abstention(0.999)
    with pytest.raises(DataError, match="Give a share"):
        predictor.abstention(90)
