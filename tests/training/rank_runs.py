"""Runs of several processes for tests: started, bounded in time, and with nothing left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from safetensors.torch import load_file

from tests.runs import QUICK

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


def start_command(program: list[str], **environment: str) -> Ended:
    """Runs a Python program with the tests' modules at hand; kills it and all it started when it takes too long."""
    kept = {name: value for name, value in os.environ.items() if name not in ("WORLD_SIZE", "RANK", "LOCAL_RANK")}
    places = [str(ROOT / "src"), str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    kept |= {"PYTHONPATH": os.pathsep.join(filter(None, places)), "OMP_NUM_THREADS": "1"}
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=kept | environment,
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


def train(base: Path, place: Path, *changes: str, processes: int = 2, mishap: str = "") -> Ended:
    """``fintune train --processes`` on the tiny model."""
    command = ["train", "quickstart", f"model.base={base}", *QUICK, *SMALL, *changes, "--output-dir", str(place), "-q"]
    count = ["--processes", str(processes)] if processes > 1 else []
    ended = start_command(["-m", "tests.training.rank_child", *command, *count], FINTUNE_TEST_MISHAP=mishap)
    left = [one for one in psutil.process_iter(["cmdline"]) if str(place) in (one.info["cmdline"] or ())]
    assert not left, "processes are left behind"
    return ended


def losses(place: Path) -> list[float]:
    rows = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def adapter(place: Path) -> dict:
    return load_file(place / "adapter" / "adapter_model.safetensors")
