"""Claim: what the host does for a training step (packing, copies, the Trainer's loop) can be kept off the GPU's time.

Prints, each on its own: steps packed a second on one core; what a step costs that a worker has packed ahead; stored
samples against a list, in seconds and memory; and the Trainer's loop around a model whose loss is a trivial function.

    python benchmarks/host_side.py --data Sentences_50Agree.txt --samples 1000000 --json out.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from fintune.environment import describe_environment
from fintune.schema.loading import load_recipe
from fintune.schema.recipe import Packing, TaskSection
from fintune.training.ahead import StepsAhead
from fintune.training.callbacks import InterruptCallback, MetricsCallback, ScheduleCallback
from fintune.training.flat_step import flatten, unflatten
from fintune.training.guard import LossGuard
from fintune.training.metrics_log import MetricsLog
from fintune.training.run import trainer_arguments
from fintune.training.steps import StepDataset
from fintune.training.trainer import TreeTrainer
from fintune.trees.plan import StepPlan
from fintune.trees.prefix_tree import TokenSample
from fintune.trees.stored import store_samples

STEP_SIZES = (32, 168, 512)
PACKINGS: tuple[Packing, ...] = ("tree", "sequence", "none")
BUDGET = 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="PhraseBank file; random samples of 50 to 150 tokens when left out")
    parser.add_argument("--samples", type=int, default=1_000_000, help="short samples to store; 0 leaves that out")
    parser.add_argument("--steps", type=int, default=200, help="steps of the Trainer's loop; 0 leaves that out")
    parser.add_argument("--layers", type=int, default=30, help="layers of the model whose modules the loop sees")
    parser.add_argument("--memory-of", choices=["list", "stored"], help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(json.dumps(memory_of(arguments.memory_of, arguments.samples)))
        return
    torch.set_num_threads(1)
    samples = phrasebank(arguments.data) if arguments.data else list(random_samples(4096))
    result: dict[str, Any] = {"environment": describe_environment(), "packing": packing_figures(samples)}
    result["ahead"] = [ahead_figures(samples, size) for size in STEP_SIZES]
    if arguments.samples:
        result["memory"] = {kind: in_a_process_of_its_own(kind, arguments.samples) for kind in ("list", "stored")}
    if arguments.steps:
        result["loop_us_per_step"] = {
            f"log_steps={n}": empty_loop(arguments.steps, arguments.layers, n) for n in (1, 10)
        }
    print(json.dumps(result, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2), encoding="utf-8")


def phrasebank(file: str) -> list[TokenSample]:
    """PhraseBank's training split under the FLARE prompt; the tokenizer is a tiny one, so samples are somewhat long."""
    from fintune.models.tiny import tiny_tokenizer
    from fintune.tasks.loading import load_task
    from fintune.trees.chat import ChatFormat, encode_all

    task = load_task(TaskSection(name="fpb", source=file, prompt="flare"))
    found = encode_all(ChatFormat(tiny_tokenizer(), 2048), task.splits["train"])
    return [encoded.training_sample(i) for i, encoded in enumerate(found.encoded)]


def random_samples(count: int) -> Iterator[TokenSample]:
    """50 to 150 tokens, of which the first 40 are one of eight instructions and the last two are supervised."""
    draw = np.random.default_rng(0)
    instructions = draw.integers(0, 32_000, (8, 40))
    for index in range(count):
        text = draw.integers(0, 32_000, draw.integers(10, 111))
        supervision = np.zeros(40 + len(text))
        supervision[-2:] = 1
        yield TokenSample(np.concatenate([instructions[index % 8], text]), supervision, index)


def data_set(samples: Any, per_step: int, packing: Packing = "tree", tasks: Any = ()) -> StepDataset:
    """Steps of two epochs."""
    plan = StepPlan(tuple(range(len(samples))), per_step, 17)
    return StepDataset(samples, plan, plan.total_steps(2), packing, BUDGET, tasks=tasks, n_tasks=2 if tasks else 0)


def packing_figures(samples: list[TokenSample]) -> list[dict[str, Any]]:
    """Milliseconds of CPU time a step, by the quicker half of 40 steps: others may use the machine."""
    rows = []
    for size in STEP_SIZES:
        for packing in PACKINGS:
            for by_task in (False, True):
                steps = data_set(samples, size, packing, [i % 2 for i in range(len(samples))] if by_task else ())
                milliseconds = typical_ms(lambda number, steps=steps: steps[number % 4], 40)
                row = {"samples_per_step": size, "packing": packing, "by_task": by_task}
                rows.append(row | {"ms": milliseconds, "samples_per_s": round(size / milliseconds * 1000)})
    return rows


