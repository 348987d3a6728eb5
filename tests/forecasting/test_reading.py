"""Forecasts and prices as files hold them."""

import json
from dataclasses import replace
from datetime import date

import numpy as np
import pandas as pd
import pytest

from fintune.forecasting.outcomes import outcomes_of
from fintune.forecasting.prices import prices_of, read_prices
from fintune.forecasting.signals import Signal, read_signals
from fintune.schema.errors import DataError, RunError
from fintune.schema.results import DocumentRecord
from tests.forecasting.prices import random_prices, random_table, table

WRITTEN = "[Prediction & Analysis]:\nPrediction: Down by 2-3%\nAnalysis: Costs."


def record(example_id="AAPL-2024-01-07", **fields):
    known = {"system": "tuned", "task": "weekly", "group": "2024-01-07", "target": "Up", "prediction": "Down"}
    return DocumentRecord(**{"example_id": example_id, "correct": False, "output": WRITTEN, **known, **fields})


def written(folder, *records):
    folder.mkdir(exist_ok=True)
    (folder / "predictions.jsonl").write_text("".join(one.model_dump_json() + "\n" for one in records))
    return folder


def test_a_runs_records(tmp_path):
    run = written(
        tmp_path / "run",
        record(),
        record("BRK-B-2024-01-07", output="no idea"),
        record(protocol="flare_strict"),
        record(system="base", output="Up by 1-2%"),
        record("fpb-17", task="fpb"),
    )
    expected = {
        "tuned": [
            Signal("AAPL", date(2024, 1, 7), date(2024, 1, 14), -1, -2.5),
            Signal("BRK-B", date(2024, 1, 7), date(2024, 1, 14), None),
        ],
        "base": [Signal("AAPL", date(2024, 1, 7), date(2024, 1, 14), 1, 1.5)],
    }
    for found in (read_signals(run), read_signals(run / "predictions.jsonl")):
        bare = {system: [replace(one, output=None, reference="") for one in rows] for system, rows in found.items()}
        assert bare == expected
        assert [one.output for one in found["tuned"]] == [WRITTEN, "no idea"]


def test_ranked_labels_give_a_probability_of_a_rise(tmp_path):
    choices, shares = ("Up by 1-2%", "Down by 1-2%", "Up by more than 5%"), (0.25, 0.35, 0.4)
    run = written(tmp_path / "run", record(choices=choices, probabilities=shares, prediction="Down by 1-2%"))
    (signal,) = read_signals(run)["tuned"]
    assert (signal.direction, signal.magnitude, signal.p_up) == (-1, -1.5, pytest.approx(0.65))
    run = written(tmp_path / "run", record(choices=("Rather", "Hardly"), probabilities=(0.5, 0.5), prediction=None))
    (signal,) = read_signals(run)["tuned"]
    assert (signal.direction, signal.p_up) == (None, None)


def test_a_table_of_ones_own(tmp_path):
    file = tmp_path / "forecasts.csv"
    file.write_text(
        "ticker,date,until,prediction,direction,magnitude\n"
        "A,2024-01-07,,Up by 1-2%,,\nB,2024-01-07,2024-01-21,,-1,-0.4\nC,2024-01-07,,,0.3,\n"
    )
    found = read_signals(file)["model"]
    assert [(one.symbol, one.direction, one.magnitude) for one in found] == [
        ("A", 1, 1.5),
        ("B", -1, -0.4),
        ("C", 1, None),
    ]
    assert [one.until for one in found] == [date(2024, 1, 14), date(2024, 1, 21), date(2024, 1, 14)]


def test_what_is_no_forecast(tmp_path):
    with pytest.raises(DataError, match="no forecast of a stock"):
        read_signals(written(tmp_path / "run", record("fpb-17")))
    both = written(tmp_path / "run", record(), record(task="other"), record("B-2024-01-07", task="other"))
    with pytest.raises(DataError, match=r"several tasks \(other, weekly\) about different stock-weeks"):
        read_signals(both)
    assert list(read_signals(both, task="other")) == ["tuned"]
    with pytest.raises(DataError, match="no forecast of a stock"):
        read_signals(written(tmp_path / "daily", record(task="acl18")))  # its date is that of the day it forecasts
    same = written(tmp_path / "same", record(), record(task="other"), record(system="majority"))
    assert sorted(read_signals(same)) == ["tuned, other", "tuned, weekly"], "constant answers are no system of ours"
    (tmp_path / "run" / "predictions.jsonl").write_text('{"system": "x"}\n')
    with pytest.raises(RunError, match="no record"):
        read_signals(tmp_path / "run")
    (tmp_path / "x.csv").write_text("symbol,date,direction\nA,2024-13-01,1\n")
    with pytest.raises(DataError, match="'2024-13-01'"):
        read_signals(tmp_path / "x.csv")
    (tmp_path / "x.csv").write_text("symbol,date,direction\nA,2024-01-01,high\n")
    with pytest.raises(DataError, match="direction 'high'"):
        read_signals(tmp_path / "x.csv")


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_prices_in_every_form(tmp_path, suffix):
    frame, file = random_table(10), tmp_path / f"prices{suffix}"
    if suffix == ".csv":
        frame.to_csv(file, index=False)
    elif suffix == ".parquet":
        frame.rename(columns={"symbol": "Name", "date": "Date", "open": "Open", "close": "Close"}).to_parquet(file)
    else:
        frame.assign(date=frame["date"].dt.strftime("%Y-%m-%d")).to_json(file, orient="records", lines=True)
    found, expected = read_prices(file), random_prices(10)
    assert list(found.sessions) == list(expected.sessions) and not found.adjusted
    np.testing.assert_allclose(found.opens.to_numpy(), expected.opens.to_numpy(), rtol=1e-6)


