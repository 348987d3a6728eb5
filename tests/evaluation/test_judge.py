"""A judge over HTTP, played by a local server: orders, ties, faults, keys, and going on after a failure."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import fintune
from fintune.evaluation import judge as judge_module
from fintune.evaluation.judge import Judge, Pair, judge_from_environment, judged_records
from fintune.metrics.summary import compare, summarise
from fintune.schema.errors import DependencyError, RecipeError, RunError
from fintune.schema.example import Example, Message
from fintune.schema.results import EvaluationResults

KEY = "sk-not-to-be-seen"


class Endpoint:
    """Answers by ``reply(answer A, answer B)``: text for a verdict, or a status, or bytes that are no JSON."""

    def __init__(self):
        self.reply = lambda a, b: "Verdict: tie"
        self.asked, self.failures, self.told = [], [], []

    def serve(self):
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                content = body["messages"][1]["content"]
                first = content.partition("[Answer A]\n")[2].partition("\n[End of A]")[0]
                second = content.partition("[Answer B]\n")[2].partition("\n[End of B]")[0]
                endpoint.told.append(body["messages"][0]["content"])
                endpoint.asked.append((self.path, body["model"], self.headers.get("Authorization"), first, second))
                found = endpoint.failures.pop(0) if endpoint.failures else endpoint.reply(first, second)
                if found == "close":
                    self.connection.close()
                    return
                status = found if isinstance(found, int) else 200
                answer = {"choices": [{"message": {"role": "assistant", "content": found}}]}
                payload = found if isinstance(found, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        return f"http://127.0.0.1:{self.server.server_port}/v1"


@pytest.fixture
def endpoint():
    found = Endpoint()
    found.url = found.serve()
    yield found
    found.server.shutdown()
    found.server.server_close()
    found.thread.join()


def pairs(n, answer="good", reference="bad"):
    return [
        Pair(
            Example(f"d{i}", "chat", (Message("user", f"Question {i}?"),), "reference", group=f"g{i}", learnt="turns"),
            f"{answer} {i}",
            f"{reference} {i}",
        )
        for i in range(n)
    ]


def judge_at(endpoint, **options):
    return Judge(endpoint.url, "judge-1", first_wait_s=0.0, **options)


def wins(records, system="tuned"):
    return [record.counts.get("win") for record in records if record.system == system]


def test_the_better_answer_wins_in_both_orders(endpoint):
    endpoint.reply = lambda a, b: "It is right.\nVerdict: " + ("A" if "good" in a else "B")
    records = judged_records(judge_at(endpoint, key=KEY), pairs(6), ("tuned", "base"))
    assert wins(records) == [1.0] * 6 and wins(records, "base") == [0.0] * 6
    assert [record.prediction for record in records[:2]] == ["better", "worse"]
    assert len(endpoint.asked) == 12 and {one[:3] for one in endpoint.asked} == {
        ("/v1/chat/completions", "judge-1", f"Bearer {KEY}")
    }
    assert {(a, b) for *_, a, b in endpoint.asked} >= {("good 0", "bad 0"), ("bad 0", "good 0")}
    tuned, base = ([one for one in records if one.system == system] for system in ("tuned", "base"))
    result = summarise(tuned, task_version="1", split="test", scoring="chat", n_resamples=100)
    assert result.primary == "win_rate" and result.metrics["win_rate"].value == 1.0
    found = compare(tuned, base, scoring="chat", n_resamples=100)
    assert found.differences["win_rate"].value == 1.0 and found.sign_flip_p == 2 / 2**6


def test_the_rubric_is_what_the_judge_is_told(endpoint):
    for rubric, text in judge_module.RUBRICS.items():
        judged_records(judge_at(endpoint, rubric=rubric), pairs(1), ("tuned", "base"))
        assert all(told.startswith(text) and "Verdict: tie" in told for told in endpoint.told[-2:])
    assert len(set(endpoint.told)) == 2


@pytest.mark.parametrize(("word", "by_order"), [("A", 1.0), ("B", 1.0), ("tie", 0.0)])
def test_a_judge_that_goes_by_the_order_only_sees_ties(endpoint, word, by_order):
    endpoint.reply = lambda a, b: f"**Verdict: {word}**"
    records = judged_records(judge_at(endpoint), pairs(3), ("tuned", "base"))
    assert wins(records) == wins(records, "base") == [0.5] * 3
    assert all(record.counts["tie"] == 1 and record.counts["order_dependent"] == by_order for record in records)


@pytest.mark.parametrize("reply", ["No idea.", "", b"<html>", b"{}", b'{"choices": []}', b"[1]", None])
def test_a_verdict_that_cannot_be_read_is_missing_and_counted(endpoint, reply):
    endpoint.reply = lambda a, b: "Verdict: A" if a == "good 0" else reply
    records = judged_records(judge_at(endpoint), pairs(2), ("tuned", "base"))
    assert [record.prediction for record in records] == [None] * 4
    assert [record.counts["malformed"] for record in records] == [1.0, 1.0, 2.0, 2.0]
    endpoint.reply = lambda a, b: "Verdict: " + ("A" if "good" in a else "B")
    records += judged_records(judge_at(endpoint), pairs(6)[2:], ("tuned", "base"))
    result = summarise(records[::2], task_version="1", split="test", scoring="chat", n_resamples=100)
    assert result.missing_rate == pytest.approx(2 / 6) and result.metrics["win_rate"].value == 1.0


def test_equal_answers_are_a_tie_that_nobody_is_asked_about(endpoint):
    records = judged_records(judge_at(endpoint), pairs(2, "same", "same"), ("tuned", "base"))
    assert wins(records) == [0.5, 0.5] and not endpoint.asked


@pytest.mark.parametrize("failure", [429, 500, 503, "close"])
def test_a_passing_failure_is_asked_again(endpoint, failure):
    endpoint.reply = lambda a, b: "Verdict: " + ("A" if "good" in a else "B")
    endpoint.failures = [failure, failure]
    assert wins(judged_records(judge_at(endpoint), pairs(1), ("tuned", "base"))) == [1.0]
    assert len(endpoint.asked) == 4


@pytest.mark.parametrize(("failure", "n_asked"), [(401, 1), (404, 1), (503, 5)])
def test_a_lasting_failure_is_one_sentence_without_the_key(endpoint, failure, n_asked):
    endpoint.reply = lambda a, b: failure
    with pytest.raises(DependencyError, match=f"did not answer .status {failure}") as caught:
        judged_records(judge_at(endpoint, key=KEY), pairs(1), ("tuned", "base"))
    assert len(endpoint.asked) == n_asked
    assert KEY not in f"{caught.value} {caught.value.remedy} {judge_at(endpoint, key=KEY)!r}"


def test_a_slow_endpoint_times_out(endpoint):
    release = threading.Event()
    endpoint.reply = lambda a, b: release.wait(5) and "Verdict: A"
    with pytest.raises(DependencyError, match="ReadTimeout"):
        judged_records(judge_at(endpoint, timeout_s=0.05), pairs(1), ("tuned", "base"))
    release.set()


def test_the_key_comes_from_the_environment_and_the_url_holds_none(monkeypatch):
    for name in judge_module.KEY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert judge_from_environment("http://localhost:1/v1", "m").key == ""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert judge_from_environment("http://localhost:1/v1", "m").key == KEY
    with pytest.raises(RecipeError, match="user name or password"):
        judge_from_environment("https://me:secret@host/v1", "m")
    with pytest.raises(RecipeError, match="is no URL"):
        judge_from_environment("localhost:8000", "m")
    monkeypatch.setenv("FINTUNE_OFFLINE", "1")
    with pytest.raises(RecipeError, match="offline is set"):
        judge_from_environment("https://api.example.com/v1", "m")


@pytest.fixture
def judged_run(base, tmp_path, own_cache):
    rows = [{"question": f"What is {n * 7919}?", "answer": f"It is {n * 104729} of {n}."} for n in range(60)]
    (tmp_path / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = {"measure": "answers", "max_answer_tokens": 6, "test_share": 0.3, "near_duplicates": None}
    return fintune.train(
        {
            "name": "r",
            "model": {"base": str(base)},
            "data": {"tasks": [{"name": "facts", "source": str(tmp_path / "qa.jsonl"), "conversations": section}],
                     "near_duplicate_threshold": None},
            "training": {"max_steps": 3, "learning_rate": 0.1, "tracking": []},
            "evaluation": {"bootstrap_samples": 100, "baselines": []},
            "report": {"enabled": False},
        },
        output_dir=tmp_path / "run", progress=False,
    )  # fmt: skip


def test_a_run_is_judged_resumed_and_its_scores_lie_beside_it(judged_run, endpoint, monkeypatch):
    monkeypatch.setenv("FINTUNE_JUDGE_KEY", KEY)
    monkeypatch.setattr(judge_module, "_TRIES", 1)
    before = (judged_run.run_dir / "results.json").read_bytes()
    endpoint.reply = lambda a, b: "Verdict: " + ("A" if len(a) > len(b) else "B" if len(b) > len(a) else "tie")
    endpoint.failures = ["Verdict: tie"] * 16 + [500]
    with pytest.raises(DependencyError):
        fintune.judge(judged_run.run_dir, endpoint=endpoint.url, model="org/judge-1", progress=False)
    n_before = len(endpoint.asked)
    results = fintune.judge(judged_run.run_dir, endpoint=endpoint.url, model="org/judge-1", progress=False)
    place = judged_run.run_dir / "judged" / "org-judge-1"
    assert EvaluationResults.model_validate_json((place / "results.json").read_text()) == results
    assert (judged_run.run_dir / "results.json").read_bytes() == before
    assert results.counts["judged documents"] == 18 and results.counts["malformed verdicts"] == 0
    again = len(endpoint.asked) - n_before
    assert 0 < again <= 2 * (18 - 8), "the first chunk of eight was kept"
    tuned, base = (results.find("facts", system) for system in ("tuned", "base"))
    assert tuned.metrics["win_rate"].value + base.metrics["win_rate"].value == pytest.approx(1)
    (comparison,) = results.comparisons
    assert comparison.primary == "win_rate" and comparison.n == 18
    written = [path for path in judged_run.run_dir.rglob("*") if path.is_file()]
    assert all(KEY.encode() not in path.read_bytes() for path in written)


def test_a_run_without_written_answers_cannot_be_judged(judged_run, endpoint):
    (judged_run.run_dir / "predictions.jsonl").write_text("")
    with pytest.raises(RunError, match="holds no answers"):
        fintune.judge(judged_run.run_dir, endpoint=endpoint.url, model="m", progress=False)
