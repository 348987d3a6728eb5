"""The comparison with other libraries: every row is measured or says why not, on the same tokens for all."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "peers.py"
TINY = ["--shape", "tiny", "--device", "cpu", "--warm-up", "1", "--repeats", "2", "--window", "1"]

pytestmark = pytest.mark.skipif(not BENCHMARK.is_file(), reason="the benchmarks are not part of this copy")


def run(*options):
    return subprocess.run(
        [sys.executable, str(BENCHMARK), *map(str, options)], capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """Three configurations, before which the run writes the checkpoint that all start from."""
    place = tmp_path_factory.mktemp("dense")
    names = ["fintune-bf16", "trl-bf16", "unsloth-nf4"]
    options = ["--rows", 2, "--length", 16, "--work-dir", place, "--json", place / "dense.json"]
    return place, names, run("dense", *TINY, *options, "--only", *names)


@pytest.fixture
def place(dense, tmp_path):
    """A work directory with the checkpoint in it."""
    shutil.copytree(dense[0] / "model-tiny", tmp_path / "model-tiny")
    return tmp_path


@pytest.mark.slow
def test_every_configuration_is_a_row_and_both_libraries_start_from_the_same_loss(dense):
    place, names, done = dense
    rows = {row["name"]: row for row in json.loads((place / "dense.json").read_text())["rows"]}
    assert done.returncode == any("error" in row for row in rows.values()), done.stderr
    assert list(rows) == names
    ours, theirs = rows["fintune-bf16"], rows["trl-bf16"]
    for row in (ours, theirs):
        assert [window["tokens"] for window in row["windows"]] == [32, 32]
        assert row["steps"] == 3
        least, most = row["tokens_per_s"][1:]
        assert 0 < least <= row["tokens_per_s"][0] <= most
    # The same weights and tokens, an adapter that starts at nothing: what is left is bf16 rounding and two small steps.
    assert ours["loss"] == pytest.approx(theirs["loss"], abs=0.02)
    if importlib.util.find_spec("unsloth") is None:
        assert "unsloth" in rows["unsloth-nf4"]["error"]
    assert all(name in done.stdout for name in names)


@pytest.mark.slow
def test_tokenised_samples_are_counted_before_prefixes_are_shared(place):
    samples = [{"tokens": [1, 5, 6, 7, number, 2], "completion_start": 4} for number in range(8, 248)]
    data = place / "samples.jsonl"
    data.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    file = place / "phrasebank.json"
    options = [*TINY, "--work-dir", place, "--phrasebank", data, "--json", file, "--only", "fintune-bf16"]
    done = run("phrasebank", *options)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(file.read_text())["rows"]
    # 240 samples in steps of 168: the first epoch's rest, then a whole step.
    assert [(w["samples"], w["tokens"]) for w in row["windows"]] == [(72, 72 * 6), (168, 168 * 6)]


def test_a_time_limit_ends_a_configuration_and_not_the_run(place):
    file = place / "dense.json"
    options = [*TINY, "--work-dir", place, "--json", file, "--timeout", "0.05", "--only", "fintune-bf16", "trl-bf16"]
    done = run("dense", *options)
    assert (done.returncode, done.stderr) == (1, "Not measured: fintune-bf16, trl-bf16.\n")
    assert [row["error"] for row in json.loads(file.read_text())["rows"]] == ["stopped after 0.05 s"] * 2


def test_an_unknown_configuration_is_refused_with_the_known_ones(tmp_path):
    done = run("dense", "--only", "unslotth", "--work-dir", tmp_path)
    assert done.returncode == 2
    assert "dense has no unslotth; it has unsloth-nf4" in done.stderr


@pytest.fixture
def peer_runs(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARK.parent))
    yield importlib.import_module("peer_runs.data")
    for name in [name for name in sys.modules if name.split(".")[0] == "peer_runs"]:
        del sys.modules[name]


def test_tokens_of_a_step_depend_on_its_number_alone(peer_runs):
    first, again, other = (peer_runs.random_tokens(step, 2, 8, 100) for step in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
