"""What answering takes is measured, for what was answered now."""

import time

import pytest

import fintune
from fintune.evaluation.timing import AnswerTimer
from fintune.schema.example import Example, Message
from fintune.schema.results import DocumentRecord, TimeCost

pytestmark = pytest.mark.usefixtures("own_cache")


def test_seconds_and_tokens():
    def ask(documents):
        time.sleep(0.05)
        return [
            DocumentRecord(
                system="s", task="t", example_id=one.example_id, group="g", target="", prediction=None, correct=False,
                protocol=protocol, output="abcd",
            )
            for one in documents
            for protocol in ("robust", "flare_strict")
        ]  # fmt: skip

    timer = AnswerTimer()
    documents = [Example(str(number), "t", (Message("user", "q"),), "") for number in range(3)]
    assert len(timer.watched(ask)(documents)) == 6
    timer.wrote(12)
    cost = timer.cost("s", "t", is_written=True)
    assert (cost.n, cost.written_tokens) == (3, 12), "an answer under two protocols is one answer"
    assert cost.elapsed_s >= 0.05
    assert timer.cost("s", "t", is_written=False).tokens_per_s is None


def test_ratios():
    cost = TimeCost(system="s", task="t", n=4, elapsed_s=2.0, written_tokens=100)
    assert (cost.s_per_answer, cost.tokens_per_s) == (0.5, 50.0)
    empty = TimeCost(system="s", task="t", n=0, elapsed_s=0.0, written_tokens=0)
    assert (empty.s_per_answer, empty.tokens_per_s) == (None, None)


def test_an_evaluation_says_what_its_answers_took(base, tmp_path, copying):
    options = {"overrides": ["evaluation.bootstrap_samples=100", "report.enabled=false"], "progress": False}
    tasks = [f"copying:{copying}"]
    results = fintune.evaluate(str(base), tasks=tasks, limit=4, output_dir=tmp_path / "run", **options)
    (cost,) = results.time_costs
    assert (cost.system, cost.task, cost.n) == ("base", "copying", 4)
    assert 0 < cost.elapsed_s <= results.elapsed_s and 0 <= cost.written_tokens <= 4 * 5
    # Answers that are there already take no time.
    again = fintune.evaluate(str(base), tasks=tasks, limit=4, output_dir=tmp_path / "run", **options)
    assert again.time_costs == ()
    assert again.results == results.results
