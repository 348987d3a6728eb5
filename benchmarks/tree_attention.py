"""Claim: over trees our kernels beat FlexAttention, most where many samples share a prefix, and over documents tie.

Times attention alone, forward and forward with backward, in bf16, for trees of the sizes that training has: samples
that share nothing, short branches on a short prefix, longer ones on a long prefix, one long document. ``rows`` is
PyTorch's causal attention over samples of one length, where a workload is that. Block lists are built once, as a step
builds them for all its layers.

    python benchmarks/tree_attention.py --json out.json     # a CUDA device, about 25 seconds
    python benchmarks/tree_attention.py --sweep llama       # our kernels with other tiles
    python benchmarks/tree_attention.py --small             # a smoke test of the twins, on any device
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from timing import time_on_cpu, time_on_gpu
from torch import Tensor, nn

from fintune.environment import describe_environment
from fintune.kernels.tree_attention import Backend, TreeContext, tree_attention
from fintune.kernels.tree_flash import Tile, Tiling, TreeWork, tiling, tree_flash, tree_work


@dataclass(frozen=True)
class Heads:
    """Query heads, key heads, features of each."""

    query: int
    key: int
    size: int


@dataclass(frozen=True)
class Workload:
    """A tree of tokens: samples that share ``prefix`` tokens and have ``branch`` of their own, and padding."""

    name: str
    heads: Heads
    prefix: int
    samples: int
    branch: int
    pad: int = 0

    @property
    def tokens(self) -> int:
        """Tokens, padding included."""
        return self.prefix + self.samples * self.branch + self.pad

    def tree(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """(T,) subtree_end and depth."""
        real = self.tokens - self.pad
        behind = (torch.arange(self.samples) + 1) * self.branch + self.prefix
        padding = torch.arange(real, self.tokens) + 1
        ends = torch.cat([torch.full((self.prefix,), real), behind.repeat_interleave(self.branch), padding])
        depths = torch.cat([torch.arange(self.branch).repeat(self.samples) + self.prefix, padding * 0])
        return ends.to(device), torch.cat([torch.arange(self.prefix), depths]).to(device)


@dataclass(frozen=True)
class Row:
    """One measurement; milliseconds are medians."""

    workload: str
    tokens: int
    backend: str
    first_call_seconds: float
    forward_ms: float
    slowest_forward_ms: float
    both_ms: float
    slowest_both_ms: float


LLAMA, SMOLLM2, SMALL = Heads(32, 8, 128), Heads(9, 3, 64), Heads(4, 2, 16)
WORKLOADS = {
    "llama": [
        Workload("4 documents of 2,048", LLAMA, 0, 4, 2048),
        Workload("168 branches of 40 on 56", LLAMA, 56, 168, 40, 1416),
        Workload("112 branches of 64 on 1,024", LLAMA, 1024, 112, 64),
        Workload("1 document of 32,768", LLAMA, 0, 1, 32768),
    ],
    "smollm2": [
        Workload("SmolLM2, 1 document of 2,048", SMOLLM2, 0, 1, 2048),
        Workload("SmolLM2, 49 branches of 40 on 56", SMOLLM2, 56, 49, 40, 32),
    ],
    "small": [
        Workload("2 documents of 24", SMALL, 0, 2, 24),
        Workload("5 branches of 4 on 9", SMALL, 9, 5, 4, 3),
    ],
}
OTHER_TILES = {
    "forward": [Tile(64, 64, 4, 2), Tile(64, 64, 4, 3), Tile(128, 64, 4, 3), Tile(128, 64, 8, 2), Tile(128, 64, 8, 3)],
    "query_gradient": [Tile(64, 64, 4, 2), Tile(64, 64, 4, 3), Tile(128, 64, 8, 2), Tile(128, 64, 8, 3)],
    "key_gradient": [
        Tile(64, 64, 4, 2),
        Tile(64, 64, 4, 3),
        Tile(32, 64, 4, 3),
        Tile(64, 128, 8, 2),
        Tile(64, 128, 8, 3),
    ],
}
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny trees and two repeats, for a smoke test")
    parser.add_argument("--only", choices=WORKLOADS, help="one group of workloads")
    parser.add_argument("--sweep", choices=WORKLOADS, help="our kernels alone, with one tile after another changed")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    groups = ["small"] if arguments.small else [arguments.sweep or arguments.only or ""]
    workloads = [each for name, group in WORKLOADS.items() if name in groups for each in group]
    workloads = workloads or WORKLOADS["llama"] + WORKLOADS["smollm2"]
    repeats = 2 if arguments.small else arguments.repeats
    rows = []
    for workload in workloads:
        calls = tiles_of(workload, device) if arguments.sweep else backends_of(workload, device)
        for name, attention in calls:
            rows.append(measure(workload, name, attention, device, repeats))
            print_row(rows[-1], header=len(rows) == 1)
    if arguments.json:
        result = {"environment": describe_environment(), "rows": [asdict(row) for row in rows]}
        arguments.json.write_text(json.dumps(result, indent=2), encoding="utf-8")


def backends_of(workload: Workload, device: torch.device) -> Iterator[tuple[str, Attention]]:
    names: list[Backend] = ["flex", "triton"] if device.type == "cuda" else ["sdpa", "triton"]
    for name in names:
        yield name, by_tree(TreeContext(*workload.tree(device), name))
    if not workload.prefix and not workload.pad:
        yield "rows", by_tree(TreeContext(*workload.tree(device), "flex", rows=workload.samples))


def by_tree(tree: TreeContext) -> Attention:
    return lambda *states: tree_attention(nn.Module(), *states, None, tree=tree)[0]


def tiles_of(workload: Workload, device: torch.device) -> Iterator[tuple[str, Attention]]:
    """Our kernels as they are, and with one tile changed at a time."""
    size = workload.heads.size
    usual = tiling(size, torch.bfloat16)
    work = tree_work(*workload.tree(device), None, size, torch.bfloat16)
    for name, tiles in [("as it is", usual), *other_tilings(usual)]:
        yield name, by_work(replace(work, tiling=tiles, _known={}))


def by_work(work: TreeWork) -> Attention:
    return lambda *states: tree_flash(*states, work).transpose(1, 2)


def other_tilings(usual: Tiling) -> Iterator[tuple[str, Tiling]]:
    for kernel, tiles in OTHER_TILES.items():
        for tile in tiles:
            if tile != getattr(usual, kernel):
                yield f"{kernel} {tuple(tile)}", usual._replace(**{kernel: tile})


def measure(workload: Workload, name: str, attention: Attention, device: torch.device, repeats: int) -> Row:
    torch.manual_seed(0)
    heads = workload.heads
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    qkv = torch.randn(workload.tokens, heads.query + 2 * heads.key, heads.size, device=device, dtype=dtype)
    sections = (heads.query, heads.key, heads.key)
    states = [part.transpose(0, 1)[None].detach().requires_grad_() for part in qkv.split(sections, 1)]
    d_out = torch.randn(1, workload.tokens, heads.query, heads.size, device=device, dtype=dtype)

    def both() -> object:
        return torch.autograd.grad(attention(*states), states, d_out)

    def forward() -> object:
        return attention(*states)  # recorded, or FlexAttention would compile once more

    started = time.perf_counter()
    both()
    if device.type == "cuda":
        torch.cuda.synchronize()
    first = time.perf_counter() - started
    timed = time_on_gpu if device.type == "cuda" else time_on_cpu
    forward_ms, both_ms = timed(forward, repeats), timed(both, repeats)
    middles = [statistics.median(forward_ms), max(forward_ms), statistics.median(both_ms), max(both_ms)]
    return Row(workload.name, workload.tokens, name, first, *middles)


def print_row(row: Row, *, header: bool) -> None:
    if header:
        print("| workload | backend | first call s | forward ms (slowest) | forward and backward ms (slowest) |")
        print("| --- | --- | --- | --- | --- |")
    print(
        f"| {row.workload} | {row.backend} | {row.first_call_seconds:.1f} "
        f"| {row.forward_ms:.3f} ({row.slowest_forward_ms:.3f}) | {row.both_ms:.3f} ({row.slowest_both_ms:.3f}) |",
        flush=True,
    )


if __name__ == "__main__":
    main()
