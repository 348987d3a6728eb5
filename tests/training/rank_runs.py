"""Runs of several processes for tests: started, bounded in time, and with nothing left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from safetensors.torch import load_file

from tests.forks import forks
from tests.runs import QUICK
from tests.training import rank_child

ROOT = Path(__file__).parents[2]
LIMIT_S = 600  # a hang, not slowness: two processes may share two cores with other tests
SMALL = ("evaluation.base=false", "evaluation.limit=3", "evaluation.baselines=[]", "data.validation_limit=9")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    error: str
    seconds: float


def environment(**more: str) -> dict[str, str]:
    """One thread, the tests' modules at hand, and nothing of another launcher."""
    kept = {name: value for name, value in os.environ.items() if name not in ("WORLD_SIZE", "RANK", "LOCAL_RANK")}
    places = [str(ROOT / "src"), str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return kept | {"PYTHONPATH": os.pathsep.join(filter(None, places)), "OMP_NUM_THREADS": "1"} | more


def start_command(program: list[str], **more: str) -> Ended:
    """Runs a Python program with the tests' modules at hand; kills it and all it started when it takes too long."""
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**more),
        cwd=ROOT,
    )
    try:
        out, error = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        for child in [*psutil.Process(process.pid).children(recursive=True), process]:
            child.kill()
        out, error = process.communicate()
        raise AssertionError(f"not done within {LIMIT_S} s: {out}{error}") from None
    return Ended(process.returncode, out, error, time.monotonic() - started)


def fork_command(arguments: list[str], outputs: Path, processes: int, **more: str) -> Ended:
    """Runs the command line, and the processes it starts, as forks of a server that has the libraries loaded."""
    files = [Path(f"{outputs}.{name}") for name in ("out", "err")]
    for file in files:
        file.write_text("")
    started = time.monotonic()
    given = (arguments, environment(**more), [*map(str, files)], processes)
    process = forks().Process(target=rank_child.forked, args=given)
    process.start()
    process.join(LIMIT_S)
    left = writers(files)
    for one in left:
        one.kill()
    process.join()
    out, error = (file.read_text() for file in files)
    assert not left, f"processes are left behind after {time.monotonic() - started:.0f} s: {out}{error}"
    assert process.exitcode is not None
    return Ended(process.exitcode, out, error, time.monotonic() - started)


def writers(files: list[Path]) -> list[psutil.Process]:
    """The processes that have one of the files open."""
    wanted, found = set(map(str, files)), []
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it has just ended
            if wanted & {file.path for file in process.open_files()}:
                found.append(process)
    return found


def train(
    base: Path, place: Path, *changes: str, processes: int = 2, mishap: str = "", interpreters: bool = False
) -> Ended:
    """``fintune train --processes`` on the tiny model; ``interpreters`` starts programs instead of forks."""
    command = ["train", "quickstart", f"model.base={base}", *QUICK, *SMALL, *changes, "--output-dir", str(place), "-q"]
    command += ["--processes", str(processes)] if processes > 1 else []
    if not interpreters:
        return fork_command(command, place, processes, FINTUNE_TEST_MISHAP=mishap)
    ended = start_command(["-m", "tests.training.rank_child", *command], FINTUNE_TEST_MISHAP=mishap)
    left = [one for one in psutil.process_iter(["cmdline"]) if str(place) in (one.info["cmdline"] or ())]
    assert not left, "processes are left behind"
    return ended


def losses(place: Path) -> list[float]:
    rows = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def adapter(place: Path) -> dict:
    return load_file(place / "adapter" / "adapter_model.safetensors")
