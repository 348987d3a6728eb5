"""Claim: whether tuning SmolLM2-135M-Instruct on 88 stocks' weeks forecasts anything, in five minutes of one GPU.

Trains two variants of ``dow30-forecaster-smollm2`` (the label alone; three sections with headlines of the prompt), both
at once on one GPU, and scores them and the base on the same test weeks: written forecasts, and up or down by
likelihood. ``fintune backtest`` then sets all side by side; ``variants.md`` has its tables and a verdict. Started
again, it goes on with what is missing. Needs FINTUNE_DATA_DIR with stock_acl18/.

    python benchmarks/forecaster_variants.py --prices $FINTUNE_DATA_DIR/stock_acl18/prices_raw.csv.gz \
        --output-dir runs/forecaster --limit 200 --time-limit 300
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import fintune
from fintune.forecasting.assessment import Assessment
from fintune.metrics.forecast import PairedDifference
from fintune.reporting.backtest import assessment_sentences, assessment_tables, name_of
from fintune.reporting.markup import markdown_table
from fintune.reporting.wording import interval
from fintune.schema.results import SIGNIFICANT

RECIPE = "dow30-forecaster-smollm2"
VARIANTS: Mapping[str, tuple[str, str]] = {"label": ("label", "short"), "extractive": ("extractive", "fingpt")}
"""By name: what is learnt, and the prompt that asks for it."""
WRITTEN, RANKED = "weekly_acl18_forecast", "weekly_acl18"
FEW_WORDS = ("report.enabled=false", "training.tracking=[]", "evaluation.baselines=[]", "evaluation.abstention=false")
LENGTHS = {"label": "768", "extractive": "1536"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains, evaluates, backtests and writes; 1 if a variant has no results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prices", type=Path, required=True)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/forecaster"))
    parser.add_argument("--limit", type=int, help="test stock-weeks of each variant; all 843 without")
    parser.add_argument("--time-limit", type=float, default=300.0, help="seconds for training and evaluation together")
    parser.add_argument("--set", nargs="*", default=[], help="changes to every recipe, such as training.max_steps=2")
    given = parser.parse_args(arguments)
    given.output_dir.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    failed = run_all(given.output_dir, given.limit, given.set, given.time_limit)
    print(json.dumps({"elapsed_s": round(time.monotonic() - began), "without_results": failed}), flush=True)
    if failed:
        print(f"Without results: {', '.join(failed)}. Their logs are in {given.output_dir}; start it again to go on.")
        return 1
    print(write_variants(given.output_dir, given.prices))
    return 0


def command(variant: str, place: Path, limit: int | None, changes: Sequence[str]) -> list[str]:
    """``fintune train`` of one variant, which goes on where an earlier start was stopped."""
    config, prompt = VARIANTS[variant]
    tasks = f"[{{name: {WRITTEN}, config: {config}, prompt: {prompt}}}, {{name: {RANKED}, prompt: short}}]"
    settings = [
        *FEW_WORDS,
        f"name={variant}",
        f"data.tasks={tasks}",
        f"evaluation.tasks={tasks}",
        f"training.max_length={LENGTHS[variant]}",
        *([f"evaluation.limit={limit}"] if limit else []),
        *changes,
    ]
    words = ["train", RECIPE, *settings, "--output-dir", str(place / variant), "--quiet"]
    return [sys.executable, "-m", "fintune.cli", *words]


def run_all(place: Path, limit: int | None, changes: Sequence[str], time_limit_s: float) -> list[str]:
    """Runs the variants that have no results, all at once; those still without any when the time is over are stopped.

    Returns:
        Names of the variants that have no results.
    """
    processes, until = [], time.monotonic() + time_limit_s
    for variant in VARIANTS:
        if not (place / variant / "results.json").is_file():
            with (place / f"{variant}.log").open("a", encoding="utf-8") as log:
                processes.append(
                    subprocess.Popen(
                        command(variant, place, limit, changes),
                        stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                    )
                )  # fmt: skip
    for process in processes:
        try:
            process.wait(max(until - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
    return [variant for variant in VARIANTS if not (place / variant / "results.json").is_file()]


def write_variants(place: Path, prices: Path) -> str:
    """Backtests all variants and the base by both kinds of answer; writes ``variants.md`` and returns the verdict."""
    runs = [place / variant for variant in VARIANTS]
    found = {
        task: fintune.backtest(runs, prices=prices, task=task, output_dir=place / task) for task in (WRITTEN, RANKED)
    }
    said = "\n".join(f"- {verdict(one)}" for one in found.values())
    parts = [f"# Variants of {RECIPE}", said]
    for task, one in found.items():
        parts += [f"## {task}", *(f"{markdown_table(table)}" for table in assessment_tables(one))]
        parts.append("\n".join(f"- {sentence}" for sentence in assessment_sentences(one)))
    (place / "variants.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return said


def verdict(found: Assessment) -> str:
    """One sentence: which variants beat every baseline in direction, and which strategies differ from chance."""
    shown = ", ".join(
        f"{name_of(one.name)} {interval(found.scores[one.name].metrics['direction_accuracy'])}"
        for one in found.strategies
    )
    better = [one.name for one in found.strategies if _beats_all(one.name, found.comparisons)]
    ahead = [one.name for one in found.strategies if "ahead of earning nothing" in one.sentence]
    n_weeks = next(iter(found.scores.values())).n_weeks
    direction = f"{_listed(better)} more often right than every baseline" if better else "none beats every baseline"
    trading = f"{_listed(ahead)} ahead in trading" if ahead else "no strategy can be told from chance"
    return f"Direction accuracy over {n_weeks} weeks: {shown}; {direction}, and {trading}."


def _beats_all(system: str, comparisons: Sequence[PairedDifference]) -> bool:
    """Whether a system is ahead of all baselines in direction after Holm's correction."""
    made = [one for one in comparisons if one.system == system and one.metric == "direction_accuracy"]
    return bool(made) and all(one.difference.value > 0 and one.holm_p < SIGNIFICANT for one in made)


def _listed(names: Sequence[str]) -> str:
    return f"{' and '.join(map(name_of, names))} {'are' if len(names) > 1 else 'is'}"


if __name__ == "__main__":
    raise SystemExit(main())
