"""Adapter folders with random factors, made without a model; and a process that keeps changing a registry."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors.torch import save_file

LAYER = "base_model.model.model.layers.{}.self_attn.{}_proj.lora_{}.weight"


def write_adapter(
    folder: Path, *, seed: int = 0, rank: int = 4, width: int = 16, layers: int = 2, base="tiny", **config
) -> Path:
    """A LoRA adapter in peft's files; ``base_hash`` in ``config`` is noted as fintune notes it."""
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True)
    shapes = {"A": (rank, width), "B": (width, rank)}
    tensors = {
        LAYER.format(layer, kind, side): torch.randn(shape, generator=generator)
        for layer in range(layers)
        for kind in "qv"
        for side, shape in shapes.items()
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    base_hash = config.pop("base_hash", None)
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    settings |= {"base_model_name_or_path": base, "task_type": "CAUSAL_LM", **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    if base_hash is not None:
        note = {"kind": "lora", "base": base, "revision": None, "content_hash": base_hash}
        (folder / "fintune_base.json").write_text(json.dumps(note))
    return folder


def keep_changing(pipe, home: str, source: str) -> None:
    """Adds versions and removes every other one, saying what is about to happen and what has."""
    os.environ["FINTUNE_HOME"] = os.environ["FINTUNE_CACHE"] = home
    from fintune.models.adapter_registry import add_adapter, remove_adapter

    torch.set_num_threads(1)
    pipe.send(("ready", ""))
    while True:
        first, second = (add_adapter(Path(source), "kept").record.reference for _ in range(2))
        pipe.send(("added", second))
        pipe.send(("removing", first))
        remove_adapter(first)
        pipe.send(("removed", first))


def add_some(home: str, source: str, number: int) -> None:
    """Adds ``number`` versions."""
    os.environ["FINTUNE_HOME"] = os.environ["FINTUNE_CACHE"] = home
    from fintune.models.adapter_registry import add_adapter

    for _ in range(number):
        add_adapter(Path(source), "kept")
