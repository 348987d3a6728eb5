"""The published Dow-30 set: Llama 2 prompts become messages, outcomes are the real ones, and its faults are counted."""

import json
import re

import pytest

from fintune.metrics.return_bins import bin_of, phrase_of
from fintune.schema.errors import DataError
from fintune.schema.recipe import TaskSection
from fintune.tasks import get_task, load_task
from fintune.tasks.weekly import find_faults

SYSTEM = "You are a seasoned stock market analyst."
PRICES = {  # closes at the Sundays
    "2024-01-28": 90.0, "2024-02-04": 100.0, "2024-02-11": 102.5, "2024-02-18": 101.0, "2024-02-25": 95.0,
    "2024-03-03": 96.0,
}  # fmt: skip
SUNDAYS = list(PRICES)


def published_row(start, past=1, *, reported="2023-12-31", label=None, symbol="ABC", wrapped=True):
    """A row as the hub has it: asks for the week from ``start``, shows ``past`` weeks before it."""
    at = SUNDAYS.index(start)
    end = SUNDAYS[at + 1]
    weeks = "\n\n".join(
        f"From {a} to {b}, {symbol}'s stock price moved from {PRICES[a]} to {PRICES[b]}. News during this period are "
        f"listed below:\n\n[Headline]: Rivals of {symbol} collapse in {a}\n[Summary]: A terrible week.\n\n[Headline]: "
        f"{symbol} wins a great order\n[Summary]: Good."
        for a, b in zip(SUNDAYS[at - past : at], SUNDAYS[at - past + 1 :], strict=False)
    )
    user = (
        f"[Company Introduction]:\n\nAbc Inc is a leading entity in the Energy sector. As of today, Abc Inc has a "
        f"market capitalization of 999.5 in USD.\n\nAbc Inc operates in the US, trading under the ticker {symbol} on "
        f"the NYSE. As a dominant force.\n\n{weeks}\n\nSome recent basic financials of {symbol}, reported at "
        f"{reported}, are presented below:\n\n[Basic Financials]:\n\neps: 1.5\npb: 3\n\nBased on all the information "
        f"before {start}, let's first analyze. Then make your prediction of the {symbol} cryptocurrency price movement "
        f"for next week ({start} to {end})."
    )
    prompt = f"{SYSTEM}\n<</SYS>>\n\n{user}"
    label = label or phrase_of(bin_of(PRICES[end] / PRICES[start] - 1))
    return {
        "symbol": symbol,
        "period": f"{start} to {end}",
        "prompt": f"[INST]<<SYS>>\n{prompt} [/INST]" if wrapped else prompt,
        "label": label,
        "answer": f"[Positive Developments]:\n1. x\n\n[Prediction & Analysis]:\nPrediction: "
        f"{label.capitalize()}\nAnalysis: y",
    }


def write(folder, **splits):
    folder.mkdir(exist_ok=True)
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(folder)


def load(source, name="dow30", config=None, prompt=None):
    return load_task(TaskSection(name=name, source=source, config=config, prompt=prompt))


def test_llama_2_prompts_become_messages(tmp_path):
    source = write(tmp_path, test=[published_row("2024-02-18"), published_row("2024-02-25", wrapped=False)])
    for example in load(source, "dow30_forecast", prompt="published").splits["test"]:
        system, user = example.messages
        assert (system.role, system.content, user.role) == ("system", SYSTEM, "user")
        assert user.content.startswith("[Company Introduction]:") and user.content.endswith(")."), user.content
        assert "cryptocurrency" in user.content and user.document.endswith("pb: 3")
        assert not re.search(r"INST|SYS>>", user.content)


def test_other_prompts_ask_about_the_stock_and_show_no_value_of_the_day_of_collection(tmp_path):
    source = write(tmp_path, test=[published_row("2024-02-18", past=2)])
    for prompt in ("fingpt", "market", "short"):
        for name in ("dow30", "dow30_bins", "dow30_forecast"):
            said = " ".join(m.content for m in load(source, name, prompt=prompt).splits["test"][0].messages)
            assert not re.search(r"cryptocurrency|999\.5|leading entity", said) and "ABC" in said.upper()
            assert "Rivals of ABC collapse in 2024-02-04" in said and "ABC wins a great order" in said
    (example,) = load(source).splits["test"]
    assert "From 2024-02-11 to 2024-02-18, ABC's stock price decreased from 102.50 to 101.00." in example.document
    assert "Abc Inc is a company in the Energy sector" in example.document and "eps: 1.5" in example.document


