"""The forecaster's recipes, run for two steps on a tiny model and made-up rows."""

import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from tests.runs import losses, run
from tests.tasks.weekly.conftest import trading_days
from tests.tasks.weekly.test_published import SUNDAYS, published_row, write

import fintune
from fintune.schema.loading import load_recipe

FEW = (
    "training.warmup_ratio=null",
    "training.max_steps=2",
    "training.samples_per_step=4",
    "data.train_limit=8",
    "evaluation.limit=6",
    "evaluation.baselines=[majority,last_direction,always_rise]",
)


@pytest.fixture
def corpus(tmp_path):
    """Two stocks in StockNet's layout, from 2013 to 2015, with a tweet every other day."""
    folder, draw = tmp_path / "stock_acl18", np.random.default_rng(2)
    folder.mkdir()
    days = [day for day in trading_days(760, datetime(2013, 1, 2).date()) if day < "2016"]
    lines = ["Symbol,Date,Open,High,Low,Close,Adj Close,Volume"]
    for symbol in ("AAA", "BBB"):
        close = 40 * np.cumprod(1 + draw.normal(0, 0.02, len(days)))
        lines += [f"{symbol},{day},1,1,1,1,{price:.4f},9" for day, price in zip(days, close, strict=True)]
    (folder / "prices_raw.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    start, tweets = datetime(2014, 1, 2, 15, tzinfo=UTC), []
    for number in range(360):
        when = start + timedelta(days=2 * number)
        tweets.append(
            {
                "symbol": "AAABBB"[3 * (number % 2) :][:3],
                "date": str(when.date()),
                "created_at": when.strftime("%a %b %d %H:%M:%S +0000 %Y"),
                "text": f"$ abc talk number {number} URL",
            }
        )
    for part in ("train", "valid", "test"):
        rows = tweets if part == "train" else []
        (folder / f"tweets_{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def test_the_small_forecaster_trains_and_is_scored_offline(base, tmp_path, corpus, monkeypatch):
    monkeypatch.setenv("FINTUNE_DATA_DIR", str(tmp_path))
    shown = fintune.preview("dow30-forecaster-smollm2", overrides=[f"model.base={base}"], samples=2)
    for sample in shown:
        learnt = "".join(text for text, _, supervised in sample.tokens if supervised).removesuffix("<|im_end|>")
        assert learnt in {"Up", "Down"}
    outcome = run(base, tmp_path / "run", *FEW, "report.enabled=true", recipe="dow30-forecaster-smollm2")
    assert np.isfinite(losses(outcome)).all() and len(losses(outcome)) == 2
    found = {(one.task, one.system): one for one in outcome.results.results}
    assert {task for task, _ in found} == {"weekly_acl18", "weekly_acl18_forecast"}
    assert {"base", "tuned", "majority", "last_direction", "always_rise"} <= {system for _, system in found}
    ranked, written = found["weekly_acl18", "tuned"], found["weekly_acl18_forecast", "tuned"]
    assert ranked.decoding == "ranked" and "mcc" in ranked.metrics and ranked.labels == ("Up", "Down")
    assert written.decoding == "written" and {"answered", "right_direction", "right_range"} <= set(written.metrics)
    weeks = {record.group for record in outcome_records(outcome)}
    assert ranked.n_groups == len({g for g in weeks}) and all(
        datetime.fromisoformat(week).weekday() == 6 for week in weeks
    )
    rises = [record for record in outcome_records(outcome) if record.system == "always_rise"]
    assert rises and all(record.prediction == "Up" for record in rises)


def outcome_records(outcome):
    from fintune.schema.run_directory import RunDirectory

    return [one for one in RunDirectory(outcome.run_dir).read_records() if one.task == "weekly_acl18"]


def test_the_forecaster_trains_on_the_published_set(base, tmp_path, monkeypatch):
    folder = tmp_path / "forecaster_dow30"
    symbols = [f"S{number}" for number in range(6)]
    train = [published_row(start, symbol=symbol) for start in SUNDAYS[1:3] for symbol in symbols]
    write(folder, train=train, test=[published_row(SUNDAYS[-2], symbol=symbol) for symbol in symbols])
    monkeypatch.setenv("FINTUNE_DATA_DIR", str(tmp_path))
    outcome = run(base, tmp_path / "run", *FEW, "training.max_length=1024", recipe="dow30-forecaster")
    assert np.isfinite(losses(outcome)).all()
    tasks = {one.task for one in outcome.results.results if one.system == "tuned"}
    assert tasks == {"dow30", "dow30_bins", "dow30_forecast"}
    shown = fintune.preview("dow30-forecaster", overrides=[f"model.base={base}"], samples=1)
    learnt = "".join(text for text, _, supervised in shown[0].tokens if supervised)
    assert learnt.startswith("[Positive Developments]:") and "Prediction:" in learnt


def test_the_forecasters_numbers_are_fingpts():
    large, small = load_recipe("dow30-forecaster"), load_recipe("dow30-forecaster-smollm2")
    for recipe in (large, small):
        adapter = recipe.adapter
        assert (adapter.rank, adapter.alpha, adapter.dropout, len(adapter.targets)) == (8, 16, 0.1, 7)
    assert large.model.base == "Qwen/Qwen2.5-1.5B-Instruct" and large.training.max_length == 4096
    assert (large.training.learning_rate, large.training.epochs, large.training.schedule) == (5e-5, 5, "constant")
