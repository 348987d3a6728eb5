"""Claim: recipes for cards of 16 and 24 GB run there, in fp16 with loss scaling and without FlexAttention too.

Fills a larger card until only so much is free, then runs a recipe's first steps as ``fintune train`` would: the planner
sees a small card. What it chose and predicted stands beside what was needed. A card of that size has never been used.

    python benchmarks/capped_card.py --gib 14.6 finllama-sentiment model.base=FOLDER model.quantization=nf4 \
        model.dtype=float16 model.attention=sdpa data.tasks.0.source=FOLDER
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import torch

import fintune

GIB = 2**30
QUIET = (
    "evaluation.base=false",
    "evaluation.baselines=[]",
    "evaluation.abstention=false",
    "evaluation.limit=16",
    "evaluation.decoding=constrained",
    "report.enabled=false",
    "training.tracking=[]",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--gib", type=float, required=True, help="memory to leave free")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    ballast = fill(arguments.gib)
    overrides = [*QUIET, f"training.max_steps={arguments.steps}", *arguments.overrides]
    with tempfile.TemporaryDirectory() as folder:
        outcome = fintune.train(arguments.recipe, overrides=overrides, output_dir=Path(folder) / "run", progress=False)
        history = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
    found = summary(outcome.facts, history, ballast.numel()) | {"recipe": arguments.recipe, "gib": arguments.gib}
    print(json.dumps(found, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2), encoding="utf-8")


def fill(gib: float) -> torch.Tensor:
    """All memory but ``gib`` GiB, the context of this process counted as if it lay in them."""
    if not torch.cuda.is_available():
        return torch.empty(0)
    free, _ = torch.cuda.mem_get_info()  # the context exists now
    return torch.empty(max(0, free + context_bytes() - int(gib * GIB)), dtype=torch.uint8, device="cuda")


def context_bytes() -> int:
    """What the device holds beside this process's tensors, which is its context on a machine of one's own."""
    free, total = torch.cuda.mem_get_info()
    return int(total - free - torch.cuda.memory_reserved())


def summary(facts: dict[str, Any], history: list[dict[str, Any]], ballast: int) -> dict[str, Any]:
    """What was chosen, predicted and needed; losses must be numbers."""
    losses = [line["loss"] for line in history if "loss" in line]
    assert losses and all(map(math.isfinite, losses)), losses
    names = ("steps", "activations", "tokens_per_batch", "memory_retries", "skipped_steps")
    return {
        **{name: facts[name] for name in names},
        "predicted_gib": round((facts["predicted_bytes"] or 0) / GIB, 2),
        "free_gib": round((facts["free_bytes"] or 0) / GIB, 2),
        "peak_gib": round((facts["peak_bytes"] - ballast) / GIB, 2),
        "losses": [round(loss, 4) for loss in losses],
    }


if __name__ == "__main__":
    main()
