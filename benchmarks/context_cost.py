"""Claim: what a training step costs follows the tokens that differ and the context each of them sees.

Takes steps over single documents of growing length, then over samples that share a prompt, one to 64 of them, and draws
tokens a second against both: tokens of the samples, as trainers count that share nothing, and tokens computed.

    python benchmarks/context_cost.py --shape 1b --work-dir /tmp/peers --figure cost.png --json cost.json
    python benchmarks/context_cost.py --shape tiny --device cpu --lengths 32 64 --prompt 16 --own 8   # a smoke test
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peer_runs.fintune_loop import Prepared, fintune_step, supervised, whole
from peer_runs.settings import LINEAR_LAYERS, SEED
from peer_runs.shapes import SHAPES, write_checkpoint

from fintune.environment import describe_environment
from fintune.trees.plan import make_step
from fintune.trees.prefix_tree import TokenSample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="1b")
    parser.add_argument("--quantization", default="nf4")
    parser.add_argument("--lengths", nargs="+", type=int, default=[512, 2048, 8192, 32768])
    parser.add_argument("--sharing", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--prompt", type=int, default=1024, help="tokens that samples share")
    parser.add_argument("--own", type=int, default=64, help="tokens of each sample behind them")
    parser.add_argument("--tokens", type=int, default=8192, help="computed at once, unless one document is longer")
    parser.add_argument("--steps", type=int, default=5, help="timed, after three that are not")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--work-dir", type=Path, default=Path(tempfile.gettempdir()) / "peers")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    device, folder = torch.device(arguments.device), arguments.work_dir / f"model-{arguments.shape}"
    write_checkpoint(SHAPES[arguments.shape], folder, device, None)
    most = max([arguments.tokens, *arguments.lengths])
    ready = fintune_step(
        str(folder), device, arguments.quantization, targets=LINEAR_LAYERS, tokens_at_once=most, memory="keep"
    )
    rng, vocabulary = np.random.default_rng(SEED), SHAPES[arguments.shape].vocabulary
    found: dict[str, Any] = {"environment": describe_environment(), "length": {}, "sharing": {}}
    for length in arguments.lengths:
        rows = max(1, arguments.tokens // length)
        samples = [whole(rng.integers(0, vocabulary, length)) for _ in range(rows)]
        found["length"][length] = measure(ready, samples, most, arguments.steps, device)
        print(length, found["length"][length], flush=True)
    for count in arguments.sharing:
        found["sharing"][count] = measure(
            ready, sharing(rng, vocabulary, count, arguments.prompt, arguments.own), most, arguments.steps, device
        )
        print(count, found["sharing"][count], flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2), encoding="utf-8")
    if arguments.figure:
        draw(found, arguments.figure)


def sharing(rng: np.random.Generator, vocabulary: int, count: int, prompt: int, own: int) -> list[TokenSample]:
    """Samples of one prompt, each with tokens of its own behind it, which are supervised."""
    shared = rng.integers(0, vocabulary, prompt)
    return [supervised(np.concatenate([shared, rng.integers(0, vocabulary, own)]), prompt) for _ in range(count)]


def measure(
    ready: Prepared, samples: Sequence[TokenSample], budget: int, steps: int, device: torch.device
) -> dict[str, float]:
    """Milliseconds of a step, and tokens a second: of the samples, and computed."""
    batches = make_step(samples, "tree", budget).batches
    for _ in range(3):
        ready.step(samples)
    wait(device)
    begun = time.perf_counter()
    for _ in range(steps):
        ready.step(samples)
    wait(device)
    seconds = (time.perf_counter() - begun) / steps
    return {
        "ms": round(1000 * seconds, 2),
        "sample_tokens_per_s": round(sum(map(len, samples)) / seconds),
        "distinct_tokens_per_s": round(sum(batch.real_tokens for batch in batches) / seconds),
    }


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def draw(found: dict[str, Any], file: Path) -> None:
    """Two panels, readable without colour."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.5), sharey=True)
    for panel, name, label in zip(
        panels, ("length", "sharing"), ("tokens of a document", "samples sharing a prompt"), strict=True
    ):
        at = [int(key) for key in found[name]]
        for key, style, legend in (
            ("sample_tokens_per_s", "o-", "tokens of the samples"),
            ("distinct_tokens_per_s", "s--", "tokens computed"),
        ):
            panel.plot(at, [row[key] for row in found[name].values()], style, color="black", label=legend)
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xlabel(label)
    panels[0].set_ylabel("tokens a second")
    panels[1].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(file, dpi=200)


if __name__ == "__main__":
    main()
