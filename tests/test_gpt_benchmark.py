"""The benchmark of GPTs from scratch: what a process answers, what tables make of it, and its tokens."""

from __future__ import annotations

import importlib
import json
import lzma
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the benchmarks are not part of this copy")


@pytest.fixture
def part(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return lambda name: importlib.import_module(f"gpt_runs.{name}")


@pytest.fixture
def tokens(tmp_path, part):
    file = tmp_path / "text.bin"
    part("tokens").write_bytes_of(sorted((FOLDER.parent / "docs").glob("*.md"))[:3], file)
    return file


def job(part, tokens, folder, **changes):
    settings = part("settings")
    variant = settings.Variant("fintune", options={"compiled": "no"}, **changes)
    return settings.Job(variant, "tiny", "cpu", str(tokens), 256, 0, 32, 4, (2, 3, 4), 6, 3, 4, {}, str(folder), False)


def test_a_worker_counts_times_and_races(part, tokens, tmp_path):
    worker = part("worker").Worker(job(part, tokens, tmp_path))
    facts = worker.prepare()
    assert list(facts["tried"]) == ["2", "4"] and facts["rows_at_once"] in (2, 4)  # 3 does not divide 4
    matrices, head = 2 * 12 * 64**2, 256 * 64
    assert facts["multiplied"] == matrices + head and facts["weights"] == matrices + 2 * head + 5 * 64
    assert facts["flops_per_token"] == 6 * (matrices + head) + 12 * 2 * 64 * 32
    window = worker.window(2)
    assert window["tokens_per_s"] * window["seconds"] == pytest.approx(2 * 4 * 32)
    ended = worker.race(str(tmp_path / "curve"))
    points = [json.loads(line) for line in (tmp_path / "curve").read_text().splitlines()]
    assert [point["step"] for point in points] == [3, 6] and points[-1]["validation_loss"] == ended["validation_loss"]
    assert all(point["validation_loss"] < np.log(256) - 0.5 for point in points)
    assert points[1]["tokens"] == 6 * 4 * 32


@pytest.mark.parametrize("named", ["folder", "file"])
def test_text_is_read_from_a_packed_file_and_from_its_folder(part, base, tmp_path, named):
    folder = tmp_path / "speeches"
    folder.mkdir()
    (folder / "README.md").write_text("What this is.")
    with lzma.open(folder / "speeches.jsonl.xz", "wt") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in ("Rates rose.", "Rates fell."))
    source = folder if named == "folder" else folder / "speeches.jsonl.xz"
    note = part("tokens").write_tokens([str(source)], str(base), tmp_path / "read.bin")
    ids = np.fromfile(tmp_path / "read.bin", np.uint16)
    assert note["characters"] == 22 and len(ids) == note["tokens"] and (ids == note["end_of_document"]).sum() == 2


def test_the_race_starts_from_the_weights_of_a_fresh_model(part, tokens, tmp_path, monkeypatch):
    import torch

    own = job(part, tokens, tmp_path)
    worker = part("worker").Worker(own)
    worker.prepare()
    seen = []

    def step(self):
        weights = {name: value.clone() for name, value in self.contender.model.state_dict().items()}
        seen.append((weights, self.next_row, len(self.optimizer.state_dict()["state"])))
        return made(self)

    made = type(worker)._step
    monkeypatch.setattr(type(worker), "_step", step)
    worker.race(str(tmp_path / "curve"))
    weights, row, moments = seen[-own.steps]
    fresh = part("contenders").contender(own).model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in fresh.items())
    assert row == 0 and moments == 0 and seen[-1][2] > 0
    assert any(not torch.equal(seen[0][0][name], value) for name, value in fresh.items())  # prepare took steps


def test_a_recipes_step_has_the_same_loss(part, tokens, tmp_path):
    import torch

    contenders, rows = part("contenders"), part("tokens").Rows(tokens, 32, 4, "cpu").training(0, 2)
    found = []
    for changes in ({}, {"path": "recipe"}):
        own = job(part, tokens, tmp_path, **changes)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(torch.nn.Module, "compile", lambda module, **_: None)
            found.append(contenders.contender(own).loss(*rows).item())
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_rows_are_the_file_in_order_and_held_out_ones_are_its_end(part, tokens):
    file = np.fromfile(tokens, np.uint16).astype(np.int64)
    rows = part("tokens").Rows(tokens, 32, 4, "cpu")
    ids, targets = rows.training(0, 2)
    assert ids.flatten().tolist() == file[:64].tolist() and targets.flatten().tolist() == file[1:65].tolist()
    assert rows.training(rows.train, 1)[0].tolist() == rows.training(0, 1)[0].tolist()
    last = rows.held_out(3, 1)[1]
    assert last[0].tolist() == file[(rows.train + 3) * 32 + 1 :][:32].tolist()


