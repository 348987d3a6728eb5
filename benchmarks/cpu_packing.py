"""Claim: on PhraseBank with the FLARE prompt, sharing prefixes computes about half the tokens and saves CPU time.

Counts the tokens of one epoch exactly, at the default budget and step size, then times forward and backward passes over
the same optimiser steps with each packing, in turn and in one process, so that all see the same machine.

    python benchmarks/cpu_packing.py --data Sentences_50Agree.txt --steps 8 --json out.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from fintune.environment import describe_environment
from fintune.inference.forward import EdgeModel
from fintune.models import attach_adapter, load_base
from fintune.schema.recipe import AdapterSection, ModelSection, Packing, TaskSection, TrainingSection
from fintune.tasks.loading import load_task
from fintune.trees.chat import ChatFormat, encode_all
from fintune.trees.plan import StepPlan, make_step
from fintune.trees.prefix_tree import TokenSample

PACKINGS: tuple[Packing, ...] = ("tree", "sequence", "none")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="PhraseBank file, folder or hub id")
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--quantization", default="none")
    parser.add_argument("--steps", type=int, default=8, help="optimiser steps timed with each packing")
    parser.add_argument("--padded-rows", type=int, default=8, help="rows of a padded batch; other packings use tokens")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    task = load_task(TaskSection(name="fpb", source=arguments.data, prompt="flare"))
    section = ModelSection(base=arguments.base, quantization=arguments.quantization)
    base = load_base(section, device=torch.device("cpu"), for_training=True)
    chat = ChatFormat(base.tokenizer, 512)
    samples = [e.training_sample(i) for i, e in enumerate(encode_all(chat, task.splits["train"]).encoded)]
    defaults = TrainingSection()
    plan = StepPlan(tuple(range(len(samples))), defaults.samples_per_step, seed=17)
    drawn = [[samples[i] for i in plan.indices(step)] for step in range(plan.steps_per_epoch)]

    result: dict[str, object] = {"environment": describe_environment(), "samples": len(samples)}
    for packing in PACKINGS:
        result[f"epoch_tokens_{packing}"] = count_tokens(drawn, packing, budget(packing, drawn, arguments))
    result["sample_tokens"] = sum(len(s) for s in samples)
    model = EdgeModel(attach_adapter(base, AdapterSection(), seed=17), "sdpa")
    model.model.train()
    seconds: dict[str, list[float]] = {packing: [] for packing in PACKINGS}
    losses: dict[str, list[float]] = {packing: [] for packing in PACKINGS}
    run_step(model, drawn[0], "tree", 2048)  # warm-up
    for step in range(arguments.steps):
        for packing in PACKINGS:
            started = time.perf_counter()
            losses[packing].append(run_step(model, drawn[step], packing, budget(packing, [drawn[step]], arguments)))
            seconds[packing].append(time.perf_counter() - started)
    timed_samples = sum(len(drawn[step]) for step in range(arguments.steps))
    for packing in PACKINGS:
        result[f"seconds_{packing}"] = [round(s, 2) for s in seconds[packing]]
        result[f"epoch_seconds_{packing}"] = round(sum(seconds[packing]) / timed_samples * len(samples), 1)
    ratios = [none / tree for none, tree in zip(seconds["none"], seconds["tree"], strict=True)]
    result["padded_over_tree"] = [round(min(ratios), 2), round(statistics.median(ratios), 2), round(max(ratios), 2)]
    result["largest_loss_difference"] = max(
        abs(a - b) for packing in PACKINGS for a, b in zip(losses[packing], losses["tree"], strict=True)
    )
    print(json.dumps(result, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2), encoding="utf-8")


def budget(packing: Packing, drawn: list[list[TokenSample]], arguments: argparse.Namespace) -> int:
    """The default token budget; for padded rows, room for ``--padded-rows`` of the longest."""
    if packing != "none":
        return TrainingSection().tokens_per_batch
    return arguments.padded_rows * max(len(sample) for step in drawn for sample in step)


def count_tokens(drawn: list[list[TokenSample]], packing: Packing, budget: int) -> int:
    """Tokens computed in one epoch, padding included."""
    return sum(len(batch) for step in drawn for batch in make_step(step, packing, budget).batches)


def run_step(model: EdgeModel, samples: list[TokenSample], packing: Packing, budget: int) -> float:
    """One optimiser step's forward and backward; returns its loss."""
    step = make_step(samples, packing, budget)
    model.model.zero_grad()
    total = 0.0
    for batch in step.batches:
        loss = model.loss_sum(batch) / step.total_weight
        loss.backward()
        total += loss.item()
    return total


if __name__ == "__main__":
    main()
