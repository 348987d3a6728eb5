"""Which learning rate a search chooses."""

import importlib.util
import json
import math
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "learning_rates.py"

pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="the benchmarks are not part of this copy")


@pytest.fixture(scope="module")
def rates():
    spec = importlib.util.spec_from_file_location("learning_rates", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ({"a": {1: 3.0, 2: 2.0}, "b": {1: 1.0, 2: 2.5}}, "a"),  # the last step counts
        ({"a": {1: 0.5}, "b": {1: 1.0, 2: 2.5}}, "b"),  # one that ended early has no number there
        ({"a": {2: math.nan}, "b": {2: 2.5}}, "b"),
        ({"a": {2: math.nan}, "b": {}}, None),
        ({}, None),
    ],
)
def test_the_least_loss_of_the_last_step_decides(rates, losses, best):
    assert rates.least(losses) == best


def test_a_run_that_did_not_end_has_no_losses(rates, tmp_path):
    rows = [{"step": 1, "loss": 2.0}, {"step": 2, "eval_loss": 1.23456}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert rates.validation_losses(tmp_path) == {}
    (tmp_path / "results.json").write_text("{}")
    assert rates.validation_losses(tmp_path) == {2: 1.2346}