def test_the_table_names_the_first_point_below_the_baselines_loss(part, capsys):
    def points(*losses):
        return [{"seconds": 10.0 * n, "tokens": n, "validation_loss": loss} for n, loss in enumerate(losses, 1)]

    rows = [
        {"measure": "race", "size": "tiny", "variant": "baseline", "points": points(3.0, 2.5, 2.0)},
        {"measure": "race", "size": "tiny", "variant": "a", "points": points(1.9, 1.8)},
        {"measure": "race", "size": "tiny", "variant": "b", "points": points(2.1)},
        {"measure": "race", "size": "tiny", "variant": "c", "points": [], "error": "stopped"},
    ]
    part("results").race_table(rows)
    shown = capsys.readouterr().out
    assert "| a | 1.8000 | 20.0 | 10.0 s, 1 tokens | 3.0x against baseline |" in shown
    assert "| b | 2.1000 | 10.0 | not reached | |" in shown and "| c | stopped | | | |" in shown


def test_the_table_takes_the_baseline_that_ended(part, capsys):
    points = [{"seconds": 8.0, "tokens": 1, "validation_loss": 2.0}]
    rows = [
        {"measure": "race", "size": "tiny", "variant": "baseline", "points": points, "error": "stopped"},
        {"measure": "race", "size": "tiny", "variant": "baseline-tf32", "points": points},
        {"measure": "race", "size": "tiny", "variant": "a", "points": [{**points[0], "seconds": 4.0}]},
    ]
    part("results").race_table(rows)
    rows.append({**rows[2], "variant": "b", "device_name": "another card"})
    part("results").race_table(rows)
    shown = capsys.readouterr().out
    assert "| a | 2.0000 | 4.0 | 4.0 s, 1 tokens | 2.0x against baseline-tf32 |" in shown
    assert "| b | 2.0000 | 4.0 | no baseline ended on another card | |" in shown


def test_the_table_says_what_a_variant_is_beside_its_rate(part, tokens, tmp_path, capsys):
    results = part("results")
    facts = {"rows_at_once": 2, "attention": "SDPA", "weights": 2_500_000, "flops_per_token": 8e6, "peak_flops": 1e12}
    window = {"tokens_per_s": 25_000.0, "peak_bytes": 2**30}
    row = results.speed_row(job(part, tokens, tmp_path), "0", facts, [window])
    peer = {**row, "variant": "nanochat", "tokens_per_s": 10_000.0}
    other = {**peer, "variant": "nanogpt", "group": "another"}
    results.speed_table([{**row, "group": "one"}, {**peer, "group": "one"}, other])
    shown = capsys.readouterr().out
    assert "| SDPA | 2.5M | 8 | 2 | 25,000 (25,000-25,000) | 0.2 | 20.0% | 1.0 | 2.50x |  |" in shown


def out_of_memory(worker, most):
    """Makes steps of more rows than that fail as they do where memory is short."""
    import torch

    made = type(worker)._steps

    def steps(self, count):
        if self.at_once > most:
            raise torch.OutOfMemoryError("none left")
        return made(self, count)

    return steps


def test_fewer_rows_are_tried_where_none_fit(part, tokens, tmp_path, monkeypatch):
    worker = part("worker").Worker(job(part, tokens, tmp_path))
    monkeypatch.setattr(type(worker), "_steps", out_of_memory(worker, 1))
    facts = worker.prepare()
    assert facts["rows_at_once"] == 1 and list(facts["tried"]) == ["2", "1"]


@pytest.fixture
def bench(part, tokens, tmp_path, monkeypatch):
    from_scratch = importlib.import_module("gpt_from_scratch")

    def made(*words):
        common = ["--smoke", "--tokens", str(tokens), "--work-dir", str(tmp_path), "--json", str(tmp_path / "rows")]
        monkeypatch.setattr(sys, "argv", ["gpt_from_scratch.py", *words, *common])
        return from_scratch.Bench(from_scratch.parsed())

    return made


def names(groups):
    return [[job.variant.name for job in group] for group in groups]


