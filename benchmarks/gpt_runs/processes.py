"""Processes that hold a model each: started, asked, and ended when they take too long.

Enters: a job and commands. Leaves: answers, or why there are none.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpt_runs.settings import Job
from gpt_runs.worker import MARK


def visible_device(place: str) -> str:
    """The card at a place of the inherited CUDA_VISIBLE_DEVICES; without such a list, the place itself.

    Raises:
        ValueError: the list is shorter.
    """
    inherited = os.environ.get("CUDA_VISIBLE_DEVICES")
    if inherited is None:
        return place
    cards = [card.strip() for card in inherited.split(",") if card.strip()]
    if int(place) >= len(cards):
        raise ValueError(f"CUDA_VISIBLE_DEVICES={inherited} has no place {place}; --devices counts its cards from 0")
    return cards[int(place)]


class Process:
    """One worker in a process group of its own.

    Args:
        script: the benchmark, which runs ``worker JOB``.
        job: what it runs.
        gpu: place of the device it sees among those that this process sees; None on the CPU.
        caches: for compiled code, kept between processes of the same variant and size.
    """

    def __init__(self, script: Path, job: Job, gpu: str | None, caches: Path) -> None:
        folder = Path(job.folder)
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "job.json"
        file.write_text(json.dumps(asdict(job)), encoding="utf-8")
        self.log = folder / "log.txt"
        environment = os.environ | {
            "PYTHONUNBUFFERED": "1",
            "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
            "TRITON_CACHE_DIR": str(caches / "triton"),
            "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",  # for everyone alike
        }
        environment |= {} if gpu is None else {"CUDA_VISIBLE_DEVICES": visible_device(gpu)}
        self._stream = self.log.open("a", encoding="utf-8")
        self._process = subprocess.Popen(
            [sys.executable, str(script.absolute()), "worker", str(file.absolute())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stream,
            text=True,
            env=environment,
            start_new_session=True,
        )
        self._answers: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def ask(self, do: str, timeout: float, **arguments: Any) -> dict[str, Any]:
        """The answer, or ``{"error": ...}``, after which the process is gone."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._answers.get(timeout=timeout)
        except queue.Empty:
            self.end()
            return {"error": f"{do}: stopped after {timeout:g} s"}
        except OSError:
            line = None
        if line is None:
            self.end()
            return {"error": f"{do}: the process ended; {self._last_words()}"}
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            self.end()
        return answer

    def end(self) -> None:
        """Ends the process group at once."""
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._stream.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                self._answers.put(line[len(MARK) :])
        self._answers.put(None)

    def _last_words(self) -> str:
        lines = [line for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return lines[-1][:300] if lines else "it said nothing"
