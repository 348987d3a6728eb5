"""``fintune quant`` from a price table to scores, on made-up prices."""

import json
from datetime import date

import numpy as np
import pytest

import fintune
from fintune.cli import main
from fintune.forecasting.quant.building import read_build
from fintune.forecasting.quant.days import read_days
from fintune.schema.errors import DataError, ModelError, RunError
from fintune.schema.loading import load_recipe
from tests.forecasting.quant.made_up import bar_frame


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quant")
    bar_frame(420).to_csv(folder / "prices.csv", index=False)
    shape = ["--layers", "1", "--width", "32", "--window-days", "8"]
    assert main(["quant", "build", str(folder / "prices.csv"), "-o", str(folder / "data"), *shape]) == 0
    return folder


def test_the_folder_holds_whole_days_by_split(built):
    data = built / "data"
    codec, window_days, facts = read_build(data)
    days = read_days(data / "days.parquet")
    assert facts["days"] == {split: int(days.in_split(split).sum()) for split in ("train", "validation", "test")}
    assert window_days == 8 and facts["warm_up_days"] == 3 * 21
    tokens = {}
    for split in facts["days"]:
        rows = [json.loads(line) for line in (data / "tokens" / f"{split}.jsonl").read_text().splitlines()]
        tokens[split] = {row["ticker"]: codec.parse(row["text"]) for row in rows}
        lines = [json.loads(line) for line in (data / "lines" / f"{split}.jsonl").read_text().splitlines()]
        assert [len(row["text"].split("\n")) for row in lines] == [len(one) for one in tokens[split].values()]
    first = next(days.series())
    np.testing.assert_array_equal(np.concatenate([one["AA"] for one in tokens.values()]), days.codes[first])
    assert days.dates[days.in_split("train")].max() < days.dates[days.in_split("validation")].min()
    assert days.dates[days.in_split("validation")].max() < days.dates[days.in_split("test")].min()


def test_bins_and_training_days_know_nothing_of_later_ones(built, tmp_path):
    _, _, facts = read_build(built / "data")
    frame = bar_frame(420)
    later = frame["Date"] >= facts["first_validation"]
    frame.loc[later, ["Open", "High", "Low", "Close", "Adj Close", "Volume"]] *= 3
    frame.to_csv(tmp_path / "prices.csv", index=False)
    fintune.quant_build(tmp_path / "prices.csv", tmp_path / "data", layers=1, width=32, window_days=8)
    train = "tokens/train.jsonl"
    assert (tmp_path / "data" / train).read_bytes() == (built / "data" / train).read_bytes()
    assert read_build(tmp_path / "data")[0].to_json() == read_build(built / "data")[0].to_json()


def test_the_command_scores_a_model_and_says_who_won(built, capsys):
    model, data = str(built / "data" / "untrained"), str(built / "data")
    assert main(["quant", "evaluate", model, "--data", data, "--no-garch"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "GPT is worse than random walk, empirical" in said and "context: level" in said
    assert "scored before" not in said
    found = json.loads((built / "data" / "untrained" / "quant_test.json").read_text())
    assert [one["name"] for one in found["scores"]][:2] == ["GPT", "random walk, normal"]
    assert found["scores"][0]["metrics"]["log_score"]["value"] == pytest.approx(-np.log(32), abs=1e-6)
    assert found["n_days"] == 63 and found["n"] == 3 * 63
    assert main(["quant", "evaluate", model, "--data", data, "--no-garch"]) == 0
    assert "test days were scored before" in " ".join(capsys.readouterr().out.split())


def test_mistakes_are_said(built, tmp_path, capsys):
    data = str(built / "data")
    with pytest.raises(DataError, match="already"):
        fintune.quant_build(built / "prices.csv", data)
    with pytest.raises(DataError, match="no ticker ZZ"):
        fintune.quant_build(built / "prices.csv", tmp_path / "new", tickers=["ZZ"])
    with pytest.raises(RunError, match="no trained model"):
        fintune.quant_evaluate(tmp_path, data=data, garch=False)
    assert (
        main(["quant", "build", str(built / "prices.csv"), "-o", str(tmp_path / "x"), "--test-from", "2001-01-01"]) == 2
    )
    assert "without a day" in capsys.readouterr().err


def test_a_model_of_another_build_is_refused(built, tmp_path):
    """Other dates, the same words: its training days may be this build's test days."""
    shape = {"layers": 1, "width": 32, "window_days": 8}
    dates = {"validation_from": date(2021, 5, 3), "test_from": date(2021, 6, 1)}
    fintune.quant_build(built / "prices.csv", tmp_path / "late", **dates, **shape)
    later = tmp_path / "late" / "untrained"
    with pytest.raises(ModelError, match="started from other built prices"):
        fintune.quant_evaluate(later, data=built / "data", garch=False)
    config = json.loads((later / "config.json").read_text())
    del config["price_data"]
    (later / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="does not say which built prices"):
        fintune.quant_evaluate(later, data=tmp_path / "late", garch=False)
    assert not (later / "quant_test.json").exists()


@pytest.mark.slow
def test_the_recipe_trains_and_the_run_is_scored(built, tmp_path):
    recipe = load_recipe(built / "data" / "recipe.yaml")
    assert recipe.training.max_length == 8 * 8 + 1
    few = ["training.max_steps=40", "training.eval_steps=20", "training.save_steps=20", "training.learning_rate=1e-2"]
    fintune.train(str(built / "data" / "recipe.yaml"), overrides=few, output_dir=tmp_path / "run")
    found = fintune.quant_evaluate(tmp_path / "run", data=built / "data", split="validation", garch=False)
    assert found.scores[0].metrics["log_score"].value > -np.log(32) + 0.1
    assert found.scores[0].counts["probability given to tokens that are no change"] < 0.2