def test_what_is_in_the_file_is_not_measured_again(bench, tmp_path):
    first = bench("race", "--only", "baseline-tf32", "fintune@0.5")
    (baseline,), (ours,) = groups = list(first.race_groups())
    assert names(groups) == [["baseline-tf32"], ["fintune@0.5"]]
    assert baseline.candidates == (2,) and baseline.validate_every == 5 * ours.validate_every
    points = [{"seconds": 1.0, "tokens": 1, "validation_loss": 2.0}]
    first._keep({"measure": "race", "size": "tiny", "variant": "baseline-tf32", "points": points}, baseline)
    first._keep({"measure": "race", "size": "tiny", "variant": "fintune@0.5", "points": [], "error": "stopped"}, ours)
    with (tmp_path / "rows").open("a") as file:
        file.write('{"measure": "ra')  # killed while it wrote
    again = bench("race", "--only", "fintune@0.5")
    assert names(again.race_groups()) == [["fintune@0.5"]]
    assert [row["variant"] for row in again.rows] == ["baseline-tf32"]  # for the table
    assert names(bench("race", "--validation-rows", "8").race_groups())[1:2] == [["baseline-bf16-compiled"]]


def test_speed_leaves_out_what_is_there_and_keeps_the_peers_beside_the_rest(bench, tmp_path):
    (tmp_path / "peer").mkdir()
    (tmp_path / "peer" / "model.py").touch()
    words = ("speed", "--nanogpt", str(tmp_path / "peer"), "--only", "nanogpt", "fintune", "fintune-adamw")
    (group,) = bench(*words).speed_groups()
    assert names([group]) == [["nanogpt", "fintune", "fintune-adamw"]]
    for n, job in enumerate(group):
        bench(*words)._keep({"measure": "speed", "size": "tiny", "variant": job.variant.name, "tokens_per_s": 1}, job)
        left = [["nanogpt", "fintune", "fintune-adamw"], ["nanogpt", "fintune-adamw"], None][n]
        assert names(bench(*words).speed_groups()) == ([left] if left else [])


@pytest.mark.parametrize(
    "words, said",
    [
        (("speed", "--nanogpt", "no/such/folder"), "--nanogpt no/such/folder is no checkout"),
        (("race", "--only", "fintune"), "race has no fintune; it has baseline, baseline-tf32"),
        (("speed", "--only", "nanogpt"), "speed has no nanogpt"),
    ],
)
def test_what_is_not_there_is_refused_at_once(bench, capsys, words, said):
    with pytest.raises(SystemExit, match="2"):
        bench(*words)
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("inherited, place, card", [(None, "1", "1"), ("2", "0", "2"), ("5, GPU-a", "1", "GPU-a")])
def test_devices_are_places_among_the_visible_cards(part, monkeypatch, inherited, place, card):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if inherited is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", inherited)
    assert part("processes").visible_device(place) == card


def test_a_place_that_no_visible_card_has_is_refused(part, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    with pytest.raises(ValueError, match="has no place 1"):
        part("processes").visible_device("1")


def test_a_worker_that_computes_ends_with_its_standard_input():
    program = "from gpt_runs.worker import commands_read\ncommands_read()\nprint('on', flush=True)\nwhile True: pass"
    path = os.pathsep.join((str(FOLDER), os.environ.get("PYTHONPATH", "")))
    running = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert running.stdout.readline() == b"on\n"
    running.communicate(timeout=120)  # closes its input
    assert running.returncode == -signal.SIGKILL


def is_running(pid):
    """Not so for one that has ended and that nobody has asked about yet."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_stopped_benchmark_leaves_no_worker(tmp_path):
    command = [sys.executable, str(FOLDER / "gpt_from_scratch.py"), "race", "--smoke", "--work-dir", str(tmp_path)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    workers = []
    while not workers and running.poll() is None:
        time.sleep(0.05)
        workers = [child.pid for child in psutil.Process(running.pid).children()]
    running.terminate()
    said = running.communicate(timeout=240)[0].decode()
    assert running.returncode == 128 + signal.SIGTERM and "race tiny" not in said, said
    until = time.monotonic() + 30
    while any(map(is_running, workers)) and time.monotonic() < until:
        time.sleep(0.05)
    assert workers and not any(map(is_running, workers))


@pytest.mark.slow
def test_one_command_measures_in_processes_and_writes_rows(tmp_path):
    file = tmp_path / "rows.jsonl"
    command = [sys.executable, str(FOLDER / "gpt_from_scratch.py"), "speed", "--smoke", "--only", "fintune"]
    done = subprocess.run(
        [*command, "--work-dir", str(tmp_path), "--json", str(file)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (row,) = map(json.loads, file.read_text().splitlines())
    assert row["variant"] == "fintune" and len(row["windows"]) == 2
    assert 0 < row["least"] <= row["tokens_per_s"] <= row["most"]
    assert f"{row['tokens_per_s']:,.0f}" in done.stdout
