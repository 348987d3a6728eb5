"""Steps packed ahead of the GPU, by processes of their own: Python packing in a thread would hold up the launches.

Enters: a ``StepDataset`` and the number of the step that is wanted. Leaves: that step, item for item what the data set
gives, its batches on the device after one copy. Whatever goes wrong beside, the step is packed here instead, so that
an error is raised where and as it would have been.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections import deque
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from fintune.training.flat_step import FlatStep, flatten, read_data_set, unflatten, write_data_set
from fintune.training.steps import StepDataset
from fintune.trees.plan import Step
from fintune.trees.stored import StoredSamples, store_samples

log = logging.getLogger(__name__)

DEPTH = 4  # steps asked for beyond the one that is computed
WORKERS = 2
_PIPE_BYTES = 2**20  # a whole step fits, so that a worker need not wait for its reader
_START = "import sys; from fintune.training.ahead import serve; serve(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])"


class StepsAhead:
    """Gives the steps of a run, in whatever order they are asked for, best one after the other.

    Args:
        steps: the data set of steps; its ``tokens_per_batch`` may shrink meanwhile.
        device: where batches belong; elsewhere than on a GPU nothing is moved.
        workers: processes that pack; None chooses: some for a GPU, none for the CPU, which they would only slow down.
    """

    def __init__(self, steps: StepDataset, device: torch.device, workers: int | None = None) -> None:
        self.steps = steps
        self.device = device
        self.n_workers = (WORKERS if device.type == "cuda" else 0) if workers is None else workers
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._workers: list[_Worker] = []
        self._prepared: Step | None = None
        self._asked_until = 0

    def prepare(self, number: int) -> None:
        """Gets a step now, while the device is busy, that ``take`` will be asked for next; only where that helps."""
        if self.device.type == "cuda" and number < len(self.steps):
            self._prepared = self._get(number)

    def take(self, number: int) -> Step:
        """Step ``number``, with its batches on the device."""
        prepared, self._prepared = self._prepared, None
        return prepared if prepared is not None and prepared.number == number else self._get(number)

    def close(self) -> None:
        """Ends the workers."""
        for worker in self._workers:
            worker.close()
        self._workers, self._prepared = [], None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _get(self, number: int) -> Step:
        flat = self._from_workers(number) if self.n_workers else None
        if flat is None:
            step = self.steps[number]
            if self.device.type != "cuda":
                return step
            flat = flatten(step)
            flat = FlatStep(flat.outline, flat.memory.pin_memory())
        return unflatten(flat, self.device)

    def _from_workers(self, number: int) -> FlatStep | None:
        """What a worker has packed; None where it was not asked for, or has failed."""
        try:
            if not self._workers:
                self._start()
            if not all(worker.is_ready() for worker in self._workers):
                return None
            # What is asked for before it is waited for keeps the workers busy meanwhile.
            self._ask(number + 1, min(number + 1 + DEPTH, len(self.steps)))
            return self._workers[number % self.n_workers].receive(number, pinned=self.device.type == "cuda")
        except (OSError, EOFError) as exc:
            log.warning("Steps are packed as they are needed from here on; packing ahead has failed (%r).", exc)
            self.n_workers = 0
            self.close()
            return None

    def _ask(self, first: int, stop: int) -> None:
        if not first <= self._asked_until <= stop:  # not the step after the last one
            self._asked_until = first
        for number in range(self._asked_until, stop):
            self._workers[number % self.n_workers].ask(number, self.steps.tokens_per_batch)
        self._asked_until = stop

    def _start(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="fintune-steps-")
        file = Path(self._folder.name) / "steps.json"
        samples = self.steps.samples
        if not isinstance(samples, StoredSamples):
            samples = store_samples(samples, Path(self._folder.name) / "samples")
        write_data_set(self.steps, samples, file)
        for _ in range(self.n_workers):
            self._workers.append(_Worker(file))


class _Worker:
    """One process and what it was asked for.

    It is started as a program of its own: a fork would inherit the threads' locks and the CUDA context, and
    ``multiprocessing`` would run a script that calls fintune without a main guard once more.
    """

    def __init__(self, file: Path) -> None:
        requests, self._requests = _pipe()
        self._replies, replies = _pipe()
        handles = (requests.fileno(), replies.fileno())
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, *map(str, handles), str(file)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=handles,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the trainer, which goes on to the end of its step
        )
        requests.close()
        replies.close()
        self._asked: deque[int] = deque()
        self._said_ready = False

    def is_ready(self) -> bool:
        """Whether it has loaded its libraries; asking does not wait."""
        if not self._said_ready and self._replies.poll():
            self._replies.recv_bytes()
            self._said_ready = True
        return self._said_ready

    def ask(self, number: int, budget: int) -> None:
        """Wants a step, packed for a budget."""
        self._requests.send_bytes(json.dumps([number, budget]).encode())
        self._asked.append(number)

    def receive(self, number: int, *, pinned: bool) -> FlatStep | None:
        """Waits for a step; None when it was not asked for, or could not be packed."""
        if number not in self._asked:
            return None
        while True:  # steps that were asked for, but not taken, come first
            came = self._asked.popleft()
            outline = self._replies.recv_bytes()
            size = json.loads(self._replies.recv_bytes())
            memory = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
            if size:
                self._replies.recv_bytes_into(memory.numpy())
            if came == number:
                return FlatStep(outline, memory) if outline else None

    def close(self) -> None:
        """Ends the process; it ends by itself when its pipes do, also when this process is killed."""
        self._requests.close()
        self._replies.close()
        try:
            self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _pipe() -> tuple[Connection, Connection]:
    """Reading and writing end of a pipe that holds a whole step, where the system allows it."""
    reader, writer = os.pipe()
    try:
        import fcntl

        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    except (ImportError, AttributeError, OSError):
        pass  # slower, but right
    return Connection(reader, writable=False), Connection(writer, readable=False)


def serve(requests_handle: int, replies_handle: int, file: str) -> None:
    """What a worker does: packs each step it is asked for, until nobody asks any more."""
    requests, replies = Connection(requests_handle, writable=False), Connection(replies_handle, readable=False)
    torch.set_num_threads(1)
    steps = read_data_set(Path(file))
    try:
        replies.send_bytes(b"ready")
        while True:
            number, steps.tokens_per_batch = json.loads(requests.recv_bytes())
            _reply(replies, steps, number)
    except (EOFError, BrokenPipeError):
        return


def _reply(replies: Connection, steps: StepDataset, number: int) -> None:
    try:
        flat = flatten(steps[number])
    except Exception:  # the trainer packs the step once more, and meets the error where it can be told
        replies.send_bytes(b"")
        replies.send_bytes(b"0")
        return
    replies.send_bytes(flat.outline)
    replies.send_bytes(str(len(flat.memory)).encode())
    if len(flat.memory):
        replies.send_bytes(flat.memory.numpy().data)
