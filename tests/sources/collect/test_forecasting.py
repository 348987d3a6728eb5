"""What ``fintune collect`` leaves becomes weekly prompts, and its prices what their forecasts are traded by."""

import csv
import re
from datetime import UTC, datetime, timedelta

import pytest

import fintune
from fintune.evaluation.records import answer_records
from fintune.forecasting.prices import read_prices
from fintune.forecasting.signals import read_signals
from fintune.schema.recipe import TaskSection
from fintune.sources.collect import finnhub, yahoo
from fintune.tasks import get_task, load_task

DAYS = {"first": "2024-01-01", "last": "2024-06-28"}


@pytest.fixture
def collected(server, tmp_path, monkeypatch):
    """A folder of the Dow's newcomer of February 2024, a share class and another stock."""
    for name, url in server.base_urls.items():
        monkeypatch.setenv(f"FINTUNE_{name.upper()}_URL", url)
    for module in (finnhub, yahoo):
        monkeypatch.setattr(module, "LIMITS", ())
    return fintune.collect(["AAPL", "BRK.B"], **DAYS, output_dir=tmp_path / "collected").folder


def rows_of(folder, name="weekly"):
    return load_task(TaskSection(name=name, source=str(folder)))


def test_a_collection_is_asked_about_and_traded(collected, tmp_path):
    loaded = rows_of(collected)
    everything = [one for rows in loaded.splits.values() for one in rows]
    assert {one.metadata["ticker"] for one in everything} == {"AAPL", "BRK.B"}
    february = next(one for one in everything if one.example_id == "AAPL-2024-02-25")
    assert "AAPL Inc is a company in the Technology sector" in february.document
    articles = set(re.findall(r"AAPL (2024-\d\d-\d\d) article (\d)", february.document))
    times = {datetime.fromisoformat(f"{day}T00:00:07Z") + timedelta(minutes=30 * int(n)) for day, n in articles}
    assert len(times) > 5 and max(times) <= datetime(2024, 2, 23, 21, tzinfo=UTC), "Friday's close in New York"
    assert "reported at 2023-12-30" in february.document, "filed on 2 February"
    january = next(one for one in everything if one.metadata["period"].startswith("2024-01-28"))
    assert "reported at 2023-12-30" not in january.document and "beta" not in january.document

    task = get_task("weekly_forecast")
    examples = rows_of(collected, task.name).splits["test"]
    said = ("Prediction: Up by 1-2%", "Prediction: Down by 2-3%")
    records = [
        record for number, one in enumerate(examples) for record in answer_records("tuned", task, one, said[number % 2])
    ]
    file = tmp_path / "predictions.jsonl"
    file.write_text("".join(one.model_dump_json() + "\n" for one in records))
    found = fintune.backtest(file, prices=collected / "prices.csv")
    right = [one.correct for one in records if one.protocol == "robust"]
    assert found.scores["tuned"].n == len(examples) > 4 and found.counts["of these without a known return"] == 0
    assert found.scores["tuned"].metrics["direction_accuracy"].value == sum(right) / len(right)
    assert {one.symbol for one in read_signals(file)["tuned"]} == {"AAPL", "BRK.B"}
    assert found.counts["weeks that baselines learnt from"] > 5 and read_prices(collected / "prices.csv").adjusted


def test_weeks_outside_of_an_index_are_no_examples(collected):
    """Amazon's months before it joined the Dow would be those of a stock known to do well."""
    with (collected / "universe.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert {row["member_from"] for row in rows} == {""}
    for row in rows:
        row.update({"member_from": "2024-02-26"} if row["ticker"] == "AAPL" else {"member_to": "2024-05-01"})
    with (collected / "universe.csv").open("w", newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    loaded = rows_of(collected)
    weeks = {
        ticker: sorted(one.group for part in loaded.splits.values() for one in part if one.metadata["ticker"] == ticker)
        for ticker in ("AAPL", "BRK.B")
    }
    assert weeks["AAPL"][0] == "2024-03-03" and weeks["AAPL"][-1] > "2024-06-01"
    assert weeks["BRK.B"][0] < "2024-02-01" and weeks["BRK.B"][-1] <= "2024-04-28"
    assert any("weeks in which the stock was not in its index" in note for note in loaded.notes)
