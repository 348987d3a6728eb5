"""The processes of one run together: they meet, wait for each other, agree, and end together when one of them fails.

Enters: what the launcher said, in environment variables. Leaves: ``Ranks``. What travels is numbers and JSON. A run of
one process gets a ``Ranks`` that has nobody to wait for.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import _get_default_store
from torch.distributed.rendezvous import rendezvous

from fintune.models.foreign import first_line
from fintune.schema.errors import FintuneError, RunError, SaidElsewhere
from fintune.schema.processes import Processes, slurm_variables, this_process
from fintune.training.watch import AGAIN, Watch

log = logging.getLogger(__name__)

MEETING = timedelta(minutes=10)
WAITING = timedelta(days=7)  # while the first process evaluates; that another has died is noticed otherwise
_OF_COLLECTIVES = ("gloo", "Gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
BUCKET_NUMBERS = 64 * 2**20  # gradients that travel in one piece


@dataclass
class Ranks:
    """This process and its connection to the others.

    Attributes:
        me: which one this is.
        device: the kind of device whose tensors are added up: cpu or cuda.
        watch: what notices that another has failed; None without others.
    """

    me: Processes = Processes()
    device: str = "cpu"
    watch: Watch | None = None
    _waiting: Any = None

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files."""
        return self.me.is_first

    @property
    def world(self) -> int:
        """How many processes there are."""
        return self.me.world

    def wait(self) -> None:
        """Returns once all processes have come here."""
        if self.world > 1:
            with self._lost_in_words():
                dist.barrier(group=self._waiting)

    @contextmanager
    def first_goes_first(self) -> Iterator[None]:
        """The first process runs the block, then the others do, who find in a cache what it has made."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()
        self.wait()

    def from_first(self, value: Any) -> Any:
        """What the first process gave, in all of them; anything that JSON can hold."""
        if self.world == 1:
            return value
        content = json.dumps(value).encode() if self.is_first else b""
        size = torch.tensor([len(content)])
        with self._lost_in_words():
            dist.broadcast(size, 0, group=self._waiting)
            piece = torch.frombuffer(bytearray(content), dtype=torch.uint8) if self.is_first else torch.empty(0)
            piece = piece if self.is_first else torch.empty(int(size), dtype=torch.uint8)
            dist.broadcast(piece, 0, group=self._waiting)
        return json.loads(piece.numpy().tobytes())

    def require_same(self, name: str, value: Any) -> None:
        """Refuses to go on with processes that see different things.

        Raises:
            RunError: another process has another value than the first.
        """
        if (first := self.from_first(value)) != json.loads(json.dumps(value)):
            raise RunError(
                f"Process {self.me.rank} of {self.world} sees another {name} than the first: {value}, not {first}.",
                "Give all machines the same files, caches and library versions, and a shared run directory.",
            )

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each tensor by its sum over the processes, bit for bit the same in all of them."""
        if self.world == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            with self._lost_in_words():
                dist.all_reduce(flat)
            parts = torch.split(flat, [tensor.numel() for tensor in bucket])
            torch._foreach_copy_(list(bucket), [part.view_as(own) for part, own in zip(parts, bucket, strict=True)])

    @contextmanager
    def _lost_in_words(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as exc:
            if isinstance(exc, torch.OutOfMemoryError) or _is_own(exc):
                raise
            raise _lost(self.world, exc) from exc


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one type that travel together."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (size + tensor.numel() > BUCKET_NUMBERS or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket


def _lost(world: int, exc: RuntimeError) -> RunError:
    reason = first_line(exc)
    return RunError(f"Another of the {world} processes has gone, or cannot be reached ({reason}).", AGAIN)


def _is_own(error: RuntimeError) -> bool:
    """Whether an earlier computation of this process's GPU has failed, which any later call may be the one to say."""
    return str(error).startswith("CUDA error")


def _is_of_collective(error: BaseException) -> bool:
    """Whether it comes from a collective that FSDP or DeepSpeed has called."""
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _OF_COLLECTIVES)


@contextmanager
def joined() -> Iterator[Ranks]:
    """Meets the other processes of the run, if the launcher says there are any, and ends with them.

    Raises:
        RunError: they do not find one another, or one of them has gone.
        SaidElsewhere: the block failed in another process first, which says why.
    """
    if (me := this_process()).world == 1:
        yield Ranks(me)
        return
    store, waiting, device = _meet(me)
    watch = Watch(store.clone(), me)
    watch.start()
    ranks = Ranks(me, device, watch, waiting)
    try:
        yield ranks
        ranks.wait()
    except BaseException as error:
        said = str(error) if isinstance(error, FintuneError) else type(error).__name__
        atexit.unregister(_leave)  # it may wait for processes that are gone
        follows = _is_of_collective(error)
        if watch.fail(said, wait_for_cause=follows or isinstance(error.__cause__, RuntimeError)):
            if follows and isinstance(error, RuntimeError):
                raise _lost(me.world, error) from error
            raise
        raise SaidElsewhere("Another process of the run has failed.") from error
    watch.stop()


@cache
def _meet(me: Processes) -> tuple[Any, Any, str]:
    """Store, group for waiting and kind of device; met once, though a script may train several times."""
    os.environ |= {} if "WORLD_SIZE" in os.environ else slurm_variables(os.environ)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # else accelerate chooses, and says so in each process
    device = _take_device(me)
    try:
        if dist.is_initialized():  # by the script that calls us
            store = _get_default_store()
        else:
            store, _, _ = next(rendezvous("env://", timeout=MEETING))
            backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
            dist.init_process_group(backend, store=store, rank=me.rank, world_size=me.world, timeout=WAITING)
            atexit.register(_leave)
        waiting = dist.new_group(backend="gloo", timeout=WAITING)
    except (RuntimeError, ValueError) as exc:
        place = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
        raise RunError(
            f"The {me.world} processes of the run did not find one another at {place} ({first_line(exc)}).",
            "Check that all were started, and that the machines reach each other (GLOO_SOCKET_IFNAME and "
            "NCCL_SOCKET_IFNAME name the network to take).",
        ) from exc
    return store, waiting, device


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _take_device(me: Processes) -> str:
    """Makes GPU number ``local_rank`` this process's own; the CPU where there are none."""
    if not torch.cuda.is_available():
        return "cpu"
    if me.local_rank >= torch.cuda.device_count():
        raise RunError(
            f"Process {me.local_rank} of this machine has no GPU: there are {torch.cuda.device_count()}.",
            "Start one process per GPU, or hide the GPUs with CUDA_VISIBLE_DEVICES= to train on the CPU.",
        )
    torch.cuda.set_device(me.local_rank)
    return "cuda"


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seeds the dropout of one rank in one step of a run of several processes, so that resuming needs no states."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)
