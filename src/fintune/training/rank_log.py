"""What each of several processes says while it trains, in a file of its own; one process by itself needs none."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from fintune.schema.run_directory import RunDirectory, writing
from fintune.training.ranks import Ranks


@contextmanager
def rank_logged(run: RunDirectory, ranks: Ranks) -> Iterator[None]:
    """Inside the block, fintune's messages also go to ``logs/rank-N.log`` of the run, errors included."""
    if ranks.world == 1:
        yield
        return
    file = run.rank_log(ranks.me.rank)
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    top = logging.getLogger("fintune")
    top.addHandler(handler)
    try:
        yield
    except BaseException as error:
        handler.handle(logging.LogRecord("fintune", logging.ERROR, __file__, 0, "%r", (error,), None))
        raise
    finally:
        top.removeHandler(handler)
        handler.close()