def test_days_of_a_table_with_offsets_are_the_exchanges():
    """As yfinance writes them: midnight in New York, whose offset changes in March."""
    frame = pd.DataFrame({"symbol": "A", "date": ["2024-03-08 00:00:00-05:00", "2024-03-11 00:00:00-04:00"]})
    found = prices_of(frame.assign(open=1.0, close=2.0))
    assert [str(day.date()) for day in found.sessions] == ["2024-03-08", "2024-03-11"]


def test_adjustment_makes_a_split_no_crash():
    """Two for one before the fourth day: the adjusted close halves what came before, and the open with it."""
    raw = table({"A": [100.0, 102, 104, 52, 53]}, {"A": [102.0, 104, 104, 53, 54]})
    adjusted = prices_of(raw.assign(**{"Adj Close": [51.0, 52, 52, 53, 54]}))
    assert adjusted.adjusted
    assert adjusted.opens["A"].tolist() == pytest.approx([50, 51, 52, 52, 53])
    assert adjusted.closes["A"].tolist() == [51, 52, 52, 53, 54]


def test_unusable_prices_are_dropped_and_counted(tmp_path):
    frame = random_table(10)
    broken = pd.concat([frame, frame.iloc[:1], frame.iloc[1:2].assign(date=pd.Timestamp("2024-03-01"), open=0.0)])
    assert prices_of(broken).dropped == 2
    with pytest.raises(DataError, match="no column close"):
        prices_of(frame.drop(columns="close"))
    with pytest.raises(DataError, match="no row with prices"):
        prices_of(frame.assign(open=-1.0))
    with pytest.raises(DataError, match="date that cannot be read"):
        prices_of(frame.assign(date="soon"))
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"x.parquet cannot be read"):
        read_prices(tmp_path / "x.parquet")


def test_a_weeks_return_runs_from_close_to_close():
    """Made on a Sunday: from Friday's close to the next Friday's. Past returns likewise, week by week."""
    closes = [100.0] * 4 + [100] + [1.0] * 4 + [110] + [1.0] * 4 + [99] + [1.0] * 4 + [103.95] + [1.0]
    prices = prices_of(table({"A": closes}))
    made = [date(2024, 1, 7), date(2024, 1, 14), date(2024, 1, 21), date(2024, 1, 28)]
    signals = [
        Signal("A", day, date(day.year, day.month, day.day + 7) if day.day < 25 else date(2024, 2, 4), 1, 2.0)
        for day in made
    ]
    found = outcomes_of({"x": signals}, prices)
    assert [one.change for one in found.systems["x"]] == pytest.approx([0.1, -0.1, 0.05])
    assert found.unknown == 1  # the last week ends after the prices do
    first, *later = (one.magnitude for one in found.baselines["last_sign"])
    assert first is None and later == pytest.approx([10, -10])


def test_the_close_of_the_forecast_day_itself_is_the_first():
    """Made after Friday's close, until the next Friday's: 120 over 100, whatever Thursday's closes were."""
    prices = prices_of(table({"A": [50.0] * 4 + [100.0] + [70.0] * 4 + [120.0] + [1.0]}))
    found = outcomes_of({"x": [Signal("A", date(2024, 1, 5), date(2024, 1, 12), 1)]}, prices)
    assert found.systems["x"][0].change == pytest.approx(0.2)


def test_a_system_without_a_forecast_is_missing_there():
    signals = [Signal("A", date(2024, 1, 7), date(2024, 1, 14), 1), Signal("B", date(2024, 1, 7), date(2024, 1, 14), 1)]
    found = outcomes_of({"all": signals, "half": signals[:1]}, random_prices(40))
    assert [one.direction for one in found.systems["half"]] == [1, None]
    with pytest.raises(DataError, match="no forecast week"):
        outcomes_of({"x": [Signal("A", date(2030, 1, 7), date(2030, 1, 14), 1)]}, random_prices(40))
    assert json.dumps(found.training_weeks) == "0"
