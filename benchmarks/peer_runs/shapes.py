"""Llama shapes with random weights: speed and memory do not depend on the values.

Enters: the name of a shape and a folder. Leaves: a checkpoint in Hugging Face layout, written shard by shard as drawn.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WRITTEN = "written.json"  # laid down last: a folder without it is written again
LAYERS_PER_SHARD = 4


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama model."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    head_size: int
    vocabulary: int = 128_256
    tied: bool = False

    def config(self) -> dict[str, Any]:
        """What goes into config.json; positions are plain, since their scaling costs no time."""
        return {
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_value_heads,
            "head_dim": self.head_size,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
            "tie_word_embeddings": self.tied,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 2,
        }


SHAPES = {
    "8b": Shape(4096, 14336, 32, 32, 8, 128),  # Llama-3.1-8B
    "3b": Shape(3072, 8192, 28, 24, 8, 128, tied=True),  # Llama-3.2-3B
    "1b": Shape(2048, 8192, 16, 32, 8, 64, tied=True),  # Llama-3.2-1B
    "tiny": Shape(64, 128, 2, 4, 2, 16, vocabulary=512, tied=True),
}


def write_checkpoint(shape: Shape, folder: Path, device: torch.device, tokenizer: Path | None) -> None:
    """Writes config, bf16 weights and a tokenizer; a folder that is complete is left as it is.

    Args:
        shape: sizes of the model.
        folder: where the checkpoint goes.
        device: where the weights are drawn.
        tokenizer: folder with the tokenizer's files; None takes a tiny one.
    """
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    if (folder / WRITTEN).is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(17)
    shards = list(shard_names(shape))
    weight_map: dict[str, str] = {}
    total_bytes = 0
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: random_weight(size, device) for name, size in names.items()}
        save_file(tensors, str(folder / file), metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
        total_bytes += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    config = LlamaConfig(**shape.config())
    config.architectures, config.dtype = ["LlamaForCausalLM"], "bfloat16"
    config.save_pretrained(folder)
    write_tokenizer(folder, tokenizer)
    (folder / WRITTEN).write_text("{}", encoding="utf-8")


def shard_names(shape: Shape) -> Iterator[dict[str, tuple[int, ...]]]:
    """Names and sizes of the weights, shard by shard."""
    outer = {"model.embed_tokens.weight": (shape.vocabulary, shape.hidden), "model.norm.weight": (shape.hidden,)}
    yield outer if shape.tied else {**outer, "lm_head.weight": (shape.vocabulary, shape.hidden)}
    query, key_value = shape.heads * shape.head_size, shape.key_value_heads * shape.head_size
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm": (shape.hidden,),
        "post_attention_layernorm": (shape.hidden,),
        "self_attn.q_proj": (query, shape.hidden),
        "self_attn.k_proj": (key_value, shape.hidden),
        "self_attn.v_proj": (key_value, shape.hidden),
        "self_attn.o_proj": (shape.hidden, query),
        "mlp.gate_proj": (shape.intermediate, shape.hidden),
        "mlp.up_proj": (shape.intermediate, shape.hidden),
        "mlp.down_proj": (shape.hidden, shape.intermediate),
    }
    for first in range(0, shape.layers, LAYERS_PER_SHARD):
        numbers = range(first, min(first + LAYERS_PER_SHARD, shape.layers))
        yield {f"model.layers.{i}.{name}.weight": size for i in numbers for name, size in layer.items()}


def random_weight(size: tuple[int, ...], device: torch.device) -> Tensor:
    """Drawn in bf16 where it lies, so no fp32 copy ever exists; norms are ones."""
    if len(size) == 1:
        return torch.ones(size, dtype=torch.bfloat16)
    return torch.empty(size, dtype=torch.bfloat16, device=device).normal_(std=0.02).cpu()


def write_tokenizer(folder: Path, source: Path | None) -> None:
    if source is None:
        from fintune.models.tiny import tiny_tokenizer

        tiny_tokenizer().save_pretrained(folder)
        return
    for pattern in ("tokenizer*", "chat_template*", "special_tokens_map.json"):
        for file in source.glob(pattern):
            shutil.copy(file, folder)
