"""The command line with a mishap built in: what FINTUNE_TEST_MISHAP names, as rank:step:what, happens there."""

from __future__ import annotations

import os
import signal
import sys

from fintune import launch
from fintune.cli import main
from fintune.schema.errors import RunError
from fintune.schema.processes import this_process

launch._PROGRAM = ("-m", "tests.training.rank_child")


def mishap(what: str) -> None:
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "interrupt":
        os.kill(os.getpid(), signal.SIGTERM)
    if what == "error":
        raise RunError("The planted error came.", "Remove it.")
    if what == "memory":
        raise MemoryError("planted")


def plant(rank: int, step: int, what: str) -> None:
    if rank != this_process().rank:
        return
    from fintune.training.trainer import TreeTrainer

    train_step = TreeTrainer.training_step

    def stumbles(self, *arguments):
        if self.state.global_step == step:
            mishap(what)
        return train_step(self, *arguments)

    TreeTrainer.training_step = stumbles


if __name__ == "__main__":
    if planted := os.environ.get("FINTUNE_TEST_MISHAP"):
        rank, step, what = planted.split(":")
        plant(int(rank), int(step), what)
    sys.exit(main())
