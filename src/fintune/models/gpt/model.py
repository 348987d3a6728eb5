"""A GPT as a model of ``transformers``: generation, checkpoints, recomputed layers and peft come with the base class.

Enters: token ids, and what is known of positions, documents and earlier tokens. Leaves: logits. Documents in one row
are kept apart where positions start again at each (``transformers`` then masks them), or by ``EdgeModel``'s token tree.

Shapes: B rows, T tokens, W width, V vocabulary, P positions kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast

from fintune.models.gpt.blocks import Block, make_norm
from fintune.models.gpt.config import GPTConfig
from fintune.models.gpt.initialisation import initialise
from fintune.models.gpt.positions import Rotation, rotation
from fintune.schema.errors import ModelError


class Trunk(nn.Module):
    """Everything below the head: embedding, blocks, last norm."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        is_learned = config.positions == "learned"
        self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size) if is_learned else None
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = make_norm(config)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor,
        past_key_values: Cache | None,
        **kwargs: Any,
    ) -> Tensor:
        """(B, T, W) hidden states of (B, T) token ids at (B, T) positions; other arguments as of ``Attention``."""
        hidden = self.embed(input_ids, position_ids)
        mask = create_causal_mask(self.config, hidden, attention_mask, past_key_values, position_ids)
        return self.through_blocks(hidden, self.turn(position_ids), mask, past_key_values, **kwargs)

    def turn(self, position_ids: Tensor) -> Rotation | None:
        """How heads are turned at (B, T) positions; None where positions are learned."""
        if self.config.positions != "rope":
            return None
        return rotation(position_ids, self.config.head_size, self.config.rope_theta)

    def embed(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """(B, T, W): what enters the first block."""
        hidden: Tensor = self.embed_tokens(input_ids)
        if self.embed_positions is not None:
            hidden = hidden + self.embed_positions(position_ids)
        if self.config.low_precision_residual and torch.is_autocast_enabled(hidden.device.type):
            hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
        return hidden

    def through_blocks(
        self,
        hidden: Tensor,
        turn: Rotation | None,
        mask: Any,
        past_key_values: Cache | None,
        **kwargs: Any,
    ) -> Tensor:
        """(B, T, W) behind the last norm; ``turn`` may be of (1, T) positions, ``mask`` is as attention takes it."""
        for block in self.layers:
            hidden = block(hidden, turn, mask, past_key_values, **kwargs)
        out: Tensor = self.norm(hidden)
        return out


class GPTForCausalLM(PreTrainedModel, GenerationMixin):
    """A GPT with its head; ``AutoModelForCausalLM`` finds it once ``fintune.models.gpt`` is imported."""

    config_class = GPTConfig
    config: GPTConfig
    supports_gradient_checkpointing = True
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _no_split_modules = ["Block"]
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.model = Trunk(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]  # transformers leaves it untyped

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (B, P, V), all positions by default.

        Args:
            input_ids: (B, T).
            attention_mask: (B, S) 1 for real tokens, those in the cache included; or a (B, 1, T, S) mask.
            position_ids: (B, T); one after the other when None. Starting again within a row, they divide documents.
            past_key_values: keys and values of earlier tokens.
            labels: (B, T) token ids of which each predicts the next; -100 does not count.
            use_cache: whether to return keys and values; when None, as the configuration says, but not for positions
                that are given, as they may divide documents.
            logits_to_keep: the last so many positions, or which; all for 0.
            **kwargs: for the attention function.

        Raises:
            ModelError: the text is longer than the learned positions.
        """
        if position_ids is None or past_key_values is not None:
            following = self._next_positions(input_ids, past_key_values)
            position_ids = following if position_ids is None else position_ids
            use_cache = self.config.use_cache if use_cache is None else use_cache
        # Beside a cache, transformers does not look for documents in positions: they would see each other.
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        hidden = self.model(input_ids, attention_mask, position_ids, past_key_values, **kwargs)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden[:, kept])
        if (cap := self.config.final_logit_softcapping) is not None:
            logits = cap * torch.tanh(logits.float() / cap)
        loss = None if labels is None else self.loss_function(logits, labels, vocab_size=self.config.vocab_size)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)

    def _next_positions(self, input_ids: Tensor, past_key_values: Cache | None) -> Tensor:
        first = 0 if past_key_values is None else past_key_values.get_seq_length()
        last = first + input_ids.shape[1]
        most = self.config.max_position_embeddings
        if self.config.positions == "learned" and last > most:
            raise ModelError(
                f"The text has {last} tokens, but this GPT learned {most} positions.",
                "Shorten it, or train with positions=rope or a larger max_position_embeddings.",
            )
        return torch.arange(first, last, device=input_ids.device).expand(input_ids.shape[0], -1)

    def _init_weights(self, module: nn.Module) -> None:
        ends = [end for block in self.model.layers for end in (block.self_attn.o_proj, block.mlp.down_proj)]
        is_output = any(module is end for end in ends)
        initialise(module, self.config, "head" if module is self.lm_head else "output" if is_output else "inner")


def compile_blocks(model: GPTForCausalLM, **options: Any) -> None:
    """Compiles each block in place; all share the same few graphs, and names of weights stay as they are.

    Args:
        model: the GPT, before its first step.
        **options: of ``torch.compile``.
    """
    for block in model.model.layers:
        block.compile(**options)
