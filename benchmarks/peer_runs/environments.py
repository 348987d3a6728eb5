"""The surroundings of a subprocess that is measured: no network, caches of its own, and what its log ended with.

Enters: a folder. Leaves: environment variables; the last words of a log.
"""

from __future__ import annotations

import os
from pathlib import Path


def child_environment(caches: Path) -> dict[str, str]:
    """No network, no statistics, and kernels compiled anew unless ``caches`` holds them."""
    caches = caches.absolute()
    paths = [str(Path(path).absolute()) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "UNSLOTH_DISABLE_STATISTICS": "1",
        "UNSLOTH_COMPILE_LOCATION": str(caches / "unsloth_compiled_cache"),
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "TRITON_CACHE_DIR": str(caches / "triton"),
    }


def last_words(log: Path) -> str:
    """The last line that a failed process wrote, which is its error."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it wrote nothing"
