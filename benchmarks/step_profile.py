"""Claim: where the time of a training step goes, kernel by kernel, as the profiler of PyTorch sees it.

Takes dense steps on random weights, as peers.py does, times them without the profiler, then sums the time of each
kernel over a few steps with it. Passes are not recorded as CUDA graphs, so that kernels keep their names.

    python benchmarks/step_profile.py --shape 8b --quantization fp8 --memory ready --work-dir /tmp/peers --json fp8.json
    python benchmarks/step_profile.py --shape tiny --device cpu --rows 2 --length 32    # a smoke test
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import torch
from peer_runs.data import random_tokens
from peer_runs.fintune_loop import fintune_step, whole
from peer_runs.settings import LINEAR_LAYERS
from peer_runs.shapes import SHAPES, write_checkpoint
from torch.profiler import ProfilerActivity, profile

from fintune.environment import describe_environment
from fintune.models.fast_layers import Memory

# The first whose words are in a kernel's name. What is left are PyTorch's own small kernels.
KINDS = {
    "attention": ("flash", "fmha", "cudnn", "attention"),
    "products": ("gemm", "nvjet", "cutlass", "xmma", "splitk", "cublas"),
    "copies": ("memcpy", "memset"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="8b")
    parser.add_argument("--quantization", default="nf4")
    parser.add_argument("--memory", choices=get_args(Memory), default="ready")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=4, help="timed, then as many profiled; three before are not")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--work-dir", type=Path, default=Path(tempfile.gettempdir()) / "peers")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    device, folder = torch.device(arguments.device), arguments.work_dir / f"model-{arguments.shape}"
    write_checkpoint(SHAPES[arguments.shape], folder, device, None)
    ready = fintune_step(
        str(folder),
        device,
        arguments.quantization,
        targets=LINEAR_LAYERS,
        tokens_at_once=arguments.rows * arguments.length,
        memory=arguments.memory,
        graphs=False,
    )
    vocabulary = SHAPES[arguments.shape].vocabulary

    def step(number: int) -> None:
        ready.step([whole(row) for row in random_tokens(number, arguments.rows, arguments.length, vocabulary)])

    for number in range(3):
        step(number)
    step_ms = timed(step, arguments.steps, device)
    kernels = profiled(step, arguments.steps, device)
    kinds: dict[str, float] = defaultdict(float)
    for name, (ms, _) in kernels.items():
        kinds[kind_of(name)] += ms
    busy = sum(kinds.values())
    print(f"{arguments.shape} {arguments.quantization} {arguments.memory}: {step_ms:.1f} ms a step, kernels {busy:.1f}")
    for name, ms in sorted(kinds.items(), key=lambda item: -item[1]):
        print(f"  {ms:8.2f} ms  {name}")
    for name, (ms, calls) in sorted(kernels.items(), key=lambda item: -item[1][0])[:40]:
        print(f"  {ms:8.2f} ms {calls:7.1f} x  {name[:110]}")
    if arguments.json:
        found: dict[str, Any] = {
            "environment": describe_environment(),
            "setting": {name: str(value) for name, value in vars(arguments).items()},
            "step_ms": step_ms,
            "kinds_ms": kinds,
            "kernels": {name: {"ms": ms, "calls": calls} for name, (ms, calls) in kernels.items()},
        }
        arguments.json.write_text(json.dumps(found, indent=2), encoding="utf-8")


def timed(step: Callable[[int], None], steps: int, device: torch.device) -> float:
    """Milliseconds of a step."""
    wait(device)
    started = time.perf_counter()
    for number in range(steps):
        step(number)
    wait(device)
    return 1000 * (time.perf_counter() - started) / steps


def profiled(step: Callable[[int], None], steps: int, device: torch.device) -> dict[str, tuple[float, float]]:
    """Milliseconds and calls a step of each kernel; on the CPU of each operator."""
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as seen:
        for number in range(steps):
            step(number)
        wait(device)
    found: dict[str, tuple[float, float]] = {}
    for event in seen.key_averages():
        kind = str(event.device_type)
        microseconds = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if microseconds and ("CUDA" in kind or not on_gpu):
            found[event.key] = (microseconds / 1000 / steps, event.count / steps)
    return found


def kind_of(name: str) -> str:
    """The kind of a kernel, by its name; our own carry their function's."""
    low = name.lower()
    for kind, words in KINDS.items():
        if any(word in low for word in words):
            return kind
    return "PyTorch's elementwise" if "at::" in low or "void" in low else f"own: {name.split('(')[0][:60]}"


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
