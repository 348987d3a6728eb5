"""Claim: SmolLM2-135M reaches plain LoRA's validation score on Financial PhraseBank in a tenth of plain LoRA's time.

Every library takes the schedule of a shipped recipe (rank, rate, passes, samples a step) on the same training sentences
in a process of its own, twice: cold, with empty caches for compiled kernels, and warm, right after; those that compile
nothing need be trained ``--once`` only, which counts as warm. Timed is training alone, from the first step to the last,
recording and packing included. The adapters of the warm runs are scored on the validation sentences by the same code.

* plain: transformers and PEFT, padded batches, a plain loop; fintune: its whole trainer, the same samples in each step;
* trl, unsloth: their SFTTrainer, padding-free where it can be, in the order it draws.

    python benchmarks/phrasebank_to_score.py --source FOLDER --json out.json
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peer_runs.data import TokenisedSample, read_samples
from peer_runs.environments import child_environment, last_words

from fintune.bench.measuring import own_turn

PEERS = ("plain", "fintune", "trl", "unsloth")


@dataclass(frozen=True)
class Job:
    """One subprocess: what is trained, on what, how, and where the adapter goes."""

    peer: str
    model: str
    samples: str
    source: str
    recipe: str
    folder: str
    overrides: tuple[str, ...]
    rank: int
    alpha: float
    rate: float
    warmup: float
    epochs: float
    batch: int
    max_grad_norm: float
    max_length: int
    seed: int
    runs: tuple[str, ...]

    def steps(self, samples: int) -> int:
        """Optimiser steps in all."""
        return int(self.epochs * -(-samples // self.batch))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--source", help="PhraseBank file, folder or hub id")
    parser.add_argument("--recipe", default="fpb-smollm2")
    parser.add_argument("--only", nargs="+", choices=PEERS, default=PEERS)
    parser.add_argument("--once", nargs="+", choices=PEERS, default=[], help="libraries to train once, not twice")
    parser.add_argument("--override", nargs="*", default=[], metavar="KEY=VALUE", help="changes to the recipe")
    parser.add_argument("--timeout", type=float, default=280, help="seconds for each library")
    parser.add_argument("--work-dir", type=Path, default=Path(tempfile.gettempdir()) / "to_score")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.job:
        values = json.loads(arguments.job.read_text(encoding="utf-8"))
        run_job(Job(**{**values, "overrides": tuple(values["overrides"]), "runs": tuple(values["runs"])}))
        return
    rows = []
    for job in jobs(arguments):
        rows.append({"peer": job.peer, **run(job, arguments)})
        print(rows[-1], flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(rows, indent=2), encoding="utf-8")


def jobs(arguments: argparse.Namespace) -> Iterator[Job]:
    """The same for every library; samples are tokenised once, by the recipe's prompt and the model's template."""
    from fintune.evaluation.suite import load_run_data
    from fintune.models.locate import locate_base
    from fintune.models.shape import read_tokenizer
    from fintune.schema.loading import load_recipe
    from fintune.trees.chat import ChatFormat, encode_all

    overrides = [f"data.tasks.0.source={arguments.source}", *arguments.override]
    recipe = load_recipe(arguments.recipe, overrides)
    folder = arguments.work_dir.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    chat = ChatFormat(read_tokenizer(recipe.model), recipe.training.max_length)
    encoded = encode_all(chat, list(load_run_data(recipe).train)).encoded
    samples = [TokenisedSample([*e.prompt.tolist(), *e.completion.tolist()], len(e.prompt)) for e in encoded]
    file = folder / "samples.jsonl"
    file.write_text("".join(json.dumps(asdict(sample)) + "\n" for sample in samples), encoding="utf-8")
    training = recipe.training
    for peer in arguments.only:
        yield Job(
            peer=peer,
            model=str(locate_base(recipe.model).path),
            samples=str(file),
            source=str(Path(arguments.source).absolute()) if Path(arguments.source).exists() else arguments.source,
            recipe=arguments.recipe,
            folder=str(folder / peer),
            overrides=tuple(overrides),
            rank=recipe.adapter.rank,
            alpha=recipe.adapter.alpha,
            rate=training.learning_rate,
            warmup=training.warmup_ratio or 0.0,
            epochs=training.epochs,
            batch=training.samples_per_step,
            max_grad_norm=training.max_grad_norm,
            max_length=training.max_length,
            seed=recipe.seed,
            runs=("warm",) if peer in arguments.once else ("cold", "warm"),
        )


def run(job: Job, arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains in a process of its own, then scores what came out."""
    folder = Path(job.folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps(asdict(job)), encoding="utf-8")
    command = [sys.executable, str(Path(__file__).absolute()), "--job", str(folder / "job.json")]
    with (folder / "log").open("w", encoding="utf-8") as output:
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                env=child_environment(folder),
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=arguments.timeout,
            )
        except subprocess.TimeoutExpired:
            return {"error": f"stopped after {arguments.timeout:g} s"}
    if done.returncode:
        return {"error": last_words(folder / "log")}
    found: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    with own_turn():
        return {**found, **score(job)}


