"""Claim: a decoder layer with LoRA takes less time and keeps less as three Functions than as transformers and PEFT.

Times one forward and backward pass of one Llama-3.1-8B layer over a tree that shares nothing, with the base held dense,
in NF4 and in fp8; counts the bytes kept between the passes, and on a CUDA device the peak above what was held before.
Both ways run through the same ``EdgeModel`` calls: its fast path, and its plain one under autocast.

    python benchmarks/decoder_layer.py --json out.json     # a CUDA device
    python benchmarks/decoder_layer.py --small             # a smoke test, on any device
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fintune.environment import describe_environment
from fintune.inference.forward import EdgeModel, choose_backend
from fintune.kernels.fp8_weight import LEAST_CAPABILITY
from fintune.kernels.tree_attention import ATTENTION_NAME, TreeContext
from fintune.models.adapters import peft_quiet
from fintune.models.fp8_linear import hold_in_fp8
from fintune.models.quiet import import_bitsandbytes

BASES = ("dense", "nf4", "fp8")
WAYS = ("plain", "keep", "recompute")


@dataclass(frozen=True)
class Row:
    """One measurement: medians of ``repeats`` passes; the peak is None where the device does not count it."""

    base: str
    way: str
    milliseconds: float
    slowest_milliseconds: float
    kept_bytes: int
    peak_bytes: int | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny shapes and two repeats, for a smoke test")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--document", type=int, default=1024, help="tokens of one sample")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8}
    if arguments.small:
        shape = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
        arguments.tokens, arguments.document, arguments.repeats = 64, 16, 2
    rows = list(measure_all(shape, device, arguments))
    print_table(rows)
    if arguments.json:
        result = {"environment": describe_environment(), "shape": shape, "tokens": arguments.tokens}
        result |= {"rank": arguments.rank, "dropout": arguments.dropout, "rows": [asdict(row) for row in rows]}
        arguments.json.write_text(json.dumps(result, indent=2), encoding="utf-8")


def measure_all(shape: dict[str, Any], device: torch.device, arguments: argparse.Namespace) -> Iterator[Row]:
    bases: tuple[str, ...] = BASES
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
        bases = ("dense", "nf4")
    for base in bases:
        model = one_layer(base, shape, device, arguments)
        for way in WAYS:
            edge_model = EdgeModel(model, choose_backend("auto", device), torch.bfloat16, fast=way != "plain")
            edge_model.memory = "recompute" if way == "recompute" else "keep"
            yield Row(base, way, *measure(edge_model, device, arguments))
        del model


def one_layer(base: str, shape: dict[str, Any], device: torch.device, arguments: argparse.Namespace) -> Any:
    """A Llama of one layer with random weights and adapters in fp32, its vocabulary as small as can be."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**shape, num_hidden_layers=1, vocab_size=16, max_position_embeddings=8192)
    model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16).requires_grad_(False)
    if base == "fp8":
        hold_in_fp8(model, device)
    elif base == "nf4":
        pack(model.model.layers)
    model.to(device)
    lora = LoraConfig(
        r=arguments.rank,
        lora_alpha=2 * arguments.rank,
        lora_dropout=arguments.dropout,
        target_modules="all-linear",
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    with peft_quiet():
        adapted = get_peft_model(model, lora).train()
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted


def pack(layers: nn.Module) -> None:
    """Replaces linear layers by bitsandbytes' in NF4, packed when they are moved."""
    import_bitsandbytes()
    import bitsandbytes

    modules: Any = bitsandbytes.nn
    for parent in list(layers.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                packed = modules.Linear4bit(
                    child.in_features, child.out_features, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4"
                )
                packed.weight = modules.Params4bit(child.weight.data, requires_grad=False, quant_type="nf4")
                setattr(parent, name, packed)


def measure(
    edge_model: EdgeModel, device: torch.device, arguments: argparse.Namespace
) -> tuple[float, float, int, int | None]:
    """Median and slowest milliseconds, bytes kept and the peak."""
    decoder = edge_model.model.get_base_model().model
    size = arguments.tokens
    h = torch.randn(1, size, decoder.config.hidden_size, device=device, dtype=torch.bfloat16, requires_grad=True)
    gradient = torch.randn_like(h)
    number = torch.arange(size, device=device)
    depth = number % arguments.document
    end = (number - depth + arguments.document).clamp(max=size)
    samples = size // arguments.document if size % arguments.document == 0 else 0
    edge_model.set_attention(ATTENTION_NAME)
    rotation = decoder.rotary_emb(h, depth[None])
    trained = [parameter for parameter in edge_model.model.parameters() if parameter.requires_grad]

    def forward() -> Tensor:
        tree = TreeContext(end, depth, edge_model.backend, samples)
        layers = edge_model.fast_layers()
        if edge_model.fast != (layers is not None):
            raise SystemExit("The layer does not run on our kernels; the log says why.")
        with edge_model.precision():
            if layers is None:
                return decoder_output(decoder, h, rotation, tree)
            with layers.active(edge_model.memory):
                return decoder_output(decoder, h, rotation, tree)

    def one_pass() -> None:
        torch.autograd.grad(forward(), [h, *trained], gradient)

    for _ in range(3):
        one_pass()
    kept = kept_bytes(forward, edge_model.model, h)
    times, peak = [], None
    if device.type == "cuda":
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    for _ in range(arguments.repeats):
        started = time.perf_counter()
        one_pass()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - started))
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() - held
    return statistics.median(times), max(times), kept, peak


def decoder_output(decoder: Any, h: Tensor, rotation: tuple[Tensor, Tensor], tree: TreeContext) -> Tensor:
    output: Tensor = decoder.layers[0](h, attention_mask=None, position_embeddings=rotation, tree=tree)
    return output


def kept_bytes(forward: Callable[[], Tensor], model: nn.Module, h: Tensor) -> int:
    """Memory autograd holds for the backward pass, the input and the model's own aside, each piece once."""
    kept: dict[int, int] = {}
    own = {tensor.untyped_storage().data_ptr() for tensor in (h, *model.parameters(), *model.buffers())}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        alive = forward()  # its memory must not be handed out again while addresses are collected
    del alive
    return sum(kept.values())


def print_table(rows: list[Row]) -> None:
    print("| base | way | ms (slowest) | kept MiB | peak MiB |")
    print("| --- | --- | --- | --- | --- |")
    for row in rows:
        peak = "" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.0f}"
        print(
            f"| {row.base} | {row.way} | {row.milliseconds:.2f} ({row.slowest_milliseconds:.2f}) "
            f"| {row.kept_bytes / 2**20:.2f} | {peak} |"
        )


if __name__ == "__main__":
    main()
