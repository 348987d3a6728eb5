"""Claim: `fintune estimate` foresees a step's peak memory within 10 % and its speed within 25 %.

Writes a checkpoint of each shape once, loads it under each quantisation and way to keep activations in a process of its
own, and takes dense steps, every token supervised, of each length. What was predicted from the configuration alone
stands beside what was measured. Peaks are of memory reserved, with the context of the device, and of plain passes, as
the memory of recorded ones is only taken where it is free; speeds are of recorded passes where training records any.

    python benchmarks/planner.py --shapes 1b 3b 8b --work-dir /tmp/peers --json planner.json
    python benchmarks/planner.py --shapes tiny --device cpu --lengths 32 --tokens 64   # a smoke test
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peer_runs.data import random_tokens
from peer_runs.fintune_loop import Prepared, fintune_step, whole
from peer_runs.recording import device_peak_bytes
from peer_runs.settings import ALPHA, LINEAR_LAYERS, RANK
from peer_runs.shapes import SHAPES

from fintune.environment import describe_environment
from fintune.schema.recipe import Recipe
from fintune.training.estimate import estimate_recipe

GIB = 2**30


@dataclass(frozen=True)
class Row:
    """One way to take a step: what was predicted of it, and what was measured."""

    shape: str
    quantization: str
    memory: str
    length: int
    tokens: int
    predicted_gib: float
    measured_gib: float
    allocated_gib: float
    predicted_tokens_per_s: float | None
    measured_tokens_per_s: float

    @property
    def memory_error(self) -> float:
        """Predicted over measured, less one."""
        return self.predicted_gib / self.measured_gib - 1

    @property
    def speed_error(self) -> float | None:
        """Likewise."""
        return (
            None
            if self.predicted_tokens_per_s is None
            else self.predicted_tokens_per_s / self.measured_tokens_per_s - 1
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=["1b", "3b", "8b"])
    parser.add_argument("--quantizations", nargs="+", default=["nf4", "fp8", "none"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[512, 2048, 8192])
    parser.add_argument("--policies", nargs="+", default=["ready", "keep", "recompute", "offload"])
    parser.add_argument("--tokens", type=int, default=8192, help="computed at once")
    parser.add_argument("--steps", type=int, default=4, help="timed, after two that are not")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--work-dir", type=Path, default=Path(tempfile.gettempdir()) / "peers")
    parser.add_argument("--tokenizer", type=Path, help="folder with tokenizer files; a tiny one when left out")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # one way, in this process
    arguments = parser.parse_args()
    if arguments.here:
        found = [asdict(row) for row in measured(arguments)]
        arguments.json.write_text(json.dumps(found), encoding="utf-8")
        return
    rows: list[Row] = []
    for way in ways(arguments):
        for row in measured_apart(arguments, way):
            rows.append(row)
            print(line(row), flush=True)
        if arguments.json:
            found = {"environment": describe_environment(), "rows": [asdict(row) for row in rows]}
            arguments.json.write_text(json.dumps(found, indent=2), encoding="utf-8")
    print(f"{len(rows)} ways; memory off by {spread([row.memory_error for row in rows])}; "
          f"speed by {spread([e for row in rows if (e := row.speed_error) is not None])}")  # fmt: skip


def ways(arguments: argparse.Namespace) -> Iterator[dict[str, list[str]]]:
    """What each process measures: a policy at the middle length, the quickest at all of them."""
    device = torch.device(arguments.device)
    middle = arguments.lengths[len(arguments.lengths) // 2]
    for shape in arguments.shapes:
        folder = arguments.work_dir / f"model-{shape}"
        write_apart(shape, arguments)
        for quantization in arguments.quantizations:
            known = predicted(folder, quantization, arguments.tokens, middle, device)
            for number, memory in enumerate(policy for policy in arguments.policies if policy in known):
                lengths = [middle] if number else arguments.lengths
                yield {
                    "--shapes": [shape],
                    "--quantizations": [quantization],
                    "--policies": [memory],
                    "--lengths": list(map(str, lengths)),
                }


def write_apart(shape: str, arguments: argparse.Namespace) -> None:
    """The checkpoint of a shape, if it is not there, by a process whose context does not stay on the device."""
    command = [sys.executable, str(Path(__file__).with_name("peers.py")), "checkpoint", "--shape", shape]
    command += ["--device", arguments.device, "--work-dir", str(arguments.work_dir.absolute())]
    command += ["--tokenizer", str(arguments.tokenizer.absolute())] if arguments.tokenizer else []
    subprocess.run(command, check=True)


def measured_apart(arguments: argparse.Namespace, way: dict[str, list[str]]) -> list[Row]:
    """The rows of one way, from a process of its own: what other ways leave behind in an allocator would count too."""
    file = arguments.work_dir / "planner-way.json"
    command = [sys.executable, str(Path(__file__).absolute()), "--here", "--json", str(file)]
    command += [word for name, values in way.items() for word in (name, *values)]
    command += ["--device", arguments.device, "--work-dir", str(arguments.work_dir)]
    command += ["--tokens", str(arguments.tokens), "--steps", str(arguments.steps)]
    subprocess.run(command, check=True)
    return [Row(**row) for row in json.loads(file.read_text(encoding="utf-8"))]


def measured(arguments: argparse.Namespace) -> Iterator[Row]:
    """One shape, quantisation and policy, at each length."""
    device = torch.device(arguments.device)
    (shape,), (quantization,), (memory,) = arguments.shapes, arguments.quantizations, arguments.policies
    folder = arguments.work_dir / f"model-{shape}"
    ready = fintune_step(
        str(folder), device, quantization, targets=LINEAR_LAYERS, tokens_at_once=arguments.tokens, graphs=False
    )
    for length in arguments.lengths:
        estimates = predicted(folder, quantization, arguments.tokens, length, device)
        peak_bytes, speed, ready.model.whole_layers = estimates[memory]
        peak, allocated, rate = measure(ready, memory, length, arguments, SHAPES[shape].vocabulary)
        yield Row(
            shape,
            quantization,
            memory,
            length,
            arguments.tokens,
            predicted_gib=peak_bytes / GIB,
            measured_gib=peak / GIB,
            allocated_gib=allocated / GIB,
            predicted_tokens_per_s=speed,
            measured_tokens_per_s=rate,
        )


def predicted(
    folder: Path, quantization: str, tokens: int, length: int, device: torch.device
) -> dict[str, tuple[int, float | None, int]]:
    """Peak bytes, tokens a second and whole layers of each way to keep activations, from the configuration alone."""
    recipe = Recipe.model_validate(
        {
            "name": "planned",
            "model": {"base": str(folder), "quantization": quantization, "dtype": "bfloat16"},
            "adapter": {"rank": RANK, "alpha": ALPHA, "targets": LINEAR_LAYERS},
            "data": {"tasks": [{"name": "tfns"}]},
            "training": {"tokens_per_batch": tokens, "max_length": length},
        }
    )
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    estimate = estimate_recipe(recipe, gpu=gpu, data=False)
    return {own.memory: (own.peak_bytes, own.distinct_tokens_per_second, own.whole_layers) for own in estimate.policies}


def measure(
    ready: Prepared, memory: Any, length: int, arguments: argparse.Namespace, vocabulary: int
) -> tuple[int, int, float]:
    """Peak bytes of the device, those of tensors among them, and tokens a second of dense steps."""
    on_gpu = arguments.device.startswith("cuda")
    ready.model.end_training()
    ready.model.memory = memory
    rows = arguments.tokens // length
    drawn = [[whole(row) for row in random_tokens(step, rows, length, vocabulary)] for step in range(2)]
    if on_gpu:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    ready.recorded = None
    for samples in drawn * 2:
        ready.step(samples)
    wait(on_gpu)
    peak = device_peak_bytes(on_gpu), torch.cuda.max_memory_allocated() if on_gpu else 0
    ready.record()
    for samples in drawn:  # the second time a size comes it is recorded
        ready.step(samples)
    wait(on_gpu)
    begun = time.perf_counter()
    for number in range(arguments.steps):
        ready.step(drawn[number % 2])
    wait(on_gpu)
    rate = arguments.steps * rows * length / (time.perf_counter() - begun)
    ready.recorded = None
    return *peak, rate


def wait(on_gpu: bool) -> None:
    if on_gpu:
        torch.cuda.synchronize()


def line(row: Row) -> str:
    speed = "" if row.predicted_tokens_per_s is None else f"{row.predicted_tokens_per_s:,.0f}"
    off = "" if row.speed_error is None else f"{row.speed_error:+.1%}"
    return (
        f"| {row.shape} {row.quantization} {row.memory} | {row.tokens // row.length} x {row.length} | "
        f"{row.predicted_gib:.2f} | {row.measured_gib:.2f} | {row.memory_error:+.1%} | "
        f"{speed} | {row.measured_tokens_per_s:,.0f} | {off} |"
    )


def spread(errors: list[float]) -> str:
    return f"{min(errors):+.1%} to {max(errors):+.1%}" if errors else "nothing that could be compared"


if __name__ == "__main__":
    main()
