"""The variants that are measured, and what a process needs to know of the one it runs.

Enters: names. Leaves: ``Variant`` and ``Job``, which travel between processes as JSON.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

LAYERS_HEADS_WIDTH = {"tiny": (2, 4, 64), "124m": (12, 12, 768), "350m": (24, 16, 1024)}


@dataclass(frozen=True)
class Variant:
    """One way to train a GPT.

    Attributes:
        name: in tables.
        peer: fintune, nanogpt or nanochat.
        kind: of fintune's GPT: optimised or baseline.
        precision: bf16 (autocast, or what the peer does), tf32 (fp32 with products in TF32) or fp32 (without).
        options: of ``RowOptions``, fintune's alone.
        optimizer: muon, muon_plain (PyTorch's loop over matrices) or adamw.
        path: rows (``RowLoss``) or recipe (``EdgeModel`` as ``fintune train`` runs it).
        wide_heads: half as many heads, twice as wide.
        horizon: for the race: the share of the baseline's steps that the schedule is made for.
        rate: peak learning rate of Muon; AdamW's is that of GPT-2 for its size.
    """

    name: str
    peer: str = "fintune"
    kind: str = "optimised"
    precision: str = "bf16"
    options: dict[str, Any] = field(default_factory=dict)
    optimizer: str = "muon"
    path: str = "rows"
    wide_heads: bool = False
    horizon: float = 1.0
    rate: float = 0.02


@dataclass(frozen=True)
class Job:
    """What a process runs.

    Attributes:
        variant: which.
        size: tiny, 124m or 350m.
        device: cuda or cpu.
        tokens: uint16 file.
        vocabulary: tokens of its tokenizer; every model rounds it up to a multiple of 128.
        end_of_document: token, or None.
        length: tokens of a row.
        rows_per_step: rows behind each update, the same for all.
        candidates: rows computed at once that are tried; the fastest is kept. Where none fits, half as many are tried.
        steps: of the baseline in the race.
        validate_every: steps between validations in the race.
        validation_rows: at the end of the file; no variant trains on them.
        peers: folders by peer.
        folder: for the process's files.
        compiles: False leaves functions as they are, for quick smoke tests.
    """

    variant: Variant
    size: str
    device: str
    tokens: str
    vocabulary: int
    end_of_document: int | None
    length: int
    rows_per_step: int
    candidates: tuple[int, ...]
    steps: int
    validate_every: int
    validation_rows: int
    peers: dict[str, str]
    folder: str
    compiles: bool = True


def job_from(values: dict[str, Any]) -> Job:
    """The job that was written as JSON."""
    return Job(**{**values, "variant": Variant(**values["variant"]), "candidates": tuple(values["candidates"])})


PEERS = (
    Variant("nanogpt", "nanogpt", optimizer="own"),
    Variant("nanochat", "nanochat", optimizer="own"),
)
OURS = (
    Variant("fintune"),
    Variant("fintune-logits", options={"head": "logits"}),
    Variant("fintune-fp8-head", options={"head": "fp8"}),
    Variant("fintune-graph-heads", options={"fused_heads": False}),
    Variant("fintune-cudnn", options={"attention": "cudnn"}),
    Variant("fintune-cudnn-logits", options={"attention": "cudnn", "head": "logits"}),
    Variant("fintune-flash", options={"attention": "flash"}),
    Variant("fintune-flex", options={"attention": "flex"}),
    Variant("fintune-chunk2k", options={"chunk_rows": 2048}),
    Variant("fintune-separate", options={"joined": False}),
    Variant("fintune-blocks", options={"compiled": "blocks"}),
    Variant("fintune-autotune", options={"mode": "max-autotune-no-cudagraphs"}),
    Variant("fintune-muon-plain", optimizer="muon_plain"),
    Variant("fintune-adamw", optimizer="adamw"),
    Variant("fintune-recipe", path="recipe"),
    Variant("fintune-gpt2", kind="baseline", optimizer="adamw"),
)
# Heads of 128, which attention kernels like better; nanochat's own default. A group of its own: another shape.
WIDE = (
    Variant("nanochat-wide", "nanochat", optimizer="own", wide_heads=True),
    Variant("fintune-wide", wide_heads=True),
    Variant("fintune-wide-cudnn", options={"attention": "cudnn"}, wide_heads=True),
)
BASELINE = Variant(
    "baseline",
    kind="baseline",
    precision="fp32",
    optimizer="adamw",
    options={"compiled": "no", "attention": "eager", "head": "logits", "joined": False},
)
BASELINE_TF32 = replace(BASELINE, name="baseline-tf32", precision="tf32")
BASELINE_FAST = Variant("baseline-bf16-compiled", kind="baseline", optimizer="adamw", options={"head": "logits"})
BASELINES = (BASELINE, BASELINE_TF32, BASELINE_FAST)  # the first that ended is what others are compared with
