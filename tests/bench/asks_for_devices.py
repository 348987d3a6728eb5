"""Like a library that asks CUDA for its devices as soon as it is imported: what it saw then holds for good."""

from __future__ import annotations

import os
import sys

SEEN = os.environ.get("CUDA_VISIBLE_DEVICES")
CAME_FIRST = sorted({"bitsandbytes", "fintune.bench.worker", "peft"} & set(sys.modules))


class Given:
    """An argument whose type lies here: to read it is to import this module."""


def devices_seen(given: Given) -> tuple[str | None, list[str]]:
    """The devices that were visible on import, and which libraries had been imported by then."""
    return SEEN, CAME_FIRST
