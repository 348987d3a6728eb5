"""Collections in processes that may be killed: ``python forked_collections.py``, then one JSON line for each on stdin.

The imports are paid once: each line forks a process that collects; its id is printed when it starts, and how it ended
when it has. With ``die_at_write`` it kills itself while it writes its n-th file: half of it is written, with ``whole``
all, and nothing renamed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from fintune.sources.collect import Asked, collect_into, eodhd, finnhub, span_of, yahoo
from fintune.sources.collect.requesting import Clock, Patience

finnhub.LIMITS = eodhd.LIMITS = yahoo.LIMITS = ()  # the local server sets no pace, and nobody wants to wait for it


def collect(order):
    asked = Asked(
        names=tuple(order["names"]),
        span=span_of(order["first"], order["last"], Clock().now().date()),
        news_providers=("finnhub", "eodhd"),
        base_urls=order["base_urls"],
    )
    patience = Patience(timeout_s=0.3, first_wait_s=0.002, longest_wait_s=0.01)
    found = collect_into(Path(order["folder"]), asked, patience=patience)
    print(json.dumps({"rows": found.rows, "failed": found.failed, "requests": found.requests}), flush=True)


def die_at(n_th, whole):
    flush, written = os.fsync, 0

    def dies(descriptor):
        nonlocal written
        flush(descriptor)
        written += 1
        if written == n_th:
            os.truncate(descriptor, os.fstat(descriptor).st_size // (1 if whole else 2))
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = dies


for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if child == 0:
        if order.get("die_at_write"):
            die_at(order["die_at_write"], order.get("whole", False))
        try:
            collect(order)
        except BaseException as error:
            print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)
            os._exit(1)
        os._exit(0)
    print(json.dumps({"pid": child}), flush=True)
    _, status = os.waitpid(child, 0)
    print(json.dumps({"ended": os.waitstatus_to_exitcode(status)}), flush=True)