def test_the_score_is_the_real_return_not_the_published_answer(tmp_path):
    wrong = published_row("2024-02-11", label="up by more than 5%")
    source = write(tmp_path, test=[wrong, published_row("2024-02-18")])
    first, last = load(source, "dow30_bins").splits["test"]
    assert (first.target, first.metadata["bin"]) == ("Down by 1-2%", bin_of(101.0 / 102.5 - 1))
    assert first.metadata["change"] == pytest.approx(101.0 / 102.5 - 1)
    assert last.metadata["change"] is None and last.target == "Down by more than 5%", "no later prompt shows this week"
    task = get_task("dow30_forecast")
    (example, _) = load(source, "dow30_forecast", "published").splits["test"]
    judged = task.judge(example, wrong["answer"])
    assert (judged.prediction, judged.correct) == ("Up", False), "the published answer itself is wrong here"
    judged = task.judge(example, "Prediction: Down by 1-2%")
    assert judged.counts == {"answered": 1.0, "right_direction": 1.0, "right_range": 1.0}
    assert task.judge(example, "who knows").counts["answered"] == 0.0


def test_training_weeks_that_reach_into_the_test_are_left_out(tmp_path):
    train = [published_row(start) for start in ("2024-02-04", "2024-02-11", "2024-02-18")]
    source = write(tmp_path, train=train, test=[published_row("2024-02-18", symbol="XYZ")])
    loaded = load(source)
    weeks = {split: [example.group for example in rows] for split, rows in loaded.splits.items()}
    assert weeks == {"train": ["2024-02-04"], "validation": ["2024-02-11"], "test": ["2024-02-18"]}
    assert loaded.counts["dropped"] == {"training row whose week reaches into the test weeks": 1}
    assert any(p.kind == "forecaster_out_of_time" and "1 of 3" in p.message for p in loaded.quality.problems)


def test_a_prompt_that_shows_its_own_outcome_is_left_out(tmp_path):
    told = published_row("2024-02-11")
    later = published_row("2024-02-18")["prompt"].partition("From ")[2].partition("\n\nSome recent")[0]
    told["prompt"] = told["prompt"].replace("\n\nSome recent", f"\n\nFrom {later}\n\nSome recent")
    loaded = load(write(tmp_path, test=[told, published_row("2024-02-25")]))
    assert [example.group for example in loaded.splits["test"]] == ["2024-02-25"]
    assert loaded.counts["dropped"] == {"row whose prompt shows the outcome": 1}


def test_financials_that_nobody_could_have_read_are_left_out(tmp_path):
    rows = [published_row("2024-02-18", reported=day) for day in ("2024-02-16", "2024-02-29", "2023-12-31")]
    rows = [row | {"symbol": f"AB{number}"} for number, row in enumerate(rows)]
    shown = ["eps: 1.5" in example.document for example in load(write(tmp_path, test=rows)).splits["test"]]
    assert shown == [False, False, True]


def test_targets_by_config(tmp_path):
    train = [published_row("2024-02-18"), published_row("2024-02-18", symbol="XYZ") | {"answer": "No idea."}]
    source = write(tmp_path, train=train, test=[published_row("2024-02-25", symbol="ABC")])
    loaded = {config: load(source, "dow30_forecast", config) for config in ("published", "label", "extractive")}
    targets = {config: found.splits["train"][0].target for config, found in loaded.items()}
    assert targets["published"] == published_row("2024-02-18")["answer"]
    assert loaded["published"].counts["dropped"] == {"training rows without a published answer that predicts": 1}
    assert len(loaded["label"].splits["train"]) == 2
    (tested,) = loaded["published"].splits["test"]
    assert tested.target == "Prediction: Up by 1-2%", "a published answer is never what is right"
    assert tested.metadata["reference"] == published_row("2024-02-25")["answer"]
    assert targets["label"] == "Prediction: Down by more than 5%"
    good, bad, end = targets["extractive"].split("\n\n")
    assert good == "[Positive Developments]:\n1. ABC wins a great order"
    assert bad == "[Potential Concerns]:\n1. Rivals of ABC collapse in 2024-02-11"
    assert "Prediction: Down by more than 5%" in end and "fell by 1.5%" in end


