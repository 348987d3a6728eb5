"""Claim: what a decoder layer does between its matrix products runs at the speed of the card's memory.

Times every kernel at the shapes of Llama-3.1-8B in bf16 and counts the bytes that must move: inputs read once, outputs
written once, the small factors of adapters left out. A copy of the same card, for comparison, comes first.

    python benchmarks/elementwise.py --json out.json     # a CUDA device, about ten seconds
    python benchmarks/elementwise.py --small             # a smoke test of the twins, on any device
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from timing import time_on_cpu, time_on_gpu
from torch import Tensor

from fintune.environment import describe_environment
from fintune.kernels.gated import gated, gated_backward, gated_backward_sums
from fintune.kernels.hashed_dropout import add_dropped_, as_seed, drop
from fintune.kernels.quantize import quantize_rows_fp8, transpose_bytes
from fintune.kernels.rms_norm import rms_norm, rms_norm_backward, rms_norm_quantized
from fintune.kernels.rope import HeadLayout, rotate_heads, rotate_heads_backward
from fintune.kernels.unpack_nf4 import unpack_nf4

Call = tuple[str, int, Callable[[], object]]
"""A name, the bytes that must move, and the work."""


@dataclass(frozen=True)
class Sizes:
    """Tokens, model width, width of the MLP, heads, adapter rank."""

    tokens: int
    features: int
    hidden: int
    layout: HeadLayout
    rank: int


@dataclass(frozen=True)
class Row:
    """One measurement."""

    kernel: str
    milliseconds: float
    slowest_milliseconds: float
    gigabytes: float
    gigabytes_per_second: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny shapes and two repeats, for a smoke test")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes = Sizes(arguments.tokens, 4096, 14336, HeadLayout(32, 8, 128), arguments.rank)
    if arguments.small:
        sizes, arguments.repeats = Sizes(32, 64, 128, HeadLayout(4, 2, 16), 16), 2
    rows = [measure(call, device, arguments.repeats) for call in calls(sizes, device)]
    print_table(rows)
    if arguments.json:
        result = {"environment": describe_environment(), "sizes": asdict(sizes), "rows": [asdict(row) for row in rows]}
        arguments.json.write_text(json.dumps(result, indent=2), encoding="utf-8")


def calls(sizes: Sizes, device: torch.device) -> Iterator[Call]:
    yield from copy_calls(sizes, device)
    yield from norm_calls(sizes, device)
    yield from rope_calls(sizes, device)
    yield from gated_calls(sizes, device)
    yield from quantize_calls(sizes, device)
    yield from dropout_calls(sizes, device)
    yield from unpack_calls(sizes, device)


def random(device: torch.device, *shape: int) -> Tensor:
    return torch.randn(*shape, device=device, dtype=torch.bfloat16)


def copy_calls(sizes: Sizes, device: torch.device) -> Iterator[Call]:
    x, out = random(device, sizes.tokens, sizes.hidden), random(device, sizes.tokens, sizes.hidden)
    yield "torch copy", 4 * x.numel(), lambda: out.copy_(x)


def norm_calls(sizes: Sizes, device: torch.device) -> Iterator[Call]:
    h, dy, residual = (random(device, sizes.tokens, sizes.features) for _ in range(3))
    weight, count = random(device, sizes.features), h.numel()
    rstd = rms_norm(h, weight, 1e-5)[1]
    yield "rms_norm", 4 * count, lambda: rms_norm(h, weight, 1e-5)
    yield "rms_norm_quantized", 5 * count, lambda: rms_norm_quantized(h, weight, 1e-5)
    yield "rms_norm_backward", 6 * count, lambda: rms_norm_backward(dy, h, rstd, weight, out=dy)
    yield (
        "rms_norm_backward, residual",
        8 * count,
        lambda: rms_norm_backward(dy, h, rstd, weight, residual=residual, out=dy),
    )


def rope_calls(sizes: Sizes, device: torch.device) -> Iterator[Call]:
    layout, tokens = sizes.layout, sizes.tokens
    qkv, cos, sin = random(device, tokens, layout.width), *(torch.rand(2, tokens, layout.size, device=device))
    adapters = {"small": random(device, tokens, 3 * sizes.rank), "b": random(device, layout.width, sizes.rank) * 0.01}
    norms = {name: torch.ones(layout.size, device=device) for name in ("query_norm", "key_norm")}
    everything, rotated = 2 * qkv.numel(), 2 * (layout.query + layout.key) * layout.size * tokens
    angles = (tokens * layout.size // 2) * 8
    yield "rotate_heads", 2 * rotated + angles, lambda: rotate_heads(qkv, cos, sin, layout)
    yield "rotate_heads, adapters", 2 * everything + angles, lambda: rotate_heads(qkv, cos, sin, layout, **adapters)
    yield "rotate_heads, norms", 2 * rotated + angles, lambda: rotate_heads(qkv, cos, sin, layout, **norms)
    yield (
        "rotate_heads, adapters, norms",
        2 * everything + rotated + angles,
        lambda: rotate_heads(qkv, cos, sin, layout, **adapters, **norms),
    )
    q, k, v, rstd = rotate_heads(qkv, cos, sin, layout, **norms)
    gradients = [part.transpose(0, 1).contiguous().transpose(0, 1) for part in (q, k, v)]
    out, known = torch.empty_like(qkv), {"qkv": qkv, "rstd": rstd, **norms}
    yield (
        "rotate_heads_backward",
        2 * everything + angles,
        lambda: rotate_heads_backward(*gradients, cos, sin, layout, out=out),
    )
    yield (
        "rotate_heads_backward, norms",
        2 * everything + rotated + angles,
        lambda: rotate_heads_backward(*gradients, cos, sin, layout, **known, out=out),
    )


def gated_calls(sizes: Sizes, device: torch.device) -> Iterator[Call]:
    tokens, hidden, rank = sizes.tokens, sizes.hidden, sizes.rank
    gate_up, out = random(device, tokens, 2 * hidden), random(device, tokens, 2 * hidden)
    dp, count = random(device, tokens, hidden), tokens * hidden
    adapters = {"small": random(device, tokens, 2 * rank), "b": random(device, 2 * hidden, rank) * 0.01}
    down = {"down_small": random(device, tokens, rank), "down_a": random(device, rank, hidden) * 0.01}
    yield "gated", 6 * count, lambda: gated(gate_up, "silu")
    yield "gated, adapters", 6 * count, lambda: gated(gate_up, "silu", **adapters)
    yield "gated, adapters, gelu", 6 * count, lambda: gated(gate_up, "gelu_tanh", **adapters)
    yield "gated_backward", 12 * count, lambda: gated_backward(dp, gate_up, "silu", out=out)
    yield (
        "gated_backward, adapters",
        12 * count,
        lambda: gated_backward(dp, gate_up, "silu", **adapters, **down, out=out),
    )
    yield (
        "gated_backward, adapters, no hidden",
        10 * count,
        lambda: gated_backward(dp, gate_up, "silu", **adapters, **down, out=out, want_hidden=False),
    )
    yield (
        "gated_backward_sums",
        10 * count,
        lambda: gated_backward_sums(dp, gate_up, "silu", **adapters, **down, out=out),
    )


def quantize_calls(sizes: Sizes, device: torch.device) -> Iterator[Call]:
    narrow, broad = random(device, sizes.tokens, sizes.features), random(device, sizes.tokens, sizes.hidden)
    scale = torch.rand(sizes.hidden, device=device)
    yield f"quantize_rows_fp8, {sizes.features}", 3 * narrow.numel(), lambda: quantize_rows_fp8(narrow)
    yield f"quantize_rows_fp8, {sizes.hidden}", 3 * broad.numel(), lambda: quantize_rows_fp8(broad)
    yield (
        f"quantize_rows_fp8, {sizes.hidden}, column scale",
        3 * broad.numel(),
        lambda: quantize_rows_fp8(broad, column_scale=scale),
    )
    data = torch.zeros(sizes.hidden, sizes.features, dtype=torch.uint8, device=device)
    out = torch.empty(sizes.features, sizes.hidden, dtype=torch.uint8, device=device)
    yield "transpose_bytes", 2 * data.numel(), lambda: transpose_bytes(data, out)


def dropout_calls(sizes: Sizes, device: torch.device) -> Iterator[Call]:
    x, target = random(device, sizes.tokens, sizes.features), random(device, sizes.tokens, sizes.features)
    seed = as_seed(1, device)
    yield "drop", 4 * x.numel(), lambda: drop(x, seed, 0.1)
    yield "add_dropped_", 6 * x.numel(), lambda: add_dropped_(target, x, seed, 0.1)


def unpack_calls(sizes: Sizes, device: torch.device) -> Iterator[Call]:
    out = torch.empty(sizes.hidden, sizes.features, dtype=torch.bfloat16, device=device)
    blocks = out.numel() // 64
    packed = torch.randint(0, 256, (out.numel() // 2,), dtype=torch.uint8, device=device)
    absmax, codes = torch.rand(blocks, device=device), torch.randint(0, 256, (blocks,), device=device).to(torch.uint8)
    nested = torch.rand(256, device=device), torch.rand(-(-blocks // 256), device=device), absmax.new_zeros(())
    count = out.numel() * 5 // 2
    yield "unpack_nf4", count + 4 * blocks, lambda: unpack_nf4(packed, absmax, None, None, None, 64, 0, out)
    yield "unpack_nf4, nested scales", count + blocks, lambda: unpack_nf4(packed, codes, *nested, 64, 256, out)


def measure(call: Call, device: torch.device, repeats: int) -> Row:
    name, moved, work = call
    for _ in range(3):
        work()
    times = time_on_gpu(work, repeats) if device.type == "cuda" else time_on_cpu(work, repeats)
    middle = statistics.median(times)
    return Row(name, middle, max(times), moved / 1e9, moved / 1e6 / middle)


def print_table(rows: list[Row]) -> None:
    print("| kernel | ms (slowest) | GB | GB/s |")
    print("| --- | --- | --- | --- |")
    for row in rows:
        print(
            f"| {row.kernel} | {row.milliseconds:.4f} ({row.slowest_milliseconds:.4f}) | {row.gigabytes:.4f} | "
            f"{row.gigabytes_per_second:.0f} |"
        )


if __name__ == "__main__":
    main()
