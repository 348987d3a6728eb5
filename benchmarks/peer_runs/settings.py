"""Which configurations are measured on which workload: each library as its documentation or its makers set it up.

Enters: nothing. Leaves: ``Setting`` by name for each workload, and the ``Job`` that a subprocess is handed as JSON.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

ATTENTION_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj")
LINEAR_LAYERS = (*ATTENTION_LAYERS, "gate_proj", "up_proj", "down_proj")
RANK, ALPHA, LEARNING_RATE, SEED = 16, 32, 2e-4, 17


@dataclass(frozen=True)
class Setting:
    """One configuration of one library.

    Attributes:
        name: what ``--only`` and the table call it.
        peer: unsloth, trl (TRL and PEFT) or fintune.
        quantization: how the frozen base is held: none (bf16), nf4 or fp8.
        at_once: rows of one forward pass; for fintune with ``tokens_at_once``, samples of a step.
        memory: keep all activations, recompute layers in the backward pass, or also offload their inputs to the CPU
            (Unsloth's default); fintune may also hold unpacked weights ready.
        liger: Liger's kernels replace those of transformers.
        packed: TRL packs samples to 2,048 tokens a row.
        tokens_at_once: fintune's packing budget; None takes what a dense workload computes at once.
        adapter: lora, or none for all weights.
        whole_layers: so many of fintune's layers keep everything, whatever ``memory`` says.
    """

    name: str
    peer: str
    quantization: str
    at_once: int
    memory: Literal["ready", "keep", "recompute", "offload"]
    liger: bool = False
    packed: bool = False
    tokens_at_once: int | None = None
    adapter: str = "lora"
    whole_layers: int = 0


@dataclass(frozen=True)
class Workload:
    """What is trained on: rows of a step (0: the setting decides), tokens of a row, adapted layers, settings."""

    rows: int
    length: int
    targets: tuple[str, ...]
    settings: tuple[Setting, ...]


@dataclass(frozen=True)
class Job:
    """One subprocess.

    Attributes:
        workload: its name.
        setting: what is measured.
        rows, length: a dense step.
        targets: layers that get an adapter.
        checkpoint: folder of the base model.
        phrasebank: file of tokenised samples.
        device: torch device.
        warm_up, repeats, window: steps before timing, timed windows, steps of a window.
        folder: for what the libraries and this benchmark write.
        started: when the subprocess was started, as ``time.time()``.
    """

    workload: str
    setting: Setting
    rows: int
    length: int
    targets: tuple[str, ...]
    checkpoint: str
    phrasebank: str | None
    device: str
    warm_up: int
    repeats: int
    window: int
    folder: str
    started: float

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return self.warm_up + self.repeats * self.window


def job_from(values: dict[str, Any]) -> Job:
    """The job that ``dataclasses.asdict`` wrote."""
    return Job(**{**values, "setting": Setting(**values["setting"]), "targets": tuple(values["targets"])})


DENSE = (
    Setting("unsloth-nf4", "unsloth", "nf4", 4, "offload"),
    Setting("unsloth-nf4-keep", "unsloth", "nf4", 2, "keep"),
    Setting("unsloth-bf16", "unsloth", "none", 4, "offload"),
    Setting("trl-nf4", "trl", "nf4", 4, "recompute"),
    Setting("trl-nf4-liger", "trl", "nf4", 4, "recompute", liger=True),
    Setting("trl-bf16", "trl", "none", 4, "recompute"),
    Setting("trl-bf16-liger", "trl", "none", 4, "recompute", liger=True),
    Setting("trl-bf16-liger-keep", "trl", "none", 1, "keep", liger=True),
    Setting("fintune-nf4", "fintune", "nf4", 4, "ready"),
    Setting("fintune-nf4-keep", "fintune", "nf4", 4, "keep"),
    Setting("fintune-nf4-recompute", "fintune", "nf4", 4, "recompute"),
    Setting("fintune-nf4-offload", "fintune", "nf4", 4, "offload"),
    Setting("fintune-nf4-offload-1", "fintune", "nf4", 4, "offload", whole_layers=1),
    Setting("fintune-bf16", "fintune", "none", 4, "ready"),
    Setting("fintune-bf16-recompute", "fintune", "none", 4, "recompute"),
    Setting("fintune-bf16-offload", "fintune", "none", 4, "offload"),
    Setting("fintune-fp8", "fintune", "fp8", 4, "ready"),
    Setting("fintune-fp8-recompute", "fintune", "fp8", 4, "recompute"),
    Setting("fintune-fp8-offload", "fintune", "fp8", 4, "offload"),
)
PHRASEBANK = (
    Setting("unsloth-padding-free", "unsloth", "nf4", 32, "offload"),
    Setting("unsloth-keep", "unsloth", "nf4", 64, "keep"),
    Setting("unsloth-packed", "unsloth", "nf4", 8, "offload", packed=True),
    Setting("trl-packed", "trl", "nf4", 8, "recompute", packed=True),
    Setting("trl-liger-packed", "trl", "nf4", 8, "recompute", liger=True, packed=True),
    Setting("trl-padded", "trl", "nf4", 32, "recompute"),
    # As many samples as eight rows of 2,048 tokens hold.
    Setting("fintune-nf4", "fintune", "nf4", 168, "ready", tokens_at_once=8192),
    Setting("fintune-nf4-recompute", "fintune", "nf4", 168, "recompute", tokens_at_once=8192),
    Setting("fintune-nf4-offload", "fintune", "nf4", 168, "offload", tokens_at_once=8192),
    Setting("fintune-bf16", "fintune", "none", 168, "ready", tokens_at_once=8192),
    Setting("fintune-fp8", "fintune", "fp8", 168, "ready", tokens_at_once=8192),
)
EFFICIENCY = (
    Setting("full", "fintune", "none", 4, "keep", adapter="none"),
    Setting("lora", "fintune", "none", 4, "keep"),
    Setting("qlora", "fintune", "nf4", 4, "keep"),
)
WORKLOADS = {
    "dense": Workload(4, 2048, LINEAR_LAYERS, DENSE),
    "minimal": Workload(2, 3500, ATTENTION_LAYERS, DENSE),
    "phrasebank": Workload(0, 2048, LINEAR_LAYERS, PHRASEBANK),
    "efficiency": Workload(4, 2048, LINEAR_LAYERS, EFFICIENCY),
}
