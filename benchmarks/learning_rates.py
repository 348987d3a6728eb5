"""Chooses a shipped recipe's learning rate on validation, then trains and scores it on the test rows for each seed.

Every rate is trained at once, with the recipe's own seed, on one GPU; the least validation loss of the last step
decides, among runs that came to their end. Only then are test rows looked at, by ``fintune train`` as a user calls it.
Started again, it goes on with what is missing. Needs FINTUNE_DATA_DIR.

    python benchmarks/learning_rates.py finsight-chat-smollm2 --rates 1.8e-3 3.6e-3 7.2e-3 --output-dir runs/chat
    python benchmarks/learning_rates.py news-cpt-smollm2 --rates 3e-4 1e-3 3e-3 --seeds 17 1 --output-dir runs/cpt
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

# The search looks at validation alone: what is scored after training is one validation row.
SEARCH = (
    "evaluation.split=validation", "evaluation.tasks=null", "evaluation.limit=1", "evaluation.base=false",
    "evaluation.baselines=[]", "evaluation.abstention=false", "report.enabled=false", "training.tracking=[]",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--rates", nargs="+", required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[17])
    parser.add_argument("--set", nargs="*", default=[], help="changes for every run, such as training.max_steps=2")
    parser.add_argument("--output-dir", type=Path, required=True)
    arguments = parser.parse_args()
    place: Path = arguments.output_dir
    place.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    rates = arguments.rates if len(arguments.rates) > 1 else []  # one needs no search
    tried = {f"rate-{rate}": [*SEARCH, f"training.learning_rate={rate}"] for rate in rates}
    run_all(arguments.recipe, tried, place, arguments.set)
    losses = {rate: validation_losses(place / f"rate-{rate}") for rate in rates}
    if rates:
        (place / "rates.json").write_text(json.dumps(losses, indent=2), encoding="utf-8")
    for rate, by_step in losses.items():
        print(f"{rate}: {by_step or 'not trained to its end, see its log'}", flush=True)
    best = least(losses) if rates else arguments.rates[0]
    if best is None:
        sys.exit(f"No rate was tried to its end; the logs are in {place}.")
    print(f"chosen after {time.monotonic() - started:.0f} s: {best}", flush=True)
    final = {f"rate-{best}-seed-{seed}": [f"training.learning_rate={best}", f"seed={seed}"] for seed in arguments.seeds}
    failed = run_all(arguments.recipe, final, place, arguments.set)
    print(json.dumps({"rate": best, "elapsed_s": round(time.monotonic() - started), "without_results": failed}))
    sys.exit(1 if failed else 0)


def run_all(recipe: str, runs: Mapping[str, Sequence[str]], place: Path, changes: Sequence[str]) -> list[str]:
    """``fintune train`` of every run that has no results, all at once; names of those that have none afterwards."""
    waiting = [name for name in runs if not (place / name / "results.json").is_file()]
    processes = []
    for name in waiting:
        command = [sys.executable, "-m", "fintune.cli", "train", recipe, *runs[name], *changes]
        command += ["--output-dir", str(place / name), "--quiet"]
        with (place / f"{name}.log").open("a", encoding="utf-8") as log:
            processes.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT))
    for process in processes:
        process.wait()
    return [name for name in runs if not (place / name / "results.json").is_file()]


def least(losses: Mapping[str, Mapping[int, float]]) -> str | None:
    """The rate with the least loss at the last step that any has; None if none has a number there."""
    last = max((step for by_step in losses.values() for step in by_step), default=0)
    there = {rate: by_step[last] for rate, by_step in losses.items() if math.isfinite(by_step.get(last, math.nan))}
    return min(there, key=lambda rate: there[rate], default=None)


def validation_losses(run: Path) -> dict[int, float]:
    """Nats a supervised token by step; nothing unless the run came to its end."""
    if not (run / "results.json").is_file():
        return {}
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {row["step"]: round(row["eval_loss"], 4) for row in rows if "eval_loss" in row}


if __name__ == "__main__":
    main()
