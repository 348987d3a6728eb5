"""What the last bits of a run depend on beside its recipe: device, precision, library, threads, batching.

Enters: the model as it trains. Leaves: a few words a checkpoint keeps, and on resume what has changed since.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fintune.inference.forward import EdgeModel
from fintune.schema.recipe import Packing, TrainingSection


def describe_numerics(
    model: EdgeModel, training: TrainingSection, packing: Packing, processes: int = 1
) -> dict[str, str]:
    """Names and values, all of them words."""
    words = {
        "device": _device_name(model.device),
        "dtype": str(model.compute_dtype).removeprefix("torch."),
        "torch": str(torch.__version__),
        "attention": model.backend,
        "packing": packing,
        "loss": "from whole logits" if model.output_head() is None else "by chunks",
        "tokens_per_batch": str(training.tokens_per_batch),
        "gradient_checkpointing": str(training.gradient_checkpointing).lower(),
        "compile": str(training.compile).lower(),
        "processes": str(processes),
    }
    if model.device.type == "cpu":
        words["threads"] = str(torch.get_num_threads())
    return words


def changed_numerics(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What differs, such as ``dtype float32 -> bfloat16``; empty when nothing does or nothing was noted before."""
    return ", ".join(
        f"{name} {before[name]} -> {now[name]}" for name in now if before.get(name, now[name]) != now[name]
    )


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()}" if device.type == "cpu" else device.type
