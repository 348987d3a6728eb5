"""A GPT trained from scratch on the bench's text, with any of the optimisations on or off.

Enters: switches, a size, a seed and the prepared text. Leaves: ``Measured``. The loop is as lean as it can be, so that
what is measured is the model and the optimiser.

Shapes: B rows, T tokens of a row, V vocabulary, W width.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fintune.bench.blocks import IGNORED, Layout, Rows, batches
from fintune.bench.measuring import Gauge, Measured, own_turn, run_in_chunks, seconds_of, written_token_ms
from fintune.bench.sizes import GptSize, Size
from fintune.bench.texts import TokenStream
from fintune.inference.forward import choose_backend
from fintune.kernels.linear_edge_loss import LinearHead, LossEdges, linear_edge_cross_entropy
from fintune.kernels.tree_attention import ATTENTION_NAME, BLOCKWISE, TreeContext, register
from fintune.models.gpt import GPTConfig, GPTForCausalLM, compile_blocks, weight_kinds
from fintune.training.muon import Rates, muon_and_adamw
from fintune.training.run import recompute_layers

_TILE = 128
_TIED_RATE = 0.004  # of Muon's AdamW for embeddings that do not have unit variance, as muon_and_adamw advises


@dataclass(frozen=True)
class GptText:
    """The text of the family: streams to train and to measure on."""

    train: TokenStream
    held_out: TokenStream


def gpt_config(on: Collection[str], size: GptSize, vocabulary: int, context: int) -> GPTConfig:
    """The architecture that some switches make.

    Args:
        on: keys of what is on.
        size: of the GPT.
        vocabulary: rows of the embedding before they are rounded up.
        context: positions that can be learned.
    """
    activation: Any = "swiglu" if "swiglu" in on else "relu2" if "relu2" in on else "gelu"
    return GPTConfig(
        vocab_size=-(-vocabulary // _TILE) * _TILE if "vocabulary" in on else vocabulary,
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        max_position_embeddings=context,
        positions="rope" if "rope" in on else "learned",
        norm="rmsnorm" if "rmsnorm" in on else "layernorm",
        qk_norm="qk_norm" in on,
        activation=activation,
        biases="no_biases" not in on,
        tie_word_embeddings="untied" not in on,
        final_logit_softcapping=15.0 if "softcap" in on else None,
        low_precision_residual="residual" in on,
        initialisation="fan_in" if "fan_in" in on else "gpt2",
        zero_outputs="zero_outputs" in on,
    )


class GptRun:
    """One GPT with its optimiser.

    Args:
        on: keys of what is on.
        size: of the run.
        vocabulary: of the GPT, before it is rounded up.
        seed: decides the weights.
        device: where it runs.
    """

    def __init__(self, on: Collection[str], size: Size, vocabulary: int, seed: int, device: torch.device) -> None:
        self.on, self.size, self.device = on, size.gpt, device
        context = max(self.size.context, size.prompt_tokens + size.new_tokens)
        config = gpt_config(on, self.size, vocabulary, context)
        torch.manual_seed(seed)
        self.attention = "sdpa" if "sdpa" in on else "eager"
        make: Any = GPTForCausalLM
        self.model: Any = make._from_config(config, attn_implementation=self.attention).to(device).train()
        if "checkpointing" in on:
            recompute_layers(self.model)
        if "compile" in on:
            compile_blocks(self.model)
        self.layout: Layout = "padded" if "packing" not in on else "apart" if "masks" in on else "together"
        # Masks as a matrix would keep PyTorch from its quickest kernel on a GPU; our own attention has them as spans.
        self.backend = choose_backend("auto", device, config)
        self.spans = self.layout == "apart" and self.backend in BLOCKWISE and "sdpa" in on
        if self.spans:
            register()
            self.model.set_attn_implementation(ATTENTION_NAME)
        self.optimizer = self._optimizer()
        self.schedule: Any = self._schedule()

    def step(self, stream: TokenStream, number: int) -> int:
        """One update; returns the tokens predicted."""
        total = self.size.rows * self.size.context
        for rows in self.batches(stream, number):
            torch.autograd.backward(self.loss_sum(rows.to(self.device)) / total)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def batches(self, stream: TokenStream, number: int, layout: Layout | None = None) -> Iterator[Rows]:
        """The batches of a step."""
        size = self.size
        return batches(stream, number, size.rows, size.context, layout or self.layout, fixed="compile" in self.on)

    def warm_up(self, stream: TokenStream) -> None:
        """Forward and backward passes whose gradients are thrown away: memory is claimed and code compiled.

        Batches with and without a new document take different masks, for which code is compiled apart.
        """
        seen: set[bool] = set()
        for number in range(self.size.steps):
            for rows in self.batches(stream, number):
                starts_anew = bool((rows.positions[:, 1:] == 0).any())
                if starts_anew not in seen:
                    seen.add(starts_anew)
                    torch.autograd.backward(self.loss_sum(rows.to(self.device)))
        self.optimizer.zero_grad(set_to_none=True)

    def loss_sum(self, rows: Rows) -> Tensor:
        """Summed cross-entropy of the targets, in nats."""
        with self.precision():
            hidden = self._hidden(rows).flatten(0, 1)
            head, target = self.model.lm_head.weight, rows.targets.flatten()
            cap = self.model.config.final_logit_softcapping
            if "fused_loss" in self.on:
                kept = (target != IGNORED).nonzero().flatten()
                edges = LossEdges(
                    torch.arange(len(kept), device=target.device), target[kept], torch.ones_like(kept).float()
                )
                return linear_edge_cross_entropy(hidden[kept], LinearHead(head, softcap=cap), edges)[0]
            logits = (hidden @ head.T).float()
            if cap is not None:
                logits = cap * torch.tanh(logits / cap)
            return nn.functional.cross_entropy(logits, target, ignore_index=IGNORED, reduction="sum")

    def _hidden(self, rows: Rows) -> Tensor:
        """(B, T, W), or (1, B T, W) where rows are laid end to end."""
        if not self.spans or rows.row_end is None:
            hidden: Tensor = self.model.model(rows.tokens, None, rows.positions, None)
            return hidden
        depth = rows.positions.flatten()
        tree = TreeContext(rows.row_end, depth, self.backend)
        whole: Tensor = self.model.model(rows.tokens.flatten()[None], None, depth[None], None, tree=tree)
        return whole

    def precision(self) -> AbstractContextManager[Any]:
        """What the model is called in."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16) if "bf16" in self.on else nullcontext()

    @torch.no_grad()
    def held_out(self, stream: TokenStream) -> float:
        """Bits a byte of held-out text, by eager code; no document sees another, whatever training does."""
        steps = max(1, self.size.validation_rows // self.size.rows)
        self.model.eval()
        with torch.compiler.set_stance("force_eager"):
            nats = sum(
                float(self.loss_sum(rows.to(self.device)))
                for number in range(steps)
                for rows in self.batches(stream, number, "padded" if self.layout == "padded" else "apart")
            )
        self.model.train()
        read = stream.n_bytes[1 : 1 + steps * self.size.rows * self.size.context]
        return nats / math.log(2) / int(read.sum())

    def latency(self, size: Size, stream: TokenStream) -> float:
        """Milliseconds a written token."""
        self.model.eval()
        self.model.set_attn_implementation(self.attention)
        prompt = torch.from_numpy(stream.tokens[: size.prompt_tokens])[None].to(self.device)
        with self.precision():
            use_cache = "kv_cache" in self.on
            return written_token_ms(self.model, prompt, size.new_tokens, use_cache=use_cache, clock=size.clock)

    def _optimizer(self) -> torch.optim.Optimizer:
        if "muon" in self.on:
            has_unit_variance = "fan_in" in self.on and "untied" in self.on
            rates = Rates() if has_unit_variance else Rates(embeddings=_TIED_RATE)
            return muon_and_adamw(weight_kinds(self.model), rates, width=self.size.width)
        fused = self.device.type == "cuda"
        return torch.optim.AdamW(
            self.model.parameters(), lr=self.size.rate, betas=(0.9, 0.95), weight_decay=0.0, fused=fused
        )

    def _schedule(self) -> Any:
        from transformers import get_cosine_schedule_with_warmup, get_wsd_schedule

        warmup, steps = self.size.warmup, self.size.steps
        if "wsd" not in self.on:
            return get_cosine_schedule_with_warmup(self.optimizer, warmup, steps)
        decay = steps // 3
        return get_wsd_schedule(
            self.optimizer, num_warmup_steps=warmup, num_stable_steps=steps - warmup - decay, num_decay_steps=decay
        )


def measure_gpt(
    on: Collection[str], size: Size, text: GptText, vocabulary: int, *, seed: int, device: torch.device
) -> Measured:
    """Trains one variant and measures it.

    Args:
        on: keys of what is on.
        size: of the bench.
        text: streams of tokens.
        vocabulary: of the GPT, before it is rounded up.
        seed: decides the weights.
        device: where it runs.
    """
    gauge, measured = Gauge(device), Measured("bits a byte")
    with own_turn(shared=True):
        run = GptRun(on, size, vocabulary, seed, device)
        measured.cold_s = seconds_of(lambda: run.warm_up(text.train), device)
    measured.parameters = measured.trained = run.model.num_parameters()
    if "compile" in on and run.layout == "padded":
        measured.notes.append("rows are padded to the whole context, as compiled code would be compiled for each width")

    with own_turn():
        run_in_chunks(
            *(measured, device),
            steps=size.gpt.steps,
            chunks=size.chunks,
            clock=size.clock,
            step=lambda number: run.step(text.train, number),
            loss=lambda: run.held_out(text.held_out),
        )
        measured.peak_bytes = gauge.peak()
        measured.latency_ms = run.latency(size, text.held_out)
    return measured
