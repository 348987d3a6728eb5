"""Several processes on the CPU: what one would have computed, in bounded time, and one sentence when one is lost."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from tests.training.rank_runs import adapter, losses, start_command, train

pytestmark = pytest.mark.slow

TEN = ("training.max_steps=10", "training.epochs=10", "data.train_limit=40", "training.samples_per_step=6")


def require_equal(left, right, atol):
    assert left.keys() == right.keys() and left
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], atol=atol, rtol=0, msg=name)


@pytest.fixture(scope="module")
def one(base, tmp_path_factory):
    """Ten steps of one process, in batches of at most 150 tokens."""
    place = tmp_path_factory.mktemp("one") / "run"
    ended = train(base, place, *TEN, "training.tokens_per_batch=150", processes=1)
    assert ended.code == 0, ended.error
    return place


def test_a_process_with_fillers_only_changes_nothing(base, tmp_path):
    changes = ("training.max_steps=4", "training.samples_per_step=1")
    for place, processes in (("one", 1), ("two", 2)):
        assert train(base, tmp_path / place, *changes, processes=processes).code == 0
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
    require_equal(adapter(tmp_path / "two"), adapter(tmp_path / "one"), atol=1e-5)


def test_two_processes_follow_one_on_uneven_batches(base, one, tmp_path):
    ended = train(base, tmp_path / "two", *TEN, "training.tokens_per_batch=150")
    assert ended.code == 0, ended.error
    assert len(losses(one)) == 10
    assert losses(tmp_path / "two") == pytest.approx(losses(one), abs=1e-5)
    require_equal(adapter(tmp_path / "two"), adapter(one), atol=1e-5)
    facts = json.loads((tmp_path / "two" / "facts.json").read_text())
    alone = json.loads((one / "facts.json").read_text())
    assert facts["processes"] == 2 and facts["sample_tokens"] == alone["sample_tokens"]  # of both
    assert (tmp_path / "two" / "logs" / "rank-1.jsonl").is_file()


def test_a_killed_process_ends_the_run_in_one_sentence_and_it_goes_on_as_two_and_as_one(base, tmp_path):
    dropout = (*TEN, "adapter.dropout=0.2")
    straight, killed, fewer = (tmp_path / name for name in ("straight", "killed", "fewer"))
    assert train(base, straight, *dropout).code == 0
    ended = train(base, killed, *dropout, mishap="0:5:kill", interpreters=True)  # the one that writes
    assert ended.code == 2 and ended.seconds < 300
    assert ended.error.count("error:") == 1 and "Start the same command again" in ended.error
    assert "Traceback" not in ended.error
    shutil.copytree(killed, fewer)
    assert train(base, killed, *dropout).code == 0
    assert losses(killed) == losses(straight)
    assert (killed / "adapter" / "adapter_model.safetensors").read_bytes() == (
        straight / "adapter" / "adapter_model.safetensors"
    ).read_bytes()
    assert train(base, fewer, *dropout, processes=1).code == 0
    assert losses(fewer)[:4] == losses(straight)[:4]
    assert losses(fewer) == pytest.approx(losses(straight), abs=0.05)  # other masks from step 5 on
    assert "processes 2 -> 1" in (fewer / "metrics.jsonl").read_text()


def test_one_goes_on_as_two_and_two_stop_after_the_same_step(base, one, tmp_path):
    changes = (*TEN, "training.tokens_per_batch=150")
    assert train(base, tmp_path / "run", *changes, processes=1, mishap="0:3:interrupt").code == 130
    assert len(losses(tmp_path / "run")) == 4
    ended = train(base, tmp_path / "run", *changes, mishap="1:6:interrupt")  # only one of them has the signal
    assert ended.code == 130 and ended.error.count("error:") == 1, ended.error
    assert losses(tmp_path / "run") == pytest.approx(losses(one)[:7], abs=1e-5)
    assert train(base, tmp_path / "run", *changes).code == 0
    assert losses(tmp_path / "run") == pytest.approx(losses(one), abs=1e-5)


@pytest.mark.parametrize(("what", "code", "words"), [("error", 2, "The planted error came."), ("memory", 1, "planted")])
def test_an_error_of_one_process_is_said_once(base, tmp_path, what, code, words):
    ended = train(base, tmp_path / "run", *TEN, mishap=f"1:3:{what}")
    assert ended.code == code and ended.seconds < 300
    assert ended.error.count("error:") == 1 and words in ended.error
    assert words in (tmp_path / "run" / "logs" / "rank-1.log").read_text()


def test_torchrun_starts_it_too(base, one, tmp_path):
    from tests.runs import QUICK
    from tests.training.rank_runs import SMALL

    command = ["train", "quickstart", f"model.base={base}", *QUICK, *SMALL, *TEN, "training.tokens_per_batch=150"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "fintune.cli"]
    ended = start_command([*torchrun, *command, "--output-dir", str(tmp_path / "run"), "-q", "--json"])
    assert ended.code == 0, ended.error
    assert json.loads(ended.out)["facts"]["processes"] == 2  # one document, though two processes ran
    assert losses(tmp_path / "run") == pytest.approx(losses(one), abs=1e-5)


def test_validation_of_the_first_decides_for_all(base, tmp_path):
    changes = ("training.eval_steps=2", "training.best_metric=loss", "training.early_stopping_patience=1")
    ended = train(base, tmp_path / "run", *TEN, *changes, "training.early_stopping_threshold=100")
    assert ended.code == 0, ended.error
    facts = json.loads((tmp_path / "run" / "facts.json").read_text())
    assert facts["stopped_early"] and facts["steps"] < 10
