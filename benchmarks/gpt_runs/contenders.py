"""The models, fintune's and its peers', behind one interface: a loss of rows, and an update.

Enters: a job. Leaves: ``Contender``. Peers run from their own checkouts with their own optimiser, precision and
compilation; nothing of theirs is here but calls.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gpt_runs.settings import LAYERS_HEADS_WIDTH, Job


@dataclass
class Contender:
    """A model to be trained.

    Attributes:
        model: whose weights are counted, stored and put back.
        loss: mean loss of (B, T) ids and targets, to be called within ``precision``.
        optimizer: makes the optimiser anew.
        multiplied: weights that every token is multiplied with.
        precision: autocast, or nothing.
        clip: largest gradient norm, or None.
        notes: what the peer chose by itself.
    """

    model: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    optimizer: Callable[[], Any]
    multiplied: int
    precision: Callable[[], AbstractContextManager[Any]]
    clip: float | None
    notes: dict[str, Any]


def contender(job: Job) -> Contender:
    """The model of a job, with weights drawn from one seed."""
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("highest" if job.variant.precision == "fp32" else "high")
    return {"fintune": _fintune, "nanogpt": _nanogpt, "nanochat": _nanochat}[job.variant.peer](job)


def shape(job: Job) -> tuple[int, int, int, int]:
    """Layers, heads, width and vocabulary."""
    layers, heads, width = LAYERS_HEADS_WIDTH[job.size]
    return layers, heads // 2 if job.variant.wide_heads else heads, width, -(-job.vocabulary // 128) * 128


def _autocast(job: Job) -> Callable[[], AbstractContextManager[Any]]:
    if job.variant.precision != "bf16" or job.device == "cpu":
        return nullcontext
    return lambda: torch.autocast("cuda", dtype=torch.bfloat16)


def _fintune(job: Job) -> Contender:
    from fintune.models.gpt import GPTForCausalLM, baseline, optimised, weight_kinds

    _, heads, _, vocabulary = shape(job)
    make = {"optimised": optimised, "baseline": baseline}[job.variant.kind]
    config = make(job.size, vocabulary, num_attention_heads=heads, max_position_embeddings=job.length)
    model = GPTForCausalLM(config).to(job.device).train()
    kinds = weight_kinds(model)
    multiplied = sum(weight.numel() for weight in kinds.matrices) + model.lm_head.weight.numel()
    loss = _row_loss(model, job) if job.variant.path == "rows" else _recipe_loss(model, job)
    clip = 1.0 if job.variant.optimizer == "adamw" else None
    return Contender(
        model, loss, lambda: _own_optimizer(model, job), multiplied, _autocast(job), clip, _notes(job, model)
    )


def _notes(job: Job, model: Any) -> dict[str, Any]:
    if job.variant.path == "recipe":
        from fintune.inference.forward import choose_backend

        return {"attention": f"token trees, {choose_backend('auto', torch.device(job.device), model.config)}"}
    named = {"flash": "SDPA, flash kernel", "cudnn": "SDPA, cuDNN kernel", "flex": "FlexAttention", "eager": "eager"}
    return {"attention": named.get(job.variant.options.get("attention", "sdpa"), "SDPA")}


def _row_loss(model: Any, job: Job) -> Callable[[Tensor, Tensor], Tensor]:
    from fintune.models.gpt.rows import RowLoss, RowOptions

    return RowLoss(model, RowOptions(**{"end_of_document": job.end_of_document, **job.variant.options}))


def _recipe_loss(model: Any, job: Job) -> Callable[[Tensor, Tensor], Tensor]:
    """What a recipe's step computes: token trees, here of rows that share nothing, and compiled blocks."""
    from fintune.inference.forward import EdgeModel, choose_backend
    from fintune.training.compiling import compile_for_training
    from fintune.trees.batch import TreeBatch

    device = torch.device(job.device)
    dtype = torch.bfloat16 if job.device == "cuda" else torch.float32
    edge_model = EdgeModel(model, choose_backend("auto", device, model.config), dtype)
    compile_for_training(edge_model)

    def loss(ids: Tensor, targets: Tensor) -> Tensor:
        rows, size = ids.shape
        every = torch.arange(rows * size, device=device)
        ends = (torch.arange(rows, device=device) + 1) * size
        batch = TreeBatch(
            tokens=ids.flatten(),
            depth=torch.arange(size, device=device).repeat(rows),
            subtree_end=ends.repeat_interleave(size),
            parents=every,
            edge_parent=every,
            edge_target=targets.flatten(),
            edge_weight=torch.ones(rows * size, device=device),
            sample_tokens=rows * size,
            real_tokens=rows * size,
            n_samples=rows,
            longest=size,
        )
        return edge_model.loss_sum(batch) / (rows * size)

    return loss


def _own_optimizer(model: Any, job: Job) -> Any:
    from fintune.models.gpt import weight_kinds
    from fintune.training.muon import Rates, muon_and_adamw

    if job.variant.optimizer == "adamw":
        # nanoGPT's settings for GPT-2; the tiny model of smoke tests takes longer steps
        rate = {"124m": 6e-4, "350m": 3e-4}.get(job.size, 3e-3)
        fused = job.device == "cuda"
        return torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.1, fused=fused)
    rates = Rates.around(job.variant.rate)
    batched = job.variant.optimizer == "muon"
    return muon_and_adamw(weight_kinds(model), rates, width=model.config.hidden_size, batched=batched)


def _nanogpt(job: Job) -> Contender:
    sys.path.insert(0, job.peers["nanogpt"])
    from model import GPT, GPTConfig  # type: ignore[import-not-found]  # the peer's

    layers, heads, width, vocabulary = shape(job)
    config = GPTConfig(
        block_size=job.length,
        vocab_size=vocabulary,
        n_layer=layers,
        n_head=heads,
        n_embd=width,
        dropout=0.0,
        bias=False,
    )
    model = GPT(config).to(job.device)
    multiplied = model.get_num_params()  # position embeddings are left out, and the tied head is in
    compiled = torch.compile(model)
    return Contender(
        model,
        lambda ids, targets: compiled(ids, targets)[1],
        lambda: model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), job.device),
        multiplied,
        _autocast(job),
        1.0,
        {"attention": "SDPA"},
    )


def _nanochat(job: Job) -> Contender:
    sys.path.insert(0, job.peers["nanochat"])
    from nanochat.flash_attention import USE_FA3  # type: ignore[import-not-found]  # the peer's
    from nanochat.gpt import GPT, GPTConfig  # type: ignore[import-not-found]  # the peer's

    layers, heads, width, vocabulary = shape(job)
    config = GPTConfig(
        sequence_len=job.length,
        vocab_size=vocabulary,
        n_layer=layers,
        n_head=heads,
        n_kv_head=heads,
        n_embd=width,
        window_pattern="L",  # all of the row, as everyone here; its sliding windows need FlashAttention 3
    )
    with torch.device("meta"):
        model = GPT(config)
    model.to_empty(device=job.device)
    model.init_weights()
    compiled = torch.compile(model, dynamic=False)
    notes = {"attention": "FlashAttention 3" if USE_FA3 else "SDPA: FlashAttention 3 was not to be had"}
    return Contender(model, compiled, model.setup_optimizer, model.num_matmul_params(), nullcontext, None, notes)