def score(job: Job) -> dict[str, Any]:
    """Accuracy on the validation rows of the recipe's split, with its interval."""
    import fintune
    from fintune.schema.loading import load_recipe

    task = load_recipe(job.recipe, job.overrides).data.tasks[0]
    results = fintune.evaluate(
        job.model,
        adapter=Path(job.folder) / "adapter",
        tasks=[f"{task.name}:{job.source}"],
        split="validation",
        prompt=task.prompt,
        decoding="constrained",
        progress=False,
    )
    tuned = results.find(task.name, "tuned")
    assert tuned is not None
    accuracy = tuned.metrics["accuracy"]
    return {"validation_accuracy": accuracy.value, "interval": [accuracy.low, accuracy.high], "n": tuned.n}


def run_job(job: Job) -> None:
    """Inside the subprocess: trains cold, then warm."""
    if job.peer == "unsloth":
        import unsloth  # noqa: F401  # before transformers, which it changes
    train: Callable[[Job, str], tuple[float, int]] = {
        "plain": train_plain,
        "fintune": train_fintune,
        "trl": train_sft,
        "unsloth": train_sft,
    }[job.peer]
    found: dict[str, Any] = {}
    for name in job.runs:
        shutil.rmtree(Path(job.folder) / "adapter", ignore_errors=True)
        with own_turn():
            seconds, steps = train(job, name)
        found |= {f"{name}_s": round(seconds, 2), "steps": steps}
        (Path(job.folder) / "result.json").write_text(json.dumps(found), encoding="utf-8")


def train_plain(job: Job, name: str) -> tuple[float, int]:
    """A plain loop: padded rows, bf16 autocast on a GPU, fused AdamW."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, get_linear_schedule_with_warmup

    from fintune.trees.plan import StepPlan

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(job.seed)
    base = AutoModelForCausalLM.from_pretrained(job.model, dtype=dtype).to(device)
    config = LoraConfig(r=job.rank, lora_alpha=job.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, config, autocast_adapter_dtype=True)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=job.rate, weight_decay=0.0, fused=device.type == "cuda")
    samples = read_samples(job.samples)
    plan = StepPlan(tuple(range(len(samples))), job.batch, job.seed)
    steps = plan.total_steps(job.epochs, None)
    schedule = get_linear_schedule_with_warmup(optimizer, round(job.warmup * steps), steps)
    wait()
    begun = time.perf_counter()
    model.train()
    for step in range(steps):
        tokens, mask, labels = (part.to(device) for part in padded([samples[i] for i in plan.indices(step)]))
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            loss = model(input_ids=tokens, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, job.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
    wait()
    seconds = time.perf_counter() - begun
    model.save_pretrained(Path(job.folder) / "adapter")
    AutoTokenizer.from_pretrained(job.model).save_pretrained(Path(job.folder) / "adapter")
    return seconds, steps


def padded(samples: list[TokenisedSample]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, mask and labels of one batch, padded to its longest row."""
    longest = max(len(sample.tokens) for sample in samples)
    tokens, mask = torch.zeros(len(samples), longest, dtype=torch.long), torch.zeros(len(samples), longest)
    labels = torch.full((len(samples), longest), -100)
    for row, sample in enumerate(samples):
        size = len(sample.tokens)
        tokens[row, :size] = torch.tensor(sample.tokens)
        mask[row, :size] = 1
        labels[row, sample.completion_start : size] = tokens[row, sample.completion_start : size]
    return tokens, mask, labels


