"""How PyTorch lays out memory on CUDA devices, settled before it reads its variables.

Enters: the environment. Leaves: ``PYTORCH_CUDA_ALLOC_CONF``, unless the user has set it or its newer name.
"""

from __future__ import annotations

import os
import sys

NAMES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")


def segments_grow() -> bool:
    """Whether freed memory serves tensors of any size; where it does not, much more is reserved than is used."""
    return any("expandable_segments:True" in os.environ.get(name, "") for name in NAMES)


def settle_cuda_memory() -> None:
    """Lets segments grow: freed memory then serves tensors of other sizes, where gigabytes lay idle between them.

    Called when fintune is imported. Without effect where a program has used a CUDA device before; PyTorch has it for
    Linux only.
    """
    if sys.platform == "linux" and not any(name in os.environ for name in NAMES):
        os.environ[NAMES[0]] = "expandable_segments:True"
