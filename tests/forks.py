"""Child processes as forks of one server that has the libraries loaded: a second each instead of ten."""

import multiprocessing
import sys
from multiprocessing.context import ForkServerContext
from pathlib import Path


def forks() -> ForkServerContext:
    """The context; a process has one server, so whoever asks first loads for all."""
    root = str(Path(__file__).parents[1])
    if root not in sys.path:
        sys.path.insert(0, root)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.kill_preload"])
    return context
