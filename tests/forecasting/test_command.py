"""``fintune backtest`` from a run directory to files, report and words."""

import json
import subprocess
import sys
from datetime import date, timedelta

import numpy as np
import pytest

import fintune
from fintune.cli import main
from fintune.forecasting.assessment import read_assessment
from fintune.reporting.backtest import assessment_sentences, assessment_tables, backtest_sections
from fintune.reporting.report import write_report
from fintune.schema.errors import RecipeError, RunError
from fintune.schema.results import DocumentRecord, EvaluationResults, TimeCost
from tests.forecasting.prices import random_table

CHOICES = ("Up", "Down")


@pytest.fixture
def run(tmp_path):
    """A run with forecasts of two systems over eight weeks, and prices beside it."""
    generator = np.random.default_rng(4)
    records = []
    for system in ("base", "tuned"):
        for week in range(8):
            for symbol in ("A", "B", "C"):
                made = date(2024, 2, 4) + timedelta(weeks=week)
                p = float(generator.random())
                records.append(DocumentRecord(
                    system=system, task="weekly", example_id=f"{symbol}-{made}", group=str(made), target="Up",
                    prediction=CHOICES[p < 0.5], correct=False, choices=CHOICES, probabilities=(p, 1 - p),
                ))  # fmt: skip
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "predictions.jsonl").write_text("".join(one.model_dump_json() + "\n" for one in records))
    random_table(90).to_csv(tmp_path / "prices.csv", index=False)
    return folder


def test_the_command_says_what_it_writes(run, capsys):
    assert main(["backtest", str(run), "--prices", str(run.parent / "prices.csv"), "--trials", "5"]) == 0
    said = capsys.readouterr().out
    for words in (
        "Forecasts of 24 stock-weeks in 8 weeks",
        "Majority sign",
        "Buy and hold",
        "not distinguishable from",
    ):
        assert words in " ".join(said.split())
    found = read_assessment(run / "backtest.json")
    assert (found.settings.n_trials, [one.name for one in found.strategies]) == (5, ["base", "tuned"])
    assert {one.n for one in found.scores.values()} == {24}
    assert set(found.calibration) == {"base", "tuned"}
    assert (run / "figures" / "backtest.png").read_bytes()[:4] == b"\x89PNG"


def test_json_is_for_machines(run, capsys):
    prices = str(run.parent / "prices.csv")
    assert main(["--json", "backtest", str(run / "predictions.jsonl"), "--prices", prices, "--rule", "magnitude"]) == 0
    told = json.loads(capsys.readouterr().out)
    stored = json.loads((run / "backtest.json").read_text())
    assert told["strategies"] == stored["strategies"]
    assert told["counts"]["weeks traded"] == 8
    # Ranked directions have no size, so nothing is bought by magnitude.
    assert {one["turnover"] for one in stored["strategies"]} == {0}


def test_what_is_read_back_is_what_was_found(run):
    found = fintune.backtest(run, prices=run.parent / "prices.csv", commission_bp=0, slippage_bp=1, long_only=True)
    again = read_assessment(run / "backtest.json")
    assert assessment_tables(again) == assessment_tables(found)
    assert assessment_sentences(again) == assessment_sentences(found)
    assert again.settings == found.settings
    (run / "backtest.json").write_text("{}")
    with pytest.raises(RunError, match="damaged"):
        read_assessment(run / "backtest.json")


def test_the_report_shows_it_with_the_time(run):
    found = fintune.backtest(run, prices=run.parent / "prices.csv")
    cost = TimeCost(system="tuned", task="weekly", n=24, elapsed_s=12.0, written_tokens=2400)
    results = EvaluationResults(model="m", adapter=None, results=(), time_costs=(cost,))
    page = write_report(run, recipe=None, results=results, records=(), history=(), model_facts={})
    shown = page.read_text()
    assert "Forecasts and backtest" in shown and "What answering took" in shown
    markdown = (run / "report.md").read_text()
    assert "figures/backtest.png" in markdown
    assert "500.0 | 200.0" in markdown  # 12 s for 24 answers, 2,400 tokens in 12 s
    for sentence in assessment_sentences(found)[:2]:
        assert sentence in markdown
    assert backtest_sections(run.parent) == []


def test_mistakes_are_one_sentence(run, capsys):
    prices = str(run.parent / "prices.csv")
    assert main(["backtest", str(run), "--prices", "nowhere.csv"]) == 2
    assert main(["backtest", "nowhere", "--prices", prices]) == 2
    assert main(["backtest", str(run), "--prices", prices, "--commission", "-1"]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert not (run / "backtest.json").exists()
    with pytest.raises(RecipeError, match="confidence"):
        fintune.backtest(run, prices=prices, confidence=1.0)


def test_no_model_is_loaded(run):
    """A backtest needs neither torch nor transformers."""
    program = (
        "import sys, fintune; "
        f"fintune.backtest({str(run)!r}, prices={str(run.parent / 'prices.csv')!r}); "
        "print(sorted({'transformers', 'peft'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"
