"""What a run ran on: versions of Python and libraries, platform, processor and GPU."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

LIBRARIES = ("fintune", "torch", "transformers", "peft", "accelerate", "bitsandbytes", "datasets", "scikit-learn")


def describe_environment() -> dict[str, Any]:
    """Versions and hardware, for environment.json and bug reports; nothing that names a person or a path."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu_threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "gpus": gpus,
        "cuda": torch.version.cuda,
        "libraries": {name: installed for name in LIBRARIES if (installed := library_version(name))},
    }


def library_version(name: str) -> str | None:
    """The installed version, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
