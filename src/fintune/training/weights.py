"""Trained weights and optimiser state of a checkpoint put back where they came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from fintune.schema.errors import RunError
from fintune.training.sharding import is_sharded, part_like, share_out_states


def restore_weights(model: Any, folder: Path) -> None:
    """Loads an adapter (or all weights) saved by ``save_adapter`` into ``model`` in place.

    Raises:
        RunError: the folder lacks the weights or they are not this model's.
    """
    from peft import PeftModel, set_peft_model_state_dict

    is_adapter = isinstance(model, PeftModel)
    files = [folder / "adapter_model.safetensors"] if is_adapter else sorted(folder.glob("model*.safetensors"))
    if not files or not all(file.is_file() for file in files):
        raise RunError(f"{folder} has no trained weights.", "Remove that checkpoint and start the command again.")
    weights = {name: tensor for file in files for name, tensor in load_file(file).items()}
    if is_sharded(model):
        own = {name.replace(".default.", "."): parameter for name, parameter in model.named_parameters()}
        weights = {name: part_like(own[name], value) if name in own else value for name, value in weights.items()}
    if is_adapter:
        result: Any = set_peft_model_state_dict(model, weights)
    else:
        result = model.load_state_dict(weights, strict=False)
    if unexpected := sorted(result.unexpected_keys):
        raise RunError(
            f"{folder} holds weights that the model lacks, first {unexpected[0]}.",
            "Use the recipe the checkpoint was made with, or another --output-dir.",
        )


def restore_optimizer(optimizer: Any, folder: Path) -> None:
    """Loads the optimiser state saved in a checkpoint's ``folder``; the learning rate stays that of the schedule."""
    rates = [group["lr"] for group in optimizer.param_groups]
    optimizer.load_state_dict(torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True))
    share_out_states(optimizer)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
