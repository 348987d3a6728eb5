"""A disk that fills up: one sentence, nothing lost, and the run goes on where it can."""

from __future__ import annotations

import errno
import os
import resource
import signal
from pathlib import Path

import pytest
import torch

from fintune import learning, measuring
from fintune.schema.errors import RunError
from fintune.schema.run_directory import write_text_atomically
from fintune.training.checkpoints import is_intact, list_checkpoints
from fintune.training.metrics_log import MetricsLog
from tests.forks import forks
from tests.runs import losses, run, weights

pytestmark = pytest.mark.usefixtures("own_cache")

QUICK = ("evaluation.base=false", "evaluation.limit=3")


def test_a_full_disk_and_a_damaged_checkpoint_at_once_cost_no_bit(base, tmp_path, monkeypatch, caplog):
    changes = (*QUICK, "training.epochs=1.5", "adapter.dropout=0.2")
    straight = run(base, tmp_path / "straight", *changes)
    save = torch.save

    def full(value, path, *arguments, **options):
        if ".staging-6" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(value, path, *arguments, **options)

    with monkeypatch.context() as patched, pytest.raises(RunError, match="step 6 could not be written.*No space"):
        patched.setattr(torch, "save", full)
        run(base, tmp_path / "run", *changes)
    second, fourth = list_checkpoints(tmp_path / "run" / "checkpoints")
    assert (second.step, fourth.step) == (2, 4)
    file = fourth.path / "weights" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert is_intact(second) and not is_intact(fourth)
    resumed = run(base, tmp_path / "run", *changes)
    assert resumed.facts["resumed_from_step"] == 2 and "damaged" in caplog.text
    assert weights(resumed) == weights(straight) and losses(resumed) == losses(straight)


def limited(place: str, size: int, work: str, pipe) -> None:
    """Runs one of the writers below under a real limit on the size of files, and says what came of it."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write then fails with EFBIG, as on a full disk with ENOSPC
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        WRITERS[work](Path(place))
        pipe.send("written")
    except Exception as exc:
        pipe.send(f"{type(exc).__name__}: {exc}")


def write_predictions(place: Path) -> None:
    write_text_atomically(place, "new" * 10_000)


def append_metrics(place: Path) -> None:
    log = MetricsLog(place, 10**6)
    for step in range(1, 10_000):
        log.append({"step": step, "loss": 1.0})


def whole_run(place: Path) -> None:
    run(place / "tiny", place / "run", *QUICK, "training.tracking=[tensorboard]")


WRITERS = {"predictions": write_predictions, "metrics": append_metrics, "run": whole_run}


def under_limit(place: Path, size: int, work: str) -> str:
    context = forks()
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=limited, args=(str(place), size, work, send))
    process.start()
    send.close()
    said: str = receive.recv()
    process.join(timeout=120)
    return said


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs a limit on file sizes")
def test_a_file_that_cannot_be_written_is_one_sentence_and_the_old_one_stays(tmp_path):
    file = tmp_path / "predictions.jsonl"
    file.write_text("old")
    said = under_limit(file, 4096, "predictions")
    assert said.startswith("RunError") and str(file) in said and "Free some space" in said
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


def test_a_metrics_line_cut_short_is_one_sentence_and_the_log_is_mended(tmp_path):
    file = tmp_path / "metrics.jsonl"
    said = under_limit(file, 1000, "metrics")
    assert said.startswith("RunError") and "metrics.jsonl could not be written" in said
    written = file.read_bytes()
    assert len(written) == 1000 and not written.endswith(b"\n")  # cut in the middle of a line
    MetricsLog(file, 10**6).append({"step": 10**6, "loss": 1.0})
    lines = file.read_text().splitlines()
    assert lines[:-1] == written.decode().splitlines()[:-1] and lines[-1].startswith('{"step": 1000000')


@pytest.mark.slow
@pytest.mark.parametrize("name", ["recipe.yaml", "optimizer.pt"])
def test_a_run_under_a_real_limit_says_so_and_goes_on_without_it(base, straight, tmp_path, name):
    size = next(straight.run_dir.rglob(name)).stat().st_size
    (tmp_path / "tiny").symlink_to(base)
    said = under_limit(tmp_path, size - size // 4, "run")  # three quarters of that file fit
    assert said.startswith("RunError") and "Free some space" in said and "\n" not in said
    resumed = run(tmp_path / "tiny", tmp_path / "run", *QUICK, "training.tracking=[tensorboard]")
    assert weights(resumed) == weights(straight) and losses(resumed) == losses(straight)


@pytest.fixture(scope="module")
def straight(base, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("FINTUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        return run(base, tmp_path_factory.mktemp("straight") / "run", *QUICK)


@pytest.mark.parametrize("stage", ["save_recipe", "write_json", "write_records", "save_adapter"])
def test_a_full_disk_at_any_stage_is_one_sentence_and_the_run_goes_on(base, straight, tmp_path, monkeypatch, stage):
    def full(*_, **__):
        with pipeline_writing(tmp_path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    from fintune.schema.run_directory import writing as pipeline_writing

    with monkeypatch.context() as patched, pytest.raises(RunError, match="No space"):
        patched.setattr(measuring if stage == "write_records" else learning, stage, full)
        run(base, tmp_path / "run", *QUICK)
    resumed = run(base, tmp_path / "run", *QUICK)
    assert weights(resumed) == weights(straight) and losses(resumed) == losses(straight)