def train_fintune(job: Job, name: str) -> tuple[float, int]:
    """The whole product: recipe in, run directory out; the time is that of its training steps."""
    import fintune

    quiet = ["evaluation.base=false", "evaluation.baselines=[]", "evaluation.abstention=false", "evaluation.limit=8"]
    quiet += ["evaluation.decoding=constrained", "report.enabled=false", "training.tracking=[]"]
    run = Path(job.folder) / f"run-{name}"
    overrides = [*job.overrides, f"model.base={job.model}", *quiet]
    outcome = fintune.train(job.recipe, overrides=overrides, output_dir=run, progress=False)
    shutil.copytree(outcome.adapter_dir, Path(job.folder) / "adapter")
    return outcome.facts["training_seconds"], outcome.facts["steps"]


def train_sft(job: Job, name: str) -> tuple[float, int]:
    """TRL's SFTTrainer on tokens with a mask of the answer; Unsloth's model and trainer where it is asked for."""
    model, tokenizer, own = load_for_sft(job)
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    samples = read_samples(job.samples)
    masks = [[int(i >= s.completion_start) for i in range(len(s.tokens))] for s in samples]
    rows = Dataset.from_dict({"input_ids": [s.tokens for s in samples], "completion_mask": masks})
    on_gpu = torch.cuda.is_available()
    config = SFTConfig(
        output_dir=str(Path(job.folder) / "trainer"),
        per_device_train_batch_size=job.batch,
        num_train_epochs=job.epochs,
        learning_rate=job.rate,
        lr_scheduler_type="linear",
        warmup_steps=round(job.warmup * job.steps(len(samples))),
        weight_decay=0.0,
        max_grad_norm=job.max_grad_norm,
        optim="adamw_torch_fused",
        bf16=on_gpu,
        use_cpu=not on_gpu,
        max_length=job.max_length,
        completion_only_loss=True,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        seed=job.seed,
        disable_tqdm=True,
        **({} if job.peer == "unsloth" else {"gradient_checkpointing": False}),
    )
    trainer = SFTTrainer(model=model, args=config, train_dataset=rows, processing_class=tokenizer, **own)
    wait()
    begun = time.perf_counter()
    trainer.train()
    wait()
    seconds = time.perf_counter() - begun
    trainer.model.save_pretrained(Path(job.folder) / "adapter")
    tokenizer.save_pretrained(Path(job.folder) / "adapter")
    return seconds, trainer.state.global_step


def load_for_sft(job: Job) -> tuple[Any, Any, dict[str, Any]]:
    """Model, tokenizer, and what the trainer is told of the adapter."""
    if job.peer == "unsloth":
        from peer_runs.settings import LINEAR_LAYERS
        from unsloth import FastLanguageModel

        model, tokenizer = FastLanguageModel.from_pretrained(
            model_name=job.model,
            max_seq_length=job.max_length,
            dtype=torch.bfloat16,
            load_in_4bit=False,
            use_gradient_checkpointing=False,
        )
        model = FastLanguageModel.get_peft_model(
            model,
            r=job.rank,
            target_modules=list(LINEAR_LAYERS),
            lora_alpha=job.alpha,
            lora_dropout=0.0,
            bias="none",
            use_gradient_checkpointing=False,
            random_state=job.seed,
        )
        return model, tokenizer, {}
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=dtype)
    config = LoraConfig(r=job.rank, lora_alpha=job.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    return model, AutoTokenizer.from_pretrained(job.model), {"peft_config": config}


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
