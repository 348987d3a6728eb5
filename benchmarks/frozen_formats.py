"""Claim: adapters learn on a base held in fp8 or NF4 what they learn on bf16.

The same steps of a shipped recipe (real weights, real sentences, the same draws and initial adapter) with the base held
in each format: the mean loss of the validation rows after them, for several seeds of the draws. Then the gradients of
one step at the adapter that bf16 has trained, against those of an fp32 base: cosine over all adapters, and the least of
any matrix. Bytes are those of the weights as stored.

    python benchmarks/frozen_formats.py --source FOLDER --steps 300 --json out.json
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fintune.environment import describe_environment
from fintune.evaluation.suite import load_run_data
from fintune.inference.forward import EdgeModel, choose_backend
from fintune.models import attach_adapter, load_base
from fintune.schema.loading import load_recipe
from fintune.schema.recipe import Recipe
from fintune.trees.chat import ChatFormat, encode_all
from fintune.trees.packing import Batch, pack_samples
from fintune.trees.plan import StepPlan, make_step
from fintune.trees.prefix_tree import TokenSample

FORMATS = {
    "fp32": ("none", "float32"),
    "bf16": ("none", "bfloat16"),
    "nf4": ("nf4", "bfloat16"),
    "fp8": ("fp8", "bfloat16"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="PhraseBank file, folder or hub id")
    parser.add_argument("--recipe", default="fpb-smollm2")
    parser.add_argument("--override", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), default=list(FORMATS))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[17, 1, 2])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    recipe = load_recipe(arguments.recipe, [f"data.tasks.0.source={arguments.source}", *arguments.override])
    found: dict[str, Any] = {"environment": describe_environment(), "formats": {}}
    weights: dict[str, Tensor] = {}
    exact: dict[str, Tensor] = {}
    order = sorted(arguments.formats, key=lambda name: name != "bf16")  # bf16 trains the adapter that all start from
    for name in order:
        one = Trial(recipe, name)
        losses = [one.train(arguments.steps, seed) for seed in arguments.seeds]
        if name == "bf16":
            weights = {key: p.detach().cpu().clone() for key, p in one.trained.items()}
        found["formats"][name] = {
            "weight_bytes": one.weight_bytes,
            "validation_loss": [round(loss, 5) for loss in losses],
            "mean": round(statistics.mean(losses), 5),
        }
        print(name, found["formats"][name], flush=True)
        del one
    for name in sorted(arguments.formats, key=lambda name: name != "fp32"):
        gradients = Trial(recipe, name).gradients(weights)
        exact = exact or gradients
        found["formats"][name]["gradient"] = compared(gradients, exact)
        print(name, found["formats"][name]["gradient"], flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2), encoding="utf-8")


class Trial:
    """A base in one format, the recipe's rows in its tokens."""

    def __init__(self, recipe: Recipe, name: str) -> None:
        quantization, dtype = FORMATS[name]
        self.recipe = recipe
        self.section = recipe.model.model_copy(update={"quantization": quantization, "dtype": dtype})
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._fresh(recipe.seed)
        data = load_run_data(recipe)
        chat = ChatFormat(self.base.tokenizer, recipe.training.max_length)
        self.rows, self.held_out = (
            [e.training_sample(n) for n, e in enumerate(encode_all(chat, list(rows)).encoded)]
            for rows in (data.train, data.validation)
        )

    def _fresh(self, seed: int) -> None:
        self.base = load_base(self.section, device=self.device, for_training=True)
        self.weight_bytes = self.base.facts.weight_bytes
        model = attach_adapter(self.base, self.recipe.adapter, seed=seed)
        self.model = EdgeModel(model, choose_backend("auto", self.device), self.base.dtype)
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def train(self, steps: int, seed: int) -> float:
        """Mean validation loss after ``steps`` steps from a fresh adapter."""
        self._fresh(seed)
        training = self.recipe.training
        optimizer = torch.optim.AdamW(self.trained.values(), lr=training.learning_rate, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1.0 / steps, steps)
        plan = StepPlan(tuple(range(len(self.rows))), training.samples_per_step, seed)
        self.model.model.train()
        for step in range(steps):
            self._backward([self.rows[i] for i in plan.indices(step)])
            torch.nn.utils.clip_grad_norm_(self.trained.values(), training.max_grad_norm or float("inf"))
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
        return self._validation_loss()

    def gradients(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of the first rows, at given adapters."""
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(weights[name])
        self.model.model.train()
        self._backward(self.rows[:64])
        return {name: p.grad.double().cpu() for name, p in self.trained.items() if p.grad is not None}

    def _backward(self, samples: Sequence[TokenSample]) -> None:
        step = make_step(samples, "tree", self.recipe.training.tokens_per_batch, buckets=self.model.is_blockwise)
        for batch in step.batches:
            (self._loss(batch) / step.total_weight).backward()

    def _loss(self, batch: Batch) -> Tensor:
        return self.model.loss_sum(batch.to(self.device))

    @torch.no_grad()
    def _validation_loss(self) -> float:
        self.model.model.eval()
        budget = self.recipe.training.tokens_per_batch
        batches = pack_samples(self.held_out, "tree", budget, buckets=self.model.is_blockwise)
        weight = sum(float(batch.edge_weight.sum()) for batch in batches)
        return sum(self._loss(batch).item() for batch in batches) / weight


def compared(ours: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    """Cosine of all gradients together, the least cosine of one matrix, and the ratio of norms."""
    both = [torch.cat([part[name].flatten() for name in exact]) for part in (ours, exact)]
    cosine = torch.nn.functional.cosine_similarity
    least = min(float(cosine(ours[name].flatten(), exact[name].flatten(), dim=0)) for name in exact)
    return {
        "cosine": round(float(cosine(*both, dim=0)), 6),
        "least_cosine": round(least, 6),
        "norm_ratio": round(float(both[0].norm() / both[1].norm()), 5),
    }


if __name__ == "__main__":
    main()
