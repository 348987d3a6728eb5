"""Claim: the quickstart's training takes a fraction of the time that plain Trainer and peft take on the same steps.

Runs the same optimiser steps of the quickstart (NF4 base, LoRA on all linear layers, 8 tweets a step) in turn: with
``transformers.Trainer`` on padded batches, with our packing on the plain path, and with our layers, with and without
weights held unpacked. All start from the same adapter, so their losses can be compared.

    python benchmarks/quickstart_cpu.py --steps 6 --json out.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from fintune.environment import describe_environment
from fintune.inference.forward import EdgeModel
from fintune.models import attach_adapter, load_base
from fintune.schema.loading import load_recipe
from fintune.schema.recipe import Recipe
from fintune.tasks.loading import load_task
from fintune.trees.chat import ChatFormat, encode_all
from fintune.trees.packing import pad_samples
from fintune.trees.plan import StepPlan, make_step
from fintune.trees.prefix_tree import TokenSample

WAYS = {
    "packed, plain layers": (False, "keep"),
    "packed, our layers": (True, "keep"),
    "weights unpacked": (True, "ready"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6, help="optimiser steps timed each way, after one that is not")
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    recipe = load_recipe(arguments.recipe)
    drawn = drawn_samples(recipe, arguments.steps + 1)
    result: dict[str, Any] = {"environment": describe_environment(), "recipe": arguments.recipe}
    seconds, losses = {"Trainer and peft": trainer_seconds(recipe, drawn)}, {}
    for name, (fast, memory) in WAYS.items():
        seconds[name], losses[name] = our_seconds(recipe, drawn, fast, memory)
    plain = losses["packed, plain layers"]
    for name, found in seconds.items():
        row: dict[str, Any] = {"seconds": [round(value, 2) for value in found], "median": statistics.median(found)}
        if name in losses:
            row["largest_loss_difference"] = max(abs(a - b) for a, b in zip(losses[name], plain, strict=True))
        result[name] = row
        print(f"{name:24} {row['median']:6.2f} s a step  {row['seconds']}  {row.get('largest_loss_difference', '')}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2), encoding="utf-8")


def drawn_samples(recipe: Recipe, steps: int) -> list[list[TokenSample]]:
    """The samples of the first steps."""
    base = load_base(recipe.model, device=torch.device("cpu"), for_training=True)
    rows = load_task(recipe.data.tasks[0]).splits["train"]
    chat = ChatFormat(base.tokenizer, recipe.training.max_length)
    samples = [each.training_sample(i) for i, each in enumerate(encode_all(chat, rows).encoded)]
    plan = StepPlan(tuple(range(len(samples))), recipe.training.samples_per_step, recipe.seed)
    return [[samples[i] for i in plan.indices(step)] for step in range(steps)]


def trainer_seconds(recipe: Recipe, drawn: list[list[TokenSample]]) -> list[float]:
    """Seconds of each step of ``transformers.Trainer`` after the first."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    base = load_base(recipe.model, device=torch.device("cpu"), for_training=True)
    model = attach_adapter(base, recipe.adapter, seed=recipe.seed)
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    def collate(samples: list[TokenSample]) -> dict[str, torch.Tensor]:
        batch = pad_samples(samples)
        labels = torch.full_like(batch.tokens, -100)
        labels[batch.edge_row, batch.edge_column + 1] = batch.edge_target
        return {"input_ids": batch.tokens, "attention_mask": batch.attention_mask, "labels": labels}

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=recipe.training.samples_per_step,
            max_steps=len(drawn),
            learning_rate=recipe.training.learning_rate,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        data: Any = [sample for step in drawn for sample in step]
        trainer: Any = Trainer(model, arguments, train_dataset=data, data_collator=collate, callbacks=[Clock()])
        trainer._get_train_sampler = lambda *_: None  # in the order given, as the others
        trainer.train()
    return [b - a for a, b in zip(ends, ends[1:], strict=False)]


def our_seconds(
    recipe: Recipe, drawn: list[list[TokenSample]], fast: bool, memory: Any
) -> tuple[list[float], list[float]]:
    """Seconds of each step after the first, and the losses of all."""
    base = load_base(recipe.model, device=torch.device("cpu"), for_training=True)
    adapted = attach_adapter(base, recipe.adapter, seed=recipe.seed)
    model = EdgeModel(adapted, "sdpa", base.dtype, fast=fast)
    model.memory = memory
    adapted.train()
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=recipe.training.learning_rate)
    seconds, losses = [], []
    for samples in drawn:
        started = time.perf_counter()
        step = make_step(samples, recipe.training.packing, recipe.training.tokens_per_batch)
        total = 0.0
        for batch in step.batches:
            loss = model.loss_sum(batch) / step.total_weight
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(trained, recipe.training.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
        losses.append(total)
    return seconds[1:], losses


if __name__ == "__main__":
    main()
