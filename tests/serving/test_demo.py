"""What the demo page shows, without a page: prompts, streamed answers, labels, comparison and mistakes."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import torch

from fintune.cli import main
from fintune.inference.generate import generate
from fintune.schema.errors import AdapterError, DataError, DependencyError, FintuneError
from fintune.schema.example import Message
from fintune.schema.recipe import TaskSection
from fintune.serving.demo import page as demo_page
from fintune.serving.demo.chart import price_figure
from fintune.serving.demo.compare import compare_labels
from fintune.serving.demo.forecast import (
    Asked,
    ForecastData,
    find_week,
    forecast_wording,
    label_line,
    outcome_line,
    read_data,
    read_prompt,
    write_forecast,
)
from fintune.serving.demo.models import load_models
from fintune.serving.demo.sentiment import label_task, label_text
from fintune.serving.streaming import stream_answer
from fintune.tasks.weekly import WeekOptions, build_week, find_lookahead
from fintune.trees.chat import ChatFormat

DAY = "2024-04-14"


@pytest.fixture(scope="module")
def models(base):
    return load_models(base, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def data() -> ForecastData:
    return read_data(None)


def limited(predictor, max_length: int):
    chat = ChatFormat(predictor.scorer.chat.tokenizer, max_length)
    return replace(predictor, scorer=replace(predictor.scorer, chat=chat))


def test_a_stream_grows_into_what_generation_writes(models):
    scorer = models.main.scorer
    prompt = scorer.chat.prompt([Message("user", "Shares of the bank fell")])
    seen = list(stream_answer(models.main, prompt, max_new_tokens=24))
    whole = generate(
        scorer.model,
        [prompt],
        max_new_tokens=24,
        stop_ids=scorer.chat.end_ids,
        batch_size=1,
        tokens_per_batch=512,
    )
    assert seen[-1] == scorer.chat.tokenizer.decode(whole[0].tolist(), skip_special_tokens=True)
    assert len(seen) == len(whole[0]) > 4
    assert len(seen[0]) < len(seen[-1])


def test_who_stops_reading_stops_the_writing_and_frees_the_model(models):
    prompt = models.main.scorer.chat.prompt([Message("user", "Shares of the bank fell")])
    stream = stream_answer(models.main, prompt, max_new_tokens=100_000)
    next(stream)
    before = threading.active_count()
    reader = threading.Thread(target=stream.close)  # pages read each token in whichever thread is free
    reader.start()
    reader.join(60)
    assert not reader.is_alive() and threading.active_count() < before
    assert list(stream_answer(models.main, prompt, max_new_tokens=2))


def test_an_error_while_writing_reaches_the_reader(models):
    with pytest.raises(DataError, match="no tokens"):
        list(stream_answer(models.main, np.zeros(0, np.int64), max_new_tokens=2))


def test_the_sample_is_invented_and_knows_no_future(data):
    assert set(data.histories) == {"XDEMO", "XTOYS"} and data.made_up
    assert data.left_out == ()
    dates = [date(2024, 2, 11), date(2024, 4, 14), date(2024, 6, 9)]
    for history in data.histories.values():
        weeks = [find_week(data, Asked(history.ticker, str(day)))[1] for day in dates]
        assert list(find_lookahead(weeks, history, lambda past, day: build_week(past, day, WeekOptions()))) == []
        assert any(past.news for week in weeks for past in week.weeks)
        assert all(week.financials for week in weeks)


def test_the_prompt_is_what_the_model_reads(models, data):
    _, week = find_week(data, Asked(" xtoys ", DAY, past_weeks=2))
    prompt = read_prompt(models.main, week, financials=True)
    assert models.main.scorer.chat.tokenizer.decode(prompt.tokens.tolist()) == prompt.text
    assert prompt.text.count("XTOYS's stock price") == 2
    for shown in (*week.weeks[0].news, *week.weeks[1].news):
        assert shown.headline in prompt.text
    assert f"eps: {week.financials['eps']}" in prompt.text
    without = read_prompt(models.main, week, financials=False).text
    assert "eps" not in without and "No basic financial reported." in without


def test_a_run_is_asked_with_its_own_prompt(models):
    assert forecast_wording(models.main).name == "fingpt"
    for trained, wording in (("short", "short"), ("published", "fingpt"), (None, "fingpt")):
        task = TaskSection(name="weekly_acl18_forecast", prompt=trained)
        assert forecast_wording(replace(models.main, tasks=(task,))).name == wording


def test_a_long_prompt_is_shortened_and_said_or_refused(models, data):
    _, week = find_week(data, Asked("XDEMO", DAY, past_weeks=3))
    whole = read_prompt(models.main, week, financials=True)
    shorter = read_prompt(limited(models.main, len(whole.tokens) - 50), week, financials=True)
    assert len(shorter.tokens) <= len(whole.tokens) - 50
    assert any("shortened" in note for note in shorter.notes) and not any("shortened" in note for note in whole.notes)
    with pytest.raises(
        DataError, match=r"^The prompt does not fit into the model's 60 tokens\. Ask for fewer weeks\.$"
    ):
        read_prompt(limited(models.main, 60), week, financials=True)
    context = models.main.scorer.model.model.config.max_position_embeddings
    with pytest.raises(DataError, match="leaves no room"):
        next(write_forecast(models.main, np.ones(context, np.int64), max_new_tokens=4))
    assert len(list(write_forecast(models.main, np.ones(context - 2, np.int64), max_new_tokens=4))) <= 2


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Asked("NOPE", DAY), r"There are no data of the ticker NOPE\. Known are XDEMO, XTOYS\."),
        (Asked(" ", DAY), r"There is no ticker\."),
        (Asked("XDEMO", "14 April"), r"14 April is not a date\. Write it as 2024-03-31\."),
        (Asked("XDEMO", ""), r"Nothing is not a date\."),
        (
            Asked("XDEMO", "2020-01-05"),
            r"lacks prices for the 3 weeks before 2020-01-05\. Its prices run from 2024-01-02",
        ),
        (
            Asked("XDEMO", "2051-01-05"),
            r"lacks prices for the 3 weeks before 2051-01-05\. Its prices run from 2024-01-02",
        ),
        (Asked("XDEMO", DAY, past_weeks=0), "1 to 8 weeks"),
    ],
)
def test_mistakes_are_one_sentence(data, asked, said):
    with pytest.raises(DataError, match=said):
        find_week(data, asked)


def test_a_folder_that_is_no_collection_is_refused(tmp_path):
    with pytest.raises(DataError, match="fintune collect"):
        read_data(tmp_path)


def test_what_a_folder_loses_is_counted(tmp_path):
    (tmp_path / "prices.csv").write_text("ticker,date,adjusted_close\nabc,2024-01-02,5\nabc,2024-01-06,5\n")
    row = {"ticker": "abc", "headline": "H", "published": "2024-02-01T00:00:00Z", "retrieved_at": "2024-01-10"}
    (tmp_path / "news.jsonl").write_text(json.dumps(row) + "\n")
    read = read_data(tmp_path)
    assert not read.made_up
    assert set(read.left_out) == {"1 news dated after it was fetched", "1 prices of days without a session"}
    with pytest.raises(DataError, match="lacks prices"):
        find_week(read, Asked("ABC", DAY))


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        ("Prediction: Up by 2-3%", "U3: up by 2-3%"),
        ("Prediction: Down by more than 5%", "D5+: down by more than 5%"),
        ("The price will fall next week.", "Down, by no stated range"),
        ("", "No label could be read: empty."),
    ],
)
def test_labels_are_read(answer, line):
    assert label_line(answer) == line


def test_the_outcome_is_the_return_of_the_forecast_week(data):
    history, week = find_week(data, Asked("XDEMO", DAY))
    closes = dict(zip(history.prices.days, history.prices.close_D, strict=True))
    change = closes["2024-04-19"] / closes["2024-04-12"] - 1  # the Fridays before both Sundays
    assert f"{change:+.2%}" in outcome_line(week)
    assert outcome_line(replace(week, change=None)) == "What the week brought is not known."


def ends(line) -> list[str]:
    return [str(line.get_xdata()[at]) for at in (0, -1)]


def test_the_chart_tells_apart_what_was_shown(data):
    history, week = find_week(data, Asked("XDEMO", DAY, past_weeks=2))
    (axes,) = price_figure(history, week).axes
    shown, later = axes.lines
    assert ends(shown) == ["2024-03-28", "2024-04-12"]  # the exchange was closed on Good Friday
    assert ends(later) == ["2024-04-12", "2024-04-19"]
    closes = dict(zip(history.prices.days, history.prices.close_D, strict=True))
    assert shown.get_ydata()[-1] == pytest.approx(100 * closes["2024-04-12"] / closes["2024-03-28"])


def test_a_text_is_labelled_and_an_empty_one_refused(models):
    found = label_text(models.main, "Shares fell 8%")
    assert label_task(models.main) == "tfns"
    assert sum(found.probabilities.values()) == pytest.approx(1)
    with pytest.raises(DataError, match="no text"):
        label_text(models.main, " ")


def test_a_run_of_forecasts_still_labels_texts(models):
    forecaster = replace(models.main, tasks=(TaskSection(name="weekly_acl18"), TaskSection(name="fiqa_sa")))
    assert label_task(forecaster) == "fiqa_sa"


def test_a_bare_base_has_nothing_to_compare(models):
    with pytest.raises(AdapterError, match="no adapter"):
        compare_labels(models, "Shares fell 8%")


def test_a_page_says_failures_in_one_sentence(caplog):
    def fails(error):
        raise error
        yield

    own = demo_page._said(3, fails, DataError("It is wrong.", "Mend it."))
    assert list(own()) == [("⚠ It is wrong. Mend it.", None, None)]
    other = demo_page._said(2, fails, ZeroDivisionError("secret"))
    assert list(other()) == [("⚠ fintune failed unexpectedly (ZeroDivisionError).", None)]
    assert "secret" in caplog.text


def test_without_gradio_the_remedy_is_said(monkeypatch):
    monkeypatch.setattr(demo_page, "find_spec", lambda name: None)
    with pytest.raises(DependencyError, match=r"pip install 'fintune\[demo\]'") as caught:
        demo_page.require_gradio()
    assert isinstance(caught.value, FintuneError)


def test_the_command_takes_a_run_or_a_model(capsys):
    assert main(["demo", "run", "--model", "smollm2-135m"]) == 2
    assert "not both" in capsys.readouterr().err


def test_the_sample_is_what_its_script_writes(tmp_path, monkeypatch):
    import importlib.util

    from fintune.serving.demo.forecast import sample_folder

    script = Path(__file__).parents[2] / "scripts" / "make_demo_sample.py"
    spec = importlib.util.spec_from_file_location("make_demo_sample", script)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    monkeypatch.setattr(made, "FOLDER", tmp_path)
    made.main()
    for file in tmp_path.iterdir():
        assert file.read_bytes() == (sample_folder() / file.name).read_bytes(), file.name
