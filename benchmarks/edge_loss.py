"""Claim: the loss over edges straight from hidden states is no slower than from whole logits, holding a chunk of them.

Times forward and backward passes of head and loss alone, plain and fused in turn and in one process, and notes the peak
memory above what the inputs take (CUDA only). The head is frozen unless ``--trained``.

    python benchmarks/edge_loss.py --json out.json
    python benchmarks/edge_loss.py --small
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from fintune.environment import describe_environment
from fintune.kernels.edge_loss import edge_cross_entropy
from fintune.kernels.linear_edge_loss import LinearHead, LossEdges, chunk_rows, linear_edge_cross_entropy

Loss = Callable[[Tensor, Tensor, LossEdges], Tensor]


def plain(hidden: Tensor, weight: Tensor, edges: LossEdges) -> Tensor:
    logits = nn.functional.linear(hidden, weight)
    return edge_cross_entropy(logits, edges.parent, edges.target, edges.weight)[0]


def fused(hidden: Tensor, weight: Tensor, edges: LossEdges) -> Tensor:
    return linear_edge_cross_entropy(hidden, LinearHead(weight), edges)[0]


LOSSES: dict[str, Loss] = {"plain": plain, "fused": fused}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parents", type=int, nargs="+", default=[256, 2048, 8192])
    parser.add_argument("--vocabulary", type=int, default=128_256)
    parser.add_argument("--hidden-size", type=int, default=4096)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--trained", action="store_true", help="the head wants a gradient too")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--small", action="store_true", help="a quick look at small sizes, on any device")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.small:
        arguments.parents, arguments.vocabulary, arguments.hidden_size, arguments.repeats = [16, 100], 4096, 64, 3

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, arguments.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    rows = [measure(parents, arguments, device, dtype) for parents in arguments.parents]
    result = {
        "environment": describe_environment(),
        "vocabulary": arguments.vocabulary,
        "hidden_size": arguments.hidden_size,
        "dtype": str(dtype).removeprefix("torch."),
        "trained_head": arguments.trained,
        "rows": rows,
    }
    print_table(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2), encoding="utf-8")


def measure(parents: int, arguments: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Median and spread of both losses at one size, taken in turn, and how far apart their results are."""
    torch.manual_seed(parents)
    weight = torch.randn(arguments.vocabulary, arguments.hidden_size, device=device, dtype=dtype) * 0.02
    weight.requires_grad_(arguments.trained)
    hidden = torch.randn(parents, arguments.hidden_size, device=device, dtype=dtype, requires_grad=True)
    leaves = [hidden, weight] if arguments.trained else [hidden]
    targets = torch.randint(arguments.vocabulary, (parents,), device=device)
    edges = LossEdges(torch.arange(parents, device=device), targets, torch.ones(parents, device=device))
    logit_bytes = hidden.element_size() if device.type == "cuda" else 4  # there the kernels need no fp32 copy
    row: dict[str, float] = {
        "parents": parents,
        "chunk_rows": chunk_rows(parents, arguments.vocabulary, arguments.hidden_size, logit_bytes=logit_bytes),
    }
    kept: dict[str, tuple[Tensor, Tensor]] = {}
    for name, loss in LOSSES.items():  # warm-up too
        row[f"{name}_peak_bytes"] = peak_bytes(partial(run, loss, hidden, weight, edges, leaves), device)
        kept[name] = run(loss, hidden, weight, edges, leaves)
    milliseconds: dict[str, list[float]] = {name: [] for name in LOSSES}
    for _ in range(arguments.repeats):
        for name, loss in LOSSES.items():
            started = clock(device)
            run(loss, hidden, weight, edges, leaves)
            milliseconds[name].append(1e3 * (clock(device) - started))
    for name, times in milliseconds.items():
        row[f"{name}_ms"], row[f"{name}_best_ms"] = statistics.median(times), min(times)
    ratios = [p / f for p, f in zip(milliseconds["plain"], milliseconds["fused"], strict=True)]
    row["plain_over_fused"] = statistics.median(ratios)
    difference = (kept["fused"][1].double() - kept["plain"][1].double()).norm()
    row["gradient_difference"] = (difference / kept["plain"][1].double().norm()).item()
    row["loss_difference"] = abs(kept["fused"][0].item() / kept["plain"][0].item() - 1)
    return row


def run(loss: Loss, hidden: Tensor, weight: Tensor, edges: LossEdges, leaves: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The loss and the gradient of the hidden states."""
    value = loss(hidden, weight, edges)
    return value.detach(), torch.autograd.grad(value / len(edges.target), leaves)[0]


def clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_bytes(function: Callable[[], object], device: torch.device) -> float:
    """Peak memory above what was allocated before; 0 where the device does not count it."""
    if device.type != "cuda":
        function()
        return 0.0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return float(torch.cuda.max_memory_allocated() - before)


def print_table(rows: list[dict[str, float]]) -> None:
    print("| parents | chunk | plain ms | fused ms | plain/fused | plain MiB | fused MiB | gradient difference |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        print(
            f"| {row['parents']} | {row['chunk_rows']} | {row['plain_ms']:.1f} | {row['fused_ms']:.1f} "
            f"| {row['plain_over_fused']:.2f} | {row['plain_peak_bytes'] / 2**20:.0f} "
            f"| {row['fused_peak_bytes'] / 2**20:.0f} | {row['gradient_difference']:.1e} |"
        )


if __name__ == "__main__":
    main()
