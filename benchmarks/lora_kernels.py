"""Claim: LoRA on a frozen base as one Function takes less time and keeps fewer bytes than the plain PEFT layers.

Times one forward and backward pass of each group of a Llama-3.1-8B layer (q/k/v, o, the MLP), with the base held dense,
in NF4 and in fp8, and counts what is kept between the passes. PEFT computes under autocast, as in training.

    python benchmarks/lora_kernels.py --compile --dropout 0 0.1 --json out.json     # a CUDA device
    python benchmarks/lora_kernels.py --small                                       # a smoke test, on any device
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor, nn

from fintune.environment import describe_environment
from fintune.kernels.fp8_weight import LEAST_CAPABILITY, fp8_weight
from fintune.kernels.frozen_weight import FrozenWeight, frozen_weight
from fintune.kernels.hashed_dropout import as_seed
from fintune.kernels.lora_linear import LoraLinear, adapters_of, lora_linears
from fintune.kernels.lora_mlp import lora_swiglu
from fintune.kernels.partition import recompute_elementwise
from fintune.models.quiet import import_bitsandbytes

Step = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Way:
    """One way to compute a group: what it runs, trains and holds frozen, and the bytes of the frozen weights."""

    step: Step
    trained: list[Tensor]
    frozen: list[Tensor]
    base_bytes: int


@dataclass(frozen=True)
class Sizes:
    """Sizes of one layer: tokens, model width, width of keys and values, width of the MLP, adapter rank."""

    tokens: int
    features: int
    key_value: int
    hidden: int
    rank: int

    def shapes(self, group: str) -> dict[str, tuple[int, int]]:
        """(O, I) of the layers of a group."""
        width, wide = self.features, self.hidden
        return {
            "qkv": {"q": (width, width), "k": (self.key_value, width), "v": (self.key_value, width)},
            "o": {"o": (width, width)},
            "mlp": {"gate": (wide, width), "up": (wide, width), "down": (width, wide)},
        }[group]


@dataclass(frozen=True)
class Row:
    """One measurement; the peak is counted above what was held before the pass, and only on a CUDA device."""

    group: str
    base: str
    way: str
    dropout: float
    milliseconds: float
    slowest_milliseconds: float
    kept_bytes: int
    peak_bytes: int | None
    base_bytes: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny shapes and two repeats, for a smoke test")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--dropout", type=float, nargs="+", default=[0.0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--compile", action="store_true", help="our Functions under torch.compile as well")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes = Sizes(arguments.tokens, 4096, 1024, 14336, arguments.rank)
    if arguments.small:
        sizes, arguments.repeats = Sizes(32, 64, 32, 128, 4), 2
    import_bitsandbytes()
    rows = list(measure_all(sizes, device, arguments))
    print_table(rows)
    if arguments.json:
        result = {"environment": describe_environment(), "sizes": asdict(sizes), "rows": [asdict(row) for row in rows]}
        arguments.json.write_text(json.dumps(result, indent=2), encoding="utf-8")


def measure_all(sizes: Sizes, device: torch.device, arguments: argparse.Namespace) -> Iterator[Row]:
    bases = ["dense", "nf4", "fp8 one copy", "fp8 two copies"]
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
        bases = bases[:2]
    for group in ("qkv", "o", "mlp"):
        for base in bases:
            for dropout in arguments.dropout:
                for name, way in ways(group, base, sizes, dropout, device, arguments.compile):
                    x = torch.randn(1, sizes.tokens, sizes.features, device=device, dtype=torch.bfloat16)
                    torch._dynamo.reset()
                    times, kept, peak = measure(way, x.requires_grad_(), arguments.repeats)
                    middle = statistics.median(times)
                    yield Row(group, base, name, dropout, middle, max(times), kept, peak, way.base_bytes)


def ways(
    group: str, base: str, sizes: Sizes, dropout: float, device: torch.device, compiled: bool
) -> Iterator[tuple[str, Way]]:
    """Each way to compute the group, by name."""
    if not base.startswith("fp8"):  # PEFT trains on no fp8 base
        yield "peft", peft_step(group, base, sizes, dropout, device)
    yield "ours", our_step(group, base, sizes, dropout, device, compiled=False)
    if compiled:
        yield "ours compiled", our_step(group, base, sizes, dropout, device, compiled=True)


def peft_step(group: str, base: str, sizes: Sizes, dropout: float, device: torch.device) -> Way:
    from peft import LoraConfig, inject_adapter_in_model

    layers = nn.ModuleDict({name: base_layer(base, *shape, device) for name, shape in sizes.shapes(group).items()})
    stored = sum(frozen_weight(layer.weight).stored_bytes for layer in layers.values())
    config = LoraConfig(
        r=sizes.rank,
        lora_alpha=2 * sizes.rank,
        lora_dropout=dropout,
        target_modules=list(layers),
        init_lora_weights=False,
    )
    inject_adapter_in_model(config, layers)
    layers.to(device).train()
    trained = [parameter for parameter in layers.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()

    def step(x: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            if group == "mlp":
                y: Tensor = layers["down"](nn.functional.silu(layers["gate"](x)) * layers["up"](x))
                return y
            return torch.cat([layer(x) for layer in layers.values()], dim=-1)

    return Way(step, trained, [layer.weight for layer in layers.values()], stored)


def our_step(group: str, base: str, sizes: Sizes, dropout: float, device: torch.device, *, compiled: bool) -> Way:
    layers = [
        LoraLinear(
            our_weight(base, *shape, device),
            a=torch.randn(sizes.rank, shape[1], device=device).div_(shape[1] ** 0.5).requires_grad_(),
            b=torch.randn(shape[0], sizes.rank, device=device).requires_grad_(),
            scale=2.0,
        )
        for shape in sizes.shapes(group).values()
    ]
    seed = as_seed(17, device)

    def step(x: Tensor) -> Tensor:
        if group == "mlp":
            return lora_swiglu(x, *layers, dropout=dropout, seed=seed)
        return torch.cat(lora_linears(x, layers, dropout=dropout, seed=seed), dim=-1)

    stored = sum(layer.weight.stored_bytes for layer in layers)
    frozen = [tensor for layer in layers for tensor in tensors_of(layer.weight)]
    return Way(torch.compile(step, fullgraph=True) if compiled else step, adapters_of(layers), frozen, stored)


def tensors_of(weight: FrozenWeight) -> list[Tensor]:
    """All tensors of a frozen weight, those of a second copy included."""
    values = [getattr(weight, field.name) for field in fields(weight)]
    flat = [part for value in values for part in (value if isinstance(value, tuple) else (value,))]
    return [part for part in flat if isinstance(part, Tensor)]


def base_layer(base: str, outputs: int, inputs: int, device: torch.device) -> nn.Linear:
    """A frozen layer with random weights, dense in bf16 or packed to NF4 with quantised scales."""
    import bitsandbytes

    layer = nn.Linear(inputs, outputs, bias=False, dtype=torch.bfloat16)
    if base == "nf4":
        packed: nn.Linear = bitsandbytes.nn.Linear4bit(
            inputs, outputs, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4", compress_statistics=True
        )
        packed.weight = bitsandbytes.nn.Params4bit(
            layer.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True
        )
        layer = packed
    return layer.to(device).requires_grad_(False)


def our_weight(base: str, outputs: int, inputs: int, device: torch.device) -> FrozenWeight:
    if base.startswith("fp8"):
        dense = base_layer("dense", outputs, inputs, device).weight
        return fp8_weight(dense, copies=2 if base == "fp8 two copies" else 1)
    return frozen_weight(base_layer(base, outputs, inputs, device).weight)


def measure(way: Way, x: Tensor, repeats: int) -> tuple[list[float], int, int | None]:
    """Milliseconds of each pass, bytes kept between forward and backward, and the peak above what was held before."""
    with recompute_elementwise():
        gradient = torch.randn_like(way.step(x))

        def one_pass() -> None:
            for leaf in (x, *way.trained):
                leaf.grad = None
            way.step(x).backward(gradient)

        for _ in range(3):
            one_pass()
        kept = kept_bytes(way, x)
        times, peak = [], None
        for leaf in (x, *way.trained):
            leaf.grad = None
        if x.device.type == "cuda":
            torch.cuda.synchronize()
            held = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        for _ in range(repeats):
            started = time.perf_counter()
            one_pass()
            if x.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(1000 * (time.perf_counter() - started))
        if x.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated() - held
    return times, kept, peak


def kept_bytes(way: Way, x: Tensor) -> int:
    """Memory autograd holds for the backward pass, the input and all weights aside, each piece once."""
    kept: dict[int, int] = {}
    own = {tensor.untyped_storage().data_ptr() for tensor in (x, *way.trained, *way.frozen)}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        alive = way.step(x)  # its memory must not be handed out again while addresses are collected
    del alive
    return sum(kept.values())


def print_table(rows: list[Row]) -> None:
    print("| group | base | way | dropout | ms (slowest) | kept MiB | peak MiB | base MiB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        peak = "" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.2f}"
        print(
            f"| {row.group} | {row.base} | {row.way} | {row.dropout} | {row.milliseconds:.2f} "
            f"({row.slowest_milliseconds:.2f}) | {row.kept_bytes / 2**20:.3f} | {peak} | {row.base_bytes / 2**20:.2f} |"
        )


if __name__ == "__main__":
    main()