def test_rows_of_another_kind_are_named(tmp_path):
    with pytest.raises(DataError, match=r"Row 1 of the published Dow-30 set lacks answer"):
        load(write(tmp_path, test=[{"prompt": "x", "period": "y", "symbol": "z"}]))
    with pytest.raises(DataError, match=r"Row 1 of the published Dow-30 set has the period 'May'"):
        load(write(tmp_path, test=[published_row("2024-02-18") | {"period": "May"}]))


def test_the_published_test_rows_and_their_faults(shared_data):
    """Counted apart from the code: with regular expressions of their own over the raw file."""
    import gzip

    folder = shared_data / "forecaster_dow30"
    with gzip.open(folder / "test.jsonl.gz", "rt", encoding="utf-8") as lines:
        raws = [json.loads(line) for line in lines]
    later = {}
    for raw in raws:
        for a, _, x, y in re.findall(r"From (\S+) to (\S+), .*? from (\d+\.?\d*) to (\d+\.?\d*)\. News", raw["prompt"]):
            later[raw["symbol"], a] = float(y) / float(x) - 1
    on_record = [raw for raw in raws if (raw["symbol"], raw["period"][:10]) in later]
    answered = [raw for raw in on_record if raw["label"]]
    agreeing = [raw for raw in answered if phrase_of(bin_of(later[raw["symbol"], raw["period"][:10]])) == raw["label"]]
    assert (len(raws), len(on_record), len(answered), len(agreeing)) == (300, 270, 267, 267)

    loaded = load(str(folder))
    assert len(loaded.splits["test"]) == 300 and len({example.group for example in loaded.splits["test"]}) == 10
    task = get_task("dow30")
    rows = {"test": [task.parse_row(raw, index, "test") for index, raw in enumerate(raws)]}
    counts = {fault.kind: (fault.count, fault.of) for fault in find_faults(rows)}
    assert counts["hindsight"] == (len(agreeing), len(answered))
    assert counts["outcome_elsewhere"] == (len(on_record), len(raws))
    assert counts["cryptocurrency"] == (sum("cryptocurrency price movement" in raw["prompt"] for raw in raws), 300)
    assert counts["cryptocurrency"][0] == 300 and counts["own_outcome"] == (0, 300)
    assert counts["no_prediction"] == (sum(not raw["label"] for raw in raws), 300)
    assert sum(p.kind.startswith("forecaster_") for p in loaded.quality.problems) == sum(
        n > 0 for n, _ in counts.values()
    )
    real = {(e.metadata["ticker"], e.group): e.metadata["change"] for e in loaded.splits["test"]}
    assert {key: change for key, change in real.items() if change is not None} == pytest.approx(
        {key: change for key, change in later.items() if key in real}
    )


def test_written_forecasts_are_read_as_a_backtest_reads_them_and_by_fingpts_own_rules(tmp_path):
    """Both of FinGPT's quirks: ``up`` within another word is a rise, and without its sections an answer is missing."""
    source = write(tmp_path, test=[published_row("2024-02-18")])  # falls by 5.9%
    (example,) = load(source, "dow30_forecast").splits["test"]
    task = get_task("dow30_forecast")
    assert task.protocols == ("robust", "flare_strict")
    said = (
        "[Positive Developments]:\n1. x\n\n[Potential Concerns]:\n1. y\n\n[Prediction & Analysis]:\n"
        "Prediction: Down by more than 5% despite support\nAnalysis: z"
    )
    robust, strict = (task.judge(example, said, protocol) for protocol in task.protocols)
    assert (robust.prediction, robust.correct, robust.counts["right_range"]) == ("Down", True, 1.0)
    assert (strict.prediction, strict.correct, strict.counts["right_range"]) == ("Up", False, 0.0)
    bare = "I would not rule out anything, but the stock will likely fall next week."
    robust, strict = (task.judge(example, bare, protocol) for protocol in task.protocols)
    assert (robust.prediction, robust.correct) == ("Down", True)
    assert (strict.prediction, strict.counts["answered"]) == (None, 0.0)
    assert task.judge(example, "Prediction: little changed").prediction == "Unchanged"
    assert get_task("dow30").protocols == ("robust",), "a ranking is not read at all"
