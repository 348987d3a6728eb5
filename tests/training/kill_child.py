"""A run in a child process that says on a pipe what it is about to do, so that a parent can kill it there."""

from __future__ import annotations

import os
import time
from functools import wraps
from pathlib import Path


def announced(name, function, say, number=lambda *_: None):
    @wraps(function)
    def wrapper(*arguments, **options):
        about = number(*arguments)
        say(name, about)
        result = function(*arguments, **options)
        say(f"end of {name}", about)
        return result

    return wrapper


def start(pipe, base: str, place: str, cache: str, changes: tuple[str, ...], recipe="quickstart") -> None:
    """Runs the recipe with every phase announced as (name, step, time)."""
    os.environ["FINTUNE_CACHE"] = cache
    import torch

    from fintune import learning, measuring, session, staged
    from fintune.training import trainer as trainer_module
    from tests.runs import run

    torch.set_num_threads(1)

    def say(name, step):
        pipe.send((name, step, time.monotonic()))

    def step_of(trainer, *_):
        return trainer.state.global_step

    tree = trainer_module.TreeTrainer
    tree.training_step = announced("step", tree.training_step, say, step_of)
    tree._save_checkpoint = announced("saving", tree._save_checkpoint, say, step_of)
    tree.evaluate = announced("validating", tree.evaluate, say, step_of)
    session.Session.score = announced("scoring", session.Session.score, say)
    learning._save_result = announced("adapter", learning._save_result, say)
    staged.describe_adapter = announced("copying", staged.describe_adapter, say)
    measuring.write_records = announced("writing", measuring.write_records, say)
    say("start", None)
    run(Path(base), Path(place), *changes, recipe=recipe)
    say("finished", None)
    pipe.close()