def typical_ms(work: Callable[[int], Any], times: int, clock: Callable[[], float] = time.process_time) -> float:
    """Mean of the quicker half."""
    seconds = []
    for number in range(times):
        started = clock()
        work(number)
        seconds.append(clock() - started)
    return round(statistics.mean(sorted(seconds)[: times // 2]) * 1e3, 3)


def ahead_figures(samples: list[TokenSample], size: int) -> dict[str, Any]:
    """What the trainer's own thread still does for a step: CPU time to receive it, against packing it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    steps = data_set(samples, size)
    step = steps[0]
    flat = flatten(step)
    row: dict[str, Any] = {"samples_per_step": size, "batches": len(step.batches), "bytes": len(flat.memory)}
    row["pack_ms"] = typical_ms(lambda number: steps[number % 4], 20)
    row["flatten_ms"] = typical_ms(lambda _: flatten(step), 20)
    row["unflatten_ms"] = typical_ms(lambda _: unflatten(flat, device), 20)
    ahead = StepsAhead(steps, device, workers=2)
    try:
        started = time.perf_counter()
        ahead.take(0)
        while not all(worker.is_ready() for worker in ahead._workers):
            time.sleep(0.01)
        row["start_s"] = round(time.perf_counter() - started, 2)
        ahead.take(1)
        last = min(40, len(steps) - 2)

        def take(number: int) -> None:
            ahead.take(2 + number)

        def rested() -> float:
            time.sleep(0.02)  # as long as a step of the GPU, in which the workers catch up
            return time.process_time()

        row["take_ms"] = typical_ms(take, last, rested)
    finally:
        ahead.close()
    return row


def in_a_process_of_its_own(kind: str, count: int) -> dict[str, float]:
    """``memory_of``, undisturbed."""
    command = [sys.executable, __file__, "--memory-of", kind, "--samples", str(count)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def memory_of(kind: str, count: int) -> dict[str, float]:
    """Seconds to make, private memory held afterwards, and the time to read a sample."""
    before = private_bytes()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        samples: Any = random_samples(count)
        samples = list(samples) if kind == "list" else store_samples(samples, Path(folder) / "samples")
        seconds = time.perf_counter() - started
        order = np.random.default_rng(1).permutation(count)[:20_000].tolist()
        started = time.perf_counter()
        tokens = sum(len(samples[i]) for i in order)
        reading = time.perf_counter() - started
        on_disk = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        return {
            "samples": count,
            "tokens_of_20000": tokens,
            "seconds": round(seconds, 1),
            "private_mb": round((private_bytes() - before) / 1e6, 1),
            "on_disk_mb": round(on_disk / 1e6, 1),
            "read_us_per_sample": round(reading / len(order) * 1e6, 2),
        }


def private_bytes() -> int:
    """Resident memory that is no page of a file; Linux only."""
    words = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(words["RssAnon"].split()[0]) * 1024


def empty_loop(n_steps: int, layers: int, log_steps: int) -> float:
    """Microseconds of CPU time a step, the first 20 steps left out."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
    base_model = LlamaForCausalLM(LlamaConfig(vocab_size=64, num_hidden_layers=layers, **sizes))
    model = get_peft_model(base_model, LoraConfig(r=2, target_modules="all-linear"))
    trained = next(parameter for parameter in model.parameters() if parameter.requires_grad)
    stub: Any = SimpleNamespace(model=model, loss_sum=lambda batch, _: trained.sum() * 0.001)
    samples = [TokenSample(np.arange(5), np.array([0.0, 0, 0, 0, 1])) for _ in range(64)]
    plan = StepPlan(tuple(range(64)), 2, 1)
    recipe = load_recipe("quickstart", ["training.tracking=[]", f"training.log_steps={log_steps}"])
    base: Any = SimpleNamespace(
        facts=SimpleNamespace(needs_loss_scaling=False), model=SimpleNamespace(device=trained.device)
    )
    moments: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        metrics = MetricsCallback(MetricsLog(Path(folder) / "metrics.jsonl", 0), plan.steps_per_epoch)
        trainer = Unsaved(
            stub,
            trainer_arguments(recipe, base, Path(folder), n_steps),
            StepDataset(samples, plan, n_steps, "tree", BUDGET),
            save_weights=lambda place: None,
            validate=None,
            checkpoint_facts=dict,
            keep_checkpoints=1,
            save_steps=n_steps + 1,
            guard=LossGuard(None, 3),
            callbacks=[metrics, ScheduleCallback(n_steps + 1, None), InterruptCallback()],
        )
        trainer.moments = moments
        metrics.trainer = trainer
        trainer.train()
    return round((moments[-1] - moments[20]) / (len(moments) - 21) * 1e6)


class Unsaved(TreeTrainer):
    """Notes when each step starts, and writes no checkpoint."""

    moments: list[float]

    def training_step(self, *arguments: Any, **options: Any) -> Any:
        """Notes the time."""
        self.moments.append(time.process_time())
        return super().training_step(*arguments, **options)

    def _save_checkpoint(self, *_: Any) -> None:
        pass


if __name__ == "__main__":
    main()
