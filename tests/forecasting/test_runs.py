"""From training on StockNet's weeks to ``fintune backtest``: likelihoods and written answers, one run and several."""

from dataclasses import replace
from datetime import date

import pandas as pd
import pytest

import fintune
from fintune.evaluation.records import answer_records
from fintune.forecasting.prices import read_prices
from fintune.forecasting.signals import read_signals
from fintune.forecasting.written import written_scores
from fintune.metrics.sharpe import MIN_PERIODS
from fintune.metrics.summary import summarise
from fintune.schema.errors import DataError, RecipeError
from fintune.schema.recipe import TaskSection
from fintune.schema.run_directory import RunDirectory
from fintune.tasks import get_task, load_task, registry
from tests.public_data import FOLDER, public_data
from tests.runs import run
from tests.tasks.weekly.corpora import stocknet_part
from tests.tasks.weekly.test_published import SUNDAYS, published_row, write

FEW = (
    "training.warmup_ratio=null",
    "training.max_steps=1",
    "training.samples_per_step=2",
    "data.train_limit=4",
    "data.validation_limit=2",
    "evaluation.limit=6",
)
RANKED = "[{name: weekly_acl18, prompt: short}, {name: weekly_acl18_bins, prompt: short}]"
WRITTEN = "[{name: weekly_acl18_forecast, config: %s, prompt: line}]"
"""Tasks of runs; the tiny model writes nonsense, which is what an unreadable forecast is."""
SYMBOLS = {"AAPL", "XOM", "BRK-A"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three stocks of the corpus as FINTUNE_DATA_DIR has it."""
    public_data("stock_acl18/prices_raw.csv.gz")
    place = tmp_path_factory.mktemp("data")
    stocknet_part(FOLDER, place / "stock_acl18", SYMBOLS)
    return place


@pytest.fixture(scope="module")
def runs(data, base, tmp_path_factory):
    """A run that ranks, and two that write."""
    place = tmp_path_factory.mktemp("runs")
    wanted = {"ranked": RANKED, "label": WRITTEN % "label", "extractive": WRITTEN % "extractive"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINTUNE_DATA_DIR", str(data))
        short = replace(get_task("weekly_acl18_forecast"), max_answer_tokens=12)
        patch.setitem(registry._TASKS, short.name, short)  # nonsense needs no length
        for name, tasks in wanted.items():
            learnt = RANKED.partition(", {")[0] + "]" if name == "ranked" else tasks
            changes = (*FEW, f"data.tasks={learnt}", f"evaluation.tasks={tasks}")
            naive = "evaluation.baselines=[majority,last_direction,always_rise]"
            run(base, place / name, *changes, naive, recipe="dow30-forecaster-smollm2")
    return place


@pytest.fixture
def prices(data):
    return data / "stock_acl18" / "prices_raw.csv"


def test_ranked_forecasts_of_a_run_are_traded_with_their_probabilities(runs, prices, tmp_path):
    found = fintune.backtest(runs / "ranked", prices=prices, output_dir=tmp_path)
    names = {f"{system}, weekly_acl18{form}" for system in ("base", "tuned") for form in ("", "_bins")}
    assert set(found.scores) == names | {"majority_sign", "last_sign", "zero_return", "linear"}
    assert {one.name for one in found.strategies} == names == set(found.calibration)
    assert found.counts["strategies tried"] == 4 and found.counts["weeks that baselines learnt from"] > 100
    records = [one for one in RunDirectory(runs / "ranked").read_records() if one.system == "tuned"]
    weeks = {one.group for one in records}
    assert {one.n_weeks for one in found.scores.values()} == {len(weeks)} and found.counts["stock-weeks forecast"] == 6
    assert found.counts["of these without a known return"] == found.counts["of these not forecast by every system"] == 0
    assert all(
        one.n_periods < MIN_PERIODS and (one.sharpe is None or one.sharpe.low is None) for one in found.strategies
    )
    results = RunDirectory(runs / "ranked").read_results()
    for name in ("base", "tuned"):
        own = results.find("weekly_acl18", name)
        assert (
            found.scores[f"{name}, weekly_acl18"].metrics["direction_accuracy"].value == own.metrics["accuracy"].value
        )
    one = next(one for one in records if one.task == "weekly_acl18_bins")
    signal = next(
        s for s in read_signals(runs / "ranked")["tuned, weekly_acl18_bins"] if f"{s.symbol}-{s.made}" == one.example_id
    )
    rising = sum(p for p, words in zip(one.probabilities, one.choices, strict=True) if words.startswith("Up"))
    assert signal.p_up == pytest.approx(rising) and signal.magnitude is not None


def test_runs_side_by_side_share_their_base(runs, prices, tmp_path):
    sources = [runs / "label", runs / "extractive"]
    found = fintune.backtest(sources, prices=prices, output_dir=tmp_path)
    assert {one.name for one in found.strategies} == {"base", "label", "extractive"} == set(found.written)
    assert {one.strict.missing for one in found.written.values()} == {6}, "nonsense is missing, and counted"
    assert found.counts["strategies tried"] == 3 and (tmp_path / "backtest.json").is_file()
    mixed = fintune.backtest([runs / "ranked", runs / "label"], prices=prices, output_dir=tmp_path)
    ranked = {f"{name}, weekly_acl18{form}" for name in ("base", "ranked") for form in ("", "_bins")}
    written = {f"{name}, weekly_acl18_forecast" for name in ("base", "label")}
    assert {one.name for one in mixed.strategies} == ranked | written
    with pytest.raises(RecipeError, match="belongs to none of their folders"):
        fintune.backtest(sources, prices=prices)
    with pytest.raises(DataError, match="one name"):
        fintune.backtest([runs / "label", runs / "label" / "predictions.jsonl"], prices=prices, output_dir=tmp_path)
    with pytest.raises(DataError, match="by task fpb"):
        fintune.backtest(runs / "label", prices=prices, task="fpb")


def test_a_weeks_return_is_the_same_to_task_and_backtest(data, prices, monkeypatch):
    """Whatever the form of the price table; both take the last close on or before a Sunday."""
    monkeypatch.setenv("FINTUNE_DATA_DIR", str(data))
    from fintune.forecasting.outcomes import outcomes_of
    from fintune.forecasting.signals import WEEK, Signal

    examples = load_task(TaskSection(name="weekly_acl18")).splits["test"]
    made = {one.example_id: date.fromisoformat(one.group) for one in examples}
    signals = [Signal(one.metadata["ticker"], made[one.example_id], made[one.example_id] + WEEK, 1) for one in examples]
    frame = pd.read_csv(prices)
    frame.rename(columns={"Symbol": "Name"}).assign(Date=pd.to_datetime(frame["Date"])).to_parquet(
        data / "daily.parquet"
    )
    for file in (prices, data / "daily.parquet"):
        known = {
            (one.symbol, one.week): one.change for one in outcomes_of({"x": signals}, read_prices(file)).systems["x"]
        }
        assert len(known) == len(examples) > 15
        for one in examples:
            assert known[one.metadata["ticker"], one.group] == pytest.approx(one.metadata["change"], abs=1e-12)


def test_a_runs_own_scores_are_the_backtests(data, prices, tmp_path, monkeypatch):
    """Written answers of many kinds, judged by the task and read back from its records."""
    monkeypatch.setenv("FINTUNE_DATA_DIR", str(data))
    task = get_task("weekly_acl18_forecast")
    examples = load_task(TaskSection(name=task.name, config="label")).splits["test"]
    sections = "[Positive Developments]:\n1. a\n\n[Potential Concerns]:\n1. b\n\n[Prediction & Analysis]:\n"
    answers = (
        "Prediction: Up by 2-3%",
        f"{sections}Prediction: Down by 1-2%\nAnalysis: Support is weak.",
        f"{sections}Prediction: Down by more than 5%, up to 8%\nAnalysis: Costs.",
        "The stock will likely not rise.",
        "Prediction: the price could go up or down",
        "## Forecast\nA decline of 2.5% next week.",
        "",
        f"{sections}Prediction: little changed\nAnalysis: Calm.",
    )
    said = [answers[number % len(answers)] for number in range(len(examples))]
    records = [
        record
        for one, answer in zip(examples, said, strict=True)
        for record in answer_records("tuned", task, one, answer)
    ]
    (tmp_path / "predictions.jsonl").write_text("".join(one.model_dump_json() + "\n" for one in records))
    found = fintune.backtest(tmp_path / "predictions.jsonl", prices=prices)
    ours, strict = (
        summarise(
            [one for one in records if one.protocol == protocol],
            task_version=task.version, split="test", labels=(), scoring=task.scoring, n_resamples=20,
        )
        for protocol in task.protocols
    )  # fmt: skip
    for own, theirs in ((ours, found.scores["tuned"]), (strict, found.written["tuned"].strict)):
        assert own.metrics["accuracy"].value == theirs.metrics["direction_accuracy"].value
        assert own.metrics["answered"].value == theirs.metrics["coverage"].value
        assert (own.n, own.n_groups) == (theirs.n, theirs.n_weeks)
        assert 0 < theirs.missing < theirs.n
    assert ours.metrics["answered"].value > strict.metrics["answered"].value


def test_a_published_answer_is_compared_with_and_never_right(tmp_path):
    """Of the published Dow-30 set: FinGPT's own figures and ROUGE need its answers, scores the real return."""
    source = write(tmp_path / "set", test=[published_row(start, symbol="AAA") for start in SUNDAYS[1:3]])
    task = get_task("dow30_forecast")
    sections = "[Positive Developments]:\n1. {}\n\n[Potential Concerns]:\n1. y\n\n[Prediction & Analysis]:\n"
    said = sections + "Prediction: Up by 1-2%\nAnalysis: z"
    records = [
        record
        for one in load_task(TaskSection(name=task.name, source=source, config="published")).splits["test"]
        for record in answer_records("base", task, one, said.format("x"))
    ]
    (tmp_path / "predictions.jsonl").write_text("".join(one.model_dump_json() + "\n" for one in records))
    signals = read_signals(tmp_path / "predictions.jsonl")["base"]
    assert [one.reference for one in signals] == [published_row(start)["answer"] for start in SUNDAYS[1:3]]
    measures = written_scores(signals, []).measures
    assert measures["positives_rouge1"].value == 1.0
    assert not any(one.correct for one in records if one.group == SUNDAYS[2]), "it fell"
