"""Runs of a command on some of a machine's GPUs: which GPUs are free, how a run ended, what it wrote.

Enters: a machine, a folder, a tokenizer. Leaves: numbers of GPUs, ``Ended``, rows of metrics.jsonl, dense text.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peer_runs.settings import SEED


@dataclass(frozen=True)
class Ended:
    """How a run ended: its exit code (None: stopped for its time), its folder, its log, seconds."""

    code: int | None
    place: Path
    log: Path
    seconds: float

    @property
    def failure(self) -> str | None:
        """The last lines of the log of a run that did not succeed."""
        if self.code == 0:
            return None
        how = "stopped for its time" if self.code is None else f"exit {self.code}"
        return f"{how}: {last_lines(self.log)}"


class Devices:
    """GPUs lent to runs in the order in which they ask; on the CPU, as many places."""

    def __init__(self, count: int, share: int) -> None:
        self.loads, self.share = [0] * count, share
        self._turn, self._changed = threading.Lock(), threading.Condition()

    @contextmanager
    def lent(self, count: int, *, alone: bool = False) -> Iterator[list[int]]:
        """``count`` different GPUs, those with the fewest runs."""
        load = self.share if alone else 1
        with self._turn, self._changed:
            self._changed.wait_for(lambda: len(self._free(load)) >= count)
            mine = self._free(load)[:count]
            self._add(mine, load)
        try:
            yield mine
        finally:
            with self._changed:
                self._add(mine, -load)
                self._changed.notify_all()

    def _free(self, load: int) -> list[int]:
        numbers = sorted(range(len(self.loads)), key=lambda number: self.loads[number])
        return [number for number in numbers if self.loads[number] + load <= self.share]

    def _add(self, numbers: Sequence[int], load: int) -> None:
        for number in numbers:
            self.loads[number] += load


def gpus_of_machine() -> tuple[int, list[str]]:
    """How many GPUs there are, and their names; asked without taking one."""
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
    names = [line.split("(")[0].strip() for line in listed.splitlines() if line.startswith("GPU")]
    return len(names), names


def dense_text(base: Path, length: int, file: Path, documents: int = 640) -> Path:
    """Documents of random words that share nothing, each a few tokens short of ``length``: one sample a document."""
    from tokenizers import Tokenizer

    if file.is_file():
        return file
    draw = random.Random(SEED)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [" " + "".join(draw.choices(letters, k=draw.randint(2, 7))) for _ in range(4000)]
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    sizes = [len(one.ids) for one in tokenizer.encode_batch(words, add_special_tokens=False)]
    with file.open("w", encoding="utf-8") as stream:
        for _ in range(documents):
            text, used = "", 0
            while True:
                chosen = draw.randrange(len(words))
                if used + sizes[chosen] > length - 8:
                    break
                text, used = text + words[chosen], used + sizes[chosen]
            stream.write(json.dumps({"text": text.strip()}) + "\n")
    return file


def history(place: Path) -> list[dict[str, Any]]:
    """What metrics.jsonl holds so far."""
    file = place / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def ranks_of(launcher: int) -> dict[int, int]:
    """Process numbers by rank of what a launcher has started."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            variables = (folder / "environ").read_bytes().split(b"\0") if parent == launcher else []
        except (OSError, IndexError, ValueError):  # it has just ended
            continue
        found |= {int(v[5:]): int(folder.name) for v in variables if v.startswith(b"RANK=")}
    return found


def kill_process(pid: int) -> None:
    """Kills a process that may have ended."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def last_lines(log: Path, count: int = 12) -> str:
    """What a log ended with, without progress bars."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    lines = [line for line in lines if line and "━" not in line]
    return " | ".join(lines[-count:])[-1500:] or "it wrote nothing"
