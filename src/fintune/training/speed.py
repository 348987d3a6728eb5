"""How fast a training step is likely to be: its floating-point work, what cards do, and what of that is reached.

Enters: ``ModelShape``, ``MemoryPlan`` and a ``Card``. Leaves: seconds of a micro-batch and tokens a second.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import torch

from fintune.kernels.fp8_weight import ASKED_BY, REMEDY, require_fp8
from fintune.models.fast_layers import KEEPS_ALL, Memory
from fintune.models.shape import ModelShape
from fintune.schema.errors import ModelError, RecipeError
from fintune.training.memory_plan import MemoryPlan, trainable_parameters


@dataclass(frozen=True)
class Card:
    """A GPU: dense bf16 (fp16 where it has no bf16) and fp8 TFLOP/s, bandwidth in GB/s, memory in GiB; data sheets.

    ``blockwise`` is whether trees are attended over block by block by default, which cards before Ampere do not.
    """

    name: str
    bf16_tflops: float
    fp8_tflops: float | None
    bandwidth_gb_s: float
    memory_gib: float
    blockwise: bool = True

    @property
    def memory_bytes(self) -> int:
        """What a process can have."""
        return int(self.memory_gib * 2**30)


# Memory as drivers report it. The longest name that fits is taken, so H100 NVL is not an H100.
CARDS = (
    Card("B200", 2250, 4500, 8000, 178.0),
    Card("GH200", 989, 1979, 4000, 95.0),
    Card("H200", 989, 1979, 4800, 139.8),
    Card("H100", 989, 1979, 3350, 79.1),
    Card("H100 PCIe", 756, 1513, 2000, 79.1),
    Card("H100 NVL", 835, 1671, 3900, 93.1),
    Card("A100 80GB", 312, None, 2039, 79.1),
    Card("A100", 312, None, 1555, 39.4),
    Card("L40S", 362, 733, 864, 44.4),
    Card("L4", 121, 242, 300, 22.0),
    Card("A10", 125, None, 600, 22.0),
    Card("A10G", 70, None, 600, 22.0),
    Card("RTX A6000", 155, None, 768, 47.4),
    Card("RTX 5090", 209, 419, 1792, 31.4),
    Card("RTX 4090", 165, 330, 1008, 23.5),
    Card("RTX 3090", 71, None, 936, 23.6),
    Card("V100", 112, None, 900, 31.7, blockwise=False),
    Card("T4", 65, None, 320, 14.6, blockwise=False),
)

# Share of the data sheet that a step of the plain path (transformers, peft, bitsandbytes) reaches, measured once on an
# H200 with the shapes of Llama-3.1-8B and 8,192 tokens: NF4 6,492 tokens/s with recomputation; with fused losses 9,399
# in bf16 with recomputation and 12,000 without, which are 1.11 times the plain speed.
EFFICIENCY = {"none": 0.38, "nf4": 0.30, "int8": 0.20, "fp8": 0.30}  # int8 and fp8 were not measured
# A micro-batch cannot be quicker than Python can start its kernels. Measured beside H200s: 0.1 s for 30 layers of the
# plain path; of our own, 6.7 to 8.1 ms a layer that is computed again, and 8.9 to 10.4 ms one that also moves.
LAUNCH_SECONDS_PER_LAYER = 0.1 / 30
FAST_LAUNCH_SECONDS: dict[Memory | None, float] = {"recompute": 0.0075, "offload": 0.0095}


@dataclass(frozen=True)
class MeasuredSpeed:
    """Tokens a second of our own layers, with a base held in one way and one way to keep activations."""

    quantization: str
    memory: Memory
    tokens_per_second: float


# One H200, shapes of Llama-3.1-8B, LoRA of rank 16 on all seven layers, 4 x 2,048 tokens at once, each with a loss; all
# other speeds of the fast path follow from these. Measured on 2026-11-22 (docs/experiments.md).
FAST_SPEEDS = (
    MeasuredSpeed("none", "keep", 17_710),
    MeasuredSpeed("none", "recompute", 14_590),
    MeasuredSpeed("none", "offload", 14_390),
    MeasuredSpeed("nf4", "ready", 17_960),
    MeasuredSpeed("nf4", "keep", 17_460),
    MeasuredSpeed("nf4", "recompute", 14_380),
    MeasuredSpeed("nf4", "offload", 14_200),
    MeasuredSpeed("fp8", "ready", 25_190),
    MeasuredSpeed("fp8", "keep", 25_130),
    MeasuredSpeed("fp8", "recompute", 21_240),
    MeasuredSpeed("fp8", "offload", 19_060),
)
# What one token of that run computes, forward and backward and nothing twice: ``flops_per_token`` of its shapes; and
# what of that is in the weights of layers and in adapters, the rest being attention and head.
FAST_FLOPS_PER_TOKEN = 32.15e9
FAST_LAYER_FLOPS_PER_TOKEN = 28.17e9


def find_card(name: str) -> Card:
    """The card of that name, as one writes it or as the driver reports it.

    Raises:
        RecipeError: it is not in the table.
    """
    wanted = _words(name)
    squeezed = name.lower().replace(" ", "")
    fitting = [c for c in CARDS if _words(c.name) <= wanted or c.name.lower().replace(" ", "") == squeezed]
    if not fitting:
        known = ", ".join(card.name for card in CARDS)
        raise RecipeError(f"The GPU {name} is not in the table.", f"Choose one of {known}, or leave --gpu out.")
    return max(fitting, key=lambda card: len(_words(card.name)))


def require_fp8_card(card: Card, *, is_present: bool) -> None:
    """Refuses what loading would refuse; a card of this machine is asked, any other looked up.

    Raises:
        ModelError: its cores cannot multiply fp8.
    """
    if is_present:
        require_fp8(torch.device("cuda"))
    elif card.fp8_tflops is None:
        raise ModelError(
            f"{ASKED_BY} needs an Ada, Hopper or newer card (compute capability 8.9), and the {card.name} is older.",
            REMEDY,
        )


def _words(name: str) -> set[str]:
    return set(re.findall(r"[a-z]*\d+[a-z]*|[a-z]+", name.lower()))


def flops_per_token(shape: ModelShape, plan: MemoryPlan, visible: float, logit_share: float) -> float:
    """Floating-point operations of one token, forward and backward.

    Args:
        shape: the model.
        plan: the run.
        visible: keys that a token attends to on average.
        logit_share: logits a token.
    """
    again = 1 if plan.checkpointing else 0  # forward passes repeated
    width = shape.heads * shape.head_size
    attention = 4 * width * visible * shape.layers * (3.5 + again)  # the backward pass computes the scores again
    head = (4 if plan.rank else 6) * shape.vocabulary * shape.hidden * logit_share
    return layer_flops_per_token(shape, plan) + attention + head


def layer_flops_per_token(shape: ModelShape, plan: MemoryPlan) -> float:
    """Those of the weights of layers, and of adapters."""
    again = 1 if plan.checkpointing else 0
    frozen = (4 if plan.rank else 6) + 2 * again
    adapter = (6 + 2 * again) * trainable_parameters(shape, plan) if plan.rank else 0
    return frozen * shape.matrix_parameters + adapter


def rates(plan: MemoryPlan, card: Card) -> tuple[float, float]:
    """Operations a second in layers, and in attention and head; what is computed again counts as loss.

    Attention and head are computed in bf16 even where the layers' weights are in fp8, whose rate may be above the data
    sheet's bf16 figure.
    """
    peak = card.bf16_tflops * 1e12
    if plan.memory is None:
        return (peak * EFFICIENCY[plan.quantization],) * 2
    known = {(own.quantization, own.memory): own.tokens_per_second for own in FAST_SPEEDS}
    speed, scale = known[plan.quantization, plan.memory], peak / (find_card("H200").bf16_tflops * 1e12)
    if plan.quantization != "fp8":
        return (scale * speed * FAST_FLOPS_PER_TOKEN,) * 2
    rest = known["none", "keep" if plan.memory == "ready" else plan.memory] * FAST_FLOPS_PER_TOKEN
    layer_seconds = 1 / speed - (FAST_FLOPS_PER_TOKEN - FAST_LAYER_FLOPS_PER_TOKEN) / rest
    return scale * FAST_LAYER_FLOPS_PER_TOKEN / layer_seconds, scale * rest


def micro_batch_seconds(shape: ModelShape, plan: MemoryPlan, card: Card, tokens: float, flops: float) -> float:
    """Seconds of forward and backward over ``tokens`` tokens of ``flops`` operations each."""
    if plan.whole_layers:  # so many layers are as quick as if all kept everything, but nothing is recorded
        kept, again = replace(plan, memory="keep", whole_layers=0, blockwise=False), replace(plan, whole_layers=0)
        share = plan.whole_layers / shape.layers
        times = [micro_batch_seconds(shape, own, card, tokens, flops) for own in (kept, again)]
        return share * times[0] + (1 - share) * times[1]
    in_layers = min(flops, layer_flops_per_token(shape, plan))
    layer_rate, rest_rate = rates(plan, card)
    computing = tokens * (in_layers / layer_rate + (flops - in_layers) / rest_rate)
    if plan.compute_bytes == 4:
        computing *= 8  # fp32 without tensor cores; cards differ between 5 and 16 times
    a_layer = LAUNCH_SECONDS_PER_LAYER * (4 / 3 if plan.checkpointing else 1)
    floor = FAST_LAUNCH_SECONDS.get(plan.memory, a_layer) * shape.layers
    if plan.memory in KEEPS_ALL and plan.blockwise:
        floor = 0.0  # recorded as CUDA graphs
    return max(floor, computing)
