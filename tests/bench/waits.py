"""A variant that takes too long for the patience of whoever started it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any


def wait_long(job: Any, folder: str, size: Any) -> None:
    """Leaves its number in the folder, and waits."""
    Path(folder, "started").write_text(f"{os.getpid()}\n")
    time.sleep(120)
