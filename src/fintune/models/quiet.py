"""Keeps transformers and bitsandbytes to what was asked: no progress bars, no kernels fetched from the hub."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Switches transformers' progress bars off inside the block."""
    from transformers.utils import logging

    hf_logging: Any = logging
    enabled = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            hf_logging.enable_progress_bar()


@contextmanager
def no_gguf_progress_bar() -> Iterator[None]:
    """Silences the bar of transformers' GGUF reader, which does not follow the setting of its other bars."""
    import transformers.modeling_gguf_pytorch_utils as library

    reader: Any = library
    bar = getattr(reader, "tqdm", None)
    if bar is None:
        yield
        return
    reader.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        reader.tqdm = bar


def fetched_kernels_allowed() -> bool:
    """Whether the user asked for kernels from the hub by setting ``USE_HUB_KERNELS`` to a true value."""
    return os.environ.get("USE_HUB_KERNELS", "").upper() in {"1", "ON", "YES", "TRUE"}


def forbid_fetched_kernels() -> None:
    """Makes transformers ignore the ``kernels`` package, which downloads compiled code, unless the user asked for it.

    transformers reads ``USE_HUB_KERNELS`` once, at import, and takes an unset variable for yes.
    """
    if fetched_kernels_allowed():
        return
    os.environ["USE_HUB_KERNELS"] = "NO"
    hub_kernels: Any = sys.modules.get("transformers.integrations.hub_kernels")
    if hub_kernels is not None and hasattr(hub_kernels, "_kernels_enabled"):
        hub_kernels._kernels_enabled = False


def import_bitsandbytes() -> None:
    """Imports bitsandbytes without letting it download a kernel.

    On CPUs with AVX512-BF16 it fetches ``kernels-community/quantization-bitsandbytes`` while being imported, whenever
    the ``kernels`` package is installed. Hiding that package for the moment makes it keep its built-in kernel.
    """
    if "bitsandbytes" in sys.modules or fetched_kernels_allowed():
        import bitsandbytes  # noqa: F401

        return
    missing = object()
    before = sys.modules.get("kernels", missing)
    backend_log = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level = backend_log.level
    sys.modules["kernels"] = None  # type: ignore[assignment]
    backend_log.setLevel(logging.ERROR)  # it warns about the fetch that was refused on purpose
    try:
        import bitsandbytes  # noqa: F401
    finally:
        backend_log.setLevel(level)
        if before is missing:
            del sys.modules["kernels"]
        else:
            sys.modules["kernels"] = before  # type: ignore[assignment]
