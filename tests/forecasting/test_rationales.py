"""A teacher over HTTP, played by a local server: cost first, refusals counted, nothing asked twice."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typer.testing import CliRunner

from fintune.cli.app import app
from fintune.cli.output import Output
from fintune.evaluation.judge import Judge
from fintune.forecasting.rationales import (
    MAX_ANSWER_TOKENS,
    Teaching,
    judge_rationale,
    plan_rationales,
    training_weeks,
    write_rationales,
)
from fintune.schema.errors import DependencyError, RecipeError
from fintune.schema.recipe import TaskSection
from fintune.schema.run_directory import read_jsonl
from fintune.tasks import load_task
from fintune.tasks.weekly.rationales import RATIONALES_VARIABLE, said
from tests.tasks.weekly.test_published import SUNDAYS, published_row, write

KEY = "sk-not-to-be-seen"


def forecast(phrase):
    factors = "[Positive Developments]:\n1. a\n\n[Potential Concerns]:\n1. b\n\n"
    return f"{factors}[Prediction & Analysis]:\nPrediction: {phrase}\nAnalysis: c"


class Server:
    """Answers by ``reply(the user's turn)``: a text, or a status."""

    def __init__(self):
        self.asked, self.reply = [], lambda content: "Sorry"
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                content = body["messages"][-1]["content"]
                server.asked.append(content)
                found = server.reply(content)
                payload = json.dumps({"choices": [{"message": {"content": found}}]}).encode()
                self.send_response(found if isinstance(found, int) else 200)
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"


@pytest.fixture
def server():
    found = Server()
    yield found
    found.http.shutdown()
    found.http.server_close()


@pytest.fixture
def rows(tmp_path):
    """Published rows: eight training weeks that fell by 1 to 2 %, two of a later week that validates."""
    symbols = [f"S{number}" for number in range(8)]
    train = [published_row(SUNDAYS[2], symbol=symbol) for symbol in symbols]
    train += [published_row(SUNDAYS[3], symbol=symbol) for symbol in symbols[:1]]
    return write(tmp_path / "rows", train=train, test=[published_row(SUNDAYS[4], symbol="S9")])


def teaching(server, rows, tmp_path, **options):
    judge = Judge(server.url, "teacher-1", first_wait_s=0.0, key=KEY)
    return Teaching("dow30_forecast", judge, tmp_path / "out" / "rationales.jsonl", source=rows, **options)


def test_the_cost_is_estimated_before_anything_is_asked(server, rows, tmp_path):
    asking = teaching(server, rows, tmp_path)
    weeks = training_weeks(asking)
    plan = plan_rationales(asking, weeks, dollars_in=2.0, dollars_out=10.0)
    characters = sum(len(turn.content) for week in weeks for turn in week.messages)
    assert (plan.rows, plan.known, plan.answer_tokens) == (8, 0, 8 * MAX_ANSWER_TOKENS)
    assert plan.prompt_tokens == characters // 4
    assert plan.dollars == pytest.approx((characters // 4 * 2 + 8 * MAX_ANSWER_TOKENS * 10) / 1e6)
    assert plan_rationales(asking, weeks).dollars is None
    assert not server.asked and not asking.raw.exists()


def test_answers_are_kept_counted_and_asked_for_once(server, rows, tmp_path, monkeypatch):
    asking = teaching(server, rows, tmp_path)
    weeks = training_weeks(asking)
    answers = {
        "S0": forecast("Down by 1-2%"),
        "S1": forecast("Down by 3-4%"),
        "S2": forecast("Up by 0-1%"),
        "S3": "I'm sorry, I cannot give investment advice.",
        "S4": "It will fall.",
        "S5": forecast("sideways"),
    }
    server.reply = lambda content: next((a for s, a in answers.items() if f" {s} " in content), forecast("Up by 1-2%"))
    counts = write_rationales(asking, weeks, progress=False)
    assert counts == {"kept": 2, "refused": 1, "malformed": 2, "wrong": 3}
    assert len(server.asked) == 8 and not any("turned out" in content for content in server.asked)
    assert [row["id"] for row in read_jsonl(asking.place)] == [f"S0-{SUNDAYS[2]}", f"S1-{SUNDAYS[2]}"]
    assert write_rationales(asking, weeks, progress=False) == counts and len(server.asked) == 8
    assert plan_rationales(asking, weeks).known == 8
    assert KEY not in asking.place.read_text() + asking.raw.read_text() + repr(asking)
    monkeypatch.setenv(RATIONALES_VARIABLE, str(asking.place))
    learnt = load_task(TaskSection(name="dow30_forecast", source=rows, config="teacher"))
    assert [e.target for e in learnt.splits["train"]] == [answers["S0"], answers["S1"]]


def test_a_teacher_who_is_told_must_name_the_range(server, rows, tmp_path):
    asking = teaching(server, rows, tmp_path, told=True, limit=3)
    weeks = training_weeks(asking)
    server.reply = lambda content: forecast("Down by 3-4%" if " S1 " in content else "Down by 1-2%")
    assert write_rationales(asking, weeks, progress=False) == {"kept": 2, "refused": 0, "malformed": 0, "wrong": 1}
    assert all("turned out to be: down by 1-2%" in content for content in server.asked)
    assert {row["told"] for row in read_jsonl(asking.place)} == {True}
    (week, *_) = weeks
    assert said(str(week.metadata["bin"])) == "Down by 1-2%"
    assert judge_rationale(week, forecast("Down by 3-4%"), told=False) == "kept"


def test_what_was_answered_survives_a_failure_and_half_a_line(server, rows, tmp_path):
    asking = teaching(server, rows, tmp_path)
    weeks = training_weeks(asking)
    server.reply = lambda content: 401 if " S6 " in content else forecast("Down by 1-2%")
    with pytest.raises(DependencyError, match=r"did not answer .status 401") as caught:
        write_rationales(asking, weeks, progress=False)
    assert KEY not in f"{caught.value} {caught.value.remedy}"
    whole = asking.raw.read_text()
    assert whole.count("\n") == 4, "the first four weeks were written before the others were asked"
    asking.raw.write_text(whole + '{"key": "cut o')
    server.asked.clear()
    server.reply = lambda content: forecast("Down by 1-2%")
    assert write_rationales(asking, weeks, progress=False)["kept"] == 8
    assert len(server.asked) == 4 and len(list(read_jsonl(asking.raw))) == 8


def test_the_command_estimates_first_and_asks_when_it_is_told_to(server, rows, tmp_path):
    server.reply = lambda content: forecast("Down by 1-2%")
    place = tmp_path / "said.jsonl"
    command = ["rationales", "dow30_forecast", "--endpoint", server.url, "--teacher", "t", "--source", rows]
    options = ["--output", str(place), "--dollars-in", "1", "--dollars-out", "4"]
    estimated = CliRunner().invoke(app, [*command, *options], obj=Output())
    assert estimated.exit_code == 0 and "dollars" in estimated.output and "--ask" in estimated.output
    assert not server.asked and not place.exists()
    asked = CliRunner().invoke(app, [*command, *options, "--ask"], obj=Output())
    assert asked.exit_code == 0 and "8 kept" in asked.output and len(list(read_jsonl(place))) == 8


def test_a_task_without_forecasts_in_words_is_refused(server, rows, tmp_path):
    judge = Judge(server.url, "t")
    with pytest.raises(RecipeError, match="dow30 has no answers in words"):
        training_weeks(Teaching("dow30", judge, tmp_path / "x", source=rows))
