"""Unsloth and TRL through ``SFTTrainer``, whose packing and padding-free batches a short workload needs.

Enters: a job with tokenised samples. Leaves: its measurements, tokens and samples counted as they are collated.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peer_runs.data import read_samples
from peer_runs.dense_loop import load_base_model, load_unsloth, lora_config
from peer_runs.recording import Recorder
from peer_runs.settings import LEARNING_RATE, SEED, Job


class CountingCollator:
    """The trainer's collator, with a note of how many tokens and samples each batch holds."""

    def __init__(self, collator: Any) -> None:
        self.collator = collator
        self.counts: list[tuple[int, int]] = []

    def __call__(self, rows: Sequence[dict[str, Any]], *arguments: Any, **options: Any) -> Any:
        """Collates the rows and notes what they hold."""
        tokens = sum(len(row["input_ids"]) for row in rows)
        samples = sum(len(row["seq_lengths"]) if "seq_lengths" in row else 1 for row in rows)
        self.counts.append((tokens, samples))
        return self.collator(rows, *arguments, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.collator, name)


def run_sft(job: Job, recorder: Recorder) -> None:
    """Trains on tokenised samples, the answers supervised, and records it."""
    own = {}
    if job.setting.peer == "unsloth":
        model, tokenizer = load_unsloth(job)  # before TRL is imported, which Unsloth changes
    else:
        from transformers import AutoTokenizer

        model, tokenizer = load_base_model(job), AutoTokenizer.from_pretrained(job.checkpoint)
        own = {"peft_config": lora_config(job)}
    from transformers import TrainerCallback
    from trl import SFTTrainer

    trainer = SFTTrainer(
        model=model,
        args=sft_config(job),
        train_dataset=dataset(job),
        processing_class=tokenizer,
        **own,
    )
    counting = CountingCollator(trainer.data_collator)
    trainer.data_collator = counting

    class Follow(TrainerCallback):
        """Tells the recorder; batches are collated one ahead, but in the order in which they are used."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            recorder.ready()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
            recorder.step_done(*counting.counts[state.global_step - 1])
            control.should_log = (state.global_step - job.warm_up) % job.window == 0
            return control

    trainer.add_callback(Follow())
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    recorder.finish(losses[-1])


def sft_config(job: Job) -> Any:
    from trl import SFTConfig

    unsloth, on_gpu = job.setting.peer == "unsloth", job.device.startswith("cuda")
    options: dict[str, Any] = {}
    if not unsloth:  # Unsloth has been told when the model was loaded, and brings its own kernels
        options = {
            "gradient_checkpointing": job.setting.memory == "recompute",
            "gradient_checkpointing_kwargs": {"use_reentrant": False},
            "use_liger_kernel": job.setting.liger,
        }
    return SFTConfig(
        output_dir=str(Path(job.folder) / "trainer"),
        per_device_train_batch_size=job.setting.at_once,
        gradient_accumulation_steps=1,
        max_steps=job.steps,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        optim="adamw_torch_fused",
        bf16=on_gpu,
        use_cpu=not on_gpu,
        max_length=job.length,
        packing=job.setting.packed,
        completion_only_loss=True,
        dataset_num_proc=1 if unsloth else None,
        logging_strategy="no",  # the callback asks for the mean loss of each window
        save_strategy="no",
        report_to="none",
        seed=SEED,
        disable_tqdm=True,
        **options,
    )


def dataset(job: Job) -> Any:
    """Tokens and a mask of the answer, which both libraries turn into labels."""
    from datasets import Dataset

    assert job.phrasebank is not None
    samples = read_samples(job.phrasebank)
    return Dataset.from_dict(
        {
            "input_ids": [sample.tokens for sample in samples],
            "completion_mask": [
                [int(i >= sample.completion_start) for i in range(len(sample.tokens))] for sample in samples
            ],
        }
    )
