"""The optimisations that are measured, what each needs, and the variants in which one of them is switched.

Enters: a family of runs and a kind of device. Leaves: ``Variant``s: the base, the full set, and each optimisation added
to the base, and switched in the full set. What adds one adds what it needs; what takes one away takes what needs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Family = Literal["gpt", "llm"]
Origin = Literal["base", "full"]
FAMILIES: dict[Family, str] = {"gpt": "A GPT trained from scratch", "llm": "A language model fine-tuned"}

_ONLY_CUDA = "needs a CUDA device"
_SLOW_HERE = "left out of the full set on the CPU, where it costs time instead of saving it"


@dataclass(frozen=True)
class Optimisation:
    """One thing that can be on or off.

    Attributes:
        key: short identifier, unique within the family.
        family: the kind of run it belongs to.
        name: as people read it.
        without: what stands in its place while it is off.
        needs: keys of what it cannot be on without.
        outside: why it is not in the full set, by kind of device (``cpu``, ``cuda``).
        impossible: why it cannot be had at all, by kind of device.
    """

    key: str
    family: Family
    name: str
    without: str
    needs: tuple[str, ...] = ()
    outside: tuple[tuple[str, str], ...] = ()
    impossible: tuple[tuple[str, str], ...] = ()

    def why_outside(self, device: str) -> str:
        """Why it is not in the full set on a kind of device; empty where it is."""
        return dict(self.outside).get(device, "") or self.why_impossible(device)

    def why_impossible(self, device: str) -> str:
        """Why it cannot be had on a kind of device; empty where it can."""
        return dict(self.impossible).get(device, "")


def _both(reason: str) -> tuple[tuple[str, str], ...]:
    return ("cpu", reason), ("cuda", reason)


_CPU_SLOW = (("cpu", _SLOW_HERE),)
_TRADE = _both("left out of the full set: it pays time for memory, which is not short here")

OPTIMISATIONS: tuple[Optimisation, ...] = (
    Optimisation("bf16", "gpt", "bf16", "fp32 products", outside=_CPU_SLOW),
    Optimisation("compile", "gpt", "compiled blocks", "eager blocks", outside=_CPU_SLOW),
    Optimisation("packing", "gpt", "document packing", "one document a row, padded"),
    Optimisation("masks", "gpt", "document masks", "documents of a row see each other", ("packing",)),
    Optimisation("fused_loss", "gpt", "fused loss", "whole logits"),
    Optimisation("checkpointing", "gpt", "recomputed layers", "activations kept", outside=_TRADE),
    Optimisation("sdpa", "gpt", "SDPA", "plain softmax attention"),
    Optimisation("kv_cache", "gpt", "KV cache", "all tokens read again for each one written"),
    Optimisation("muon", "gpt", "Muon and AdamW", "AdamW alone"),
    Optimisation("wsd", "gpt", "warm-up, plateau, decay", "warm-up and cosine"),
    Optimisation("rope", "gpt", "rotary positions", "learned positions"),
    Optimisation("rmsnorm", "gpt", "RMSNorm", "LayerNorm"),
    Optimisation("qk_norm", "gpt", "QK norm", "none"),
    Optimisation("relu2", "gpt", "ReLU²", "GELU"),
    Optimisation(
        "swiglu", "gpt", "SwiGLU", "ReLU² or GELU", outside=_both("not in the full set, where ReLU² has its place")
    ),
    Optimisation("no_biases", "gpt", "no biases", "biases"),
    Optimisation("untied", "gpt", "untied head", "the head is the embedding"),
    Optimisation("softcap", "gpt", "soft cap on logits", "none"),
    Optimisation("residual", "gpt", "bf16 residual stream", "fp32 between blocks", ("bf16",), outside=_CPU_SLOW),
    Optimisation("fan_in", "gpt", "initialisation by fan-in", "GPT-2's"),
    Optimisation("zero_outputs", "gpt", "zero outputs", "random outputs"),
    Optimisation("vocabulary", "gpt", "vocabulary in tiles of 128", "as the tokenizer has it"),
    Optimisation("lora", "llm", "LoRA", "all weights trained"),
    Optimisation("nf4", "llm", "NF4 weights", "weights in the type of products", ("lora",), outside=_CPU_SLOW),
    Optimisation("bf16", "llm", "bf16", "fp32 products", outside=_CPU_SLOW),
    Optimisation("packing", "llm", "packing", "padded rows"),
    Optimisation("tree", "llm", "tree sharing", "shared prompts computed for each sample", ("packing",)),
    Optimisation("fast_layers", "llm", "our layers", "transformers' layers, peft's adapters", ("lora", "packing")),
    Optimisation("fused_loss", "llm", "fused loss", "whole logits"),
    Optimisation("checkpointing", "llm", "recomputed layers", "activations kept", outside=_TRADE),
    Optimisation(
        "graphs",
        "llm",
        "CUDA graphs",
        "each kernel launched",
        ("fast_layers", "fused_loss"),
        impossible=(("cpu", _ONLY_CUDA),),
    ),
    Optimisation("kv_cache", "llm", "KV cache", "all tokens read again for each one written"),
)


@dataclass(frozen=True)
class Variant:
    """One combination of switches.

    Attributes:
        family: the kind of run.
        origin: the combination that it differs from.
        key: the optimisation that was switched; empty for the origin itself.
        switches: keys of all that is on, sorted.
    """

    family: Family
    origin: Origin
    key: str
    switches: tuple[str, ...]

    @property
    def name(self) -> str:
        """``base``, ``base+rope`` or ``full-rope``."""
        sign = "" if not self.key else "+" if self.key in self.switches else "-"
        return f"{self.origin}{sign}{self.key}"


def optimisations(family: Family) -> list[Optimisation]:
    """Those of one family, in the order of the table."""
    return [one for one in OPTIMISATIONS if one.family == family]


def full_set(family: Family, device: str) -> frozenset[str]:
    """What is on together on a kind of device."""
    return frozenset(one.key for one in optimisations(family) if not one.why_outside(device))


def variants(family: Family, device: str) -> list[Variant]:
    """Base, full set, and both with each optimisation switched, as far as the kind of device has it."""
    full = full_set(family, device)
    found = [_variant(family, "base", "", frozenset()), _variant(family, "full", "", full)]
    for one in optimisations(family):
        if not one.why_impossible(device):
            found.append(_variant(family, "base", one.key, _with(family, frozenset(), one.key)))
            switched = _without(family, full, one.key) if one.key in full else _with(family, full, one.key)
            found.append(_variant(family, "full", one.key, switched))
    return found


def companions(variant: Variant, device: str) -> list[str]:
    """Keys of what was switched along with the optimisation of a variant, because one needs the other."""
    origin = frozenset[str]() if variant.origin == "base" else full_set(variant.family, device)
    return sorted(origin.symmetric_difference(variant.switches) - {variant.key})


def _variant(family: Family, origin: Origin, key: str, switches: frozenset[str]) -> Variant:
    return Variant(family, origin, key, tuple(sorted(switches)))


def _with(family: Family, switches: frozenset[str], key: str) -> frozenset[str]:
    one = next(one for one in optimisations(family) if one.key == key)
    for needed in one.needs:
        switches = _with(family, switches, needed)
    return switches | {key}


def _without(family: Family, switches: frozenset[str], key: str) -> frozenset[str]:
    for one in optimisations(family):
        if key in one.needs and one.key in switches:
            switches = _without(family, switches, one.key)
    return switches - {key}
