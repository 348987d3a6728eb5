"""Unsloth, and transformers with PEFT, in one plain loop over rows in which every token is supervised.

Enters: a job. Leaves: its measurements; the loop is the same for both and favours neither.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from peer_runs.data import random_tokens
from peer_runs.recording import Recorder
from peer_runs.settings import ALPHA, LEARNING_RATE, RANK, SEED, Job


def run_dense(job: Job, recorder: Recorder) -> None:
    """Trains on random tokens and records it."""
    device = torch.device(job.device)
    model = load_unsloth(job)[0] if job.setting.peer == "unsloth" else load_peft(job)
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    at_once = min(job.setting.at_once, job.rows)
    recorder.ready()
    losses = []
    for step in range(job.steps):
        tokens = torch.from_numpy(random_tokens(step, job.rows, job.length, model.config.vocab_size)).to(device)
        loss = torch.zeros((), device=device)
        for rows in tokens.split(at_once):
            loss += backward(model, rows, len(rows) / job.rows)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss)
        recorder.step_done(tokens.numel(), job.rows)
    recorder.finish(torch.stack(losses[-job.window :]).mean().item())


def backward(model: Any, rows: Tensor, share: float) -> Tensor:
    """Adds the gradients of some rows of a step; returns their part of its loss."""
    with torch.autocast(rows.device.type, dtype=torch.bfloat16):
        loss: Tensor = model(input_ids=rows, labels=rows).loss * share
    loss.backward()
    return loss.detach()


def load_unsloth(job: Job) -> tuple[Any, Any]:
    """Model with its adapter, and tokenizer, through Unsloth's own functions."""
    from unsloth import FastLanguageModel

    checkpointing = {"offload": "unsloth", "recompute": True, "keep": False}[job.setting.memory]
    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=job.checkpoint,
        max_seq_length=max(2048, job.length),
        dtype=torch.bfloat16,
        load_in_4bit=job.setting.quantization == "nf4",
        use_gradient_checkpointing=checkpointing,
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=RANK,
        target_modules=list(job.targets),
        lora_alpha=ALPHA,
        lora_dropout=0.0,
        bias="none",
        use_gradient_checkpointing=checkpointing,
        random_state=SEED,
    )
    return model, tokenizer


def load_peft(job: Job) -> Any:
    """Model with its adapter, in bf16 or NF4, with Liger's kernels where asked."""
    from peft import get_peft_model

    model = get_peft_model(load_base_model(job), lora_config(job))
    if job.setting.memory == "recompute":
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def load_base_model(job: Job) -> Any:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    if job.setting.liger:
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama()
    options: dict[str, Any] = {}
    if job.setting.quantization == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    model = AutoModelForCausalLM.from_pretrained(
        job.checkpoint, dtype=torch.bfloat16, device_map={"": job.device}, **options
    )
    model.config.use_cache = False
    return model


def lora_config(job: Job) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=list(job.targets), task_type="CAUSAL_LM"
    )
