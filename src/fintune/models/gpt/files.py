"""A GPT as a folder that every command takes for a base model.

Enters: a configuration and a tokenizer. Leaves: config.json, safetensors and the tokenizer, with weights as they are
before the first step; ``model.base`` of a recipe names the folder, ``adapter.kind: none`` trains all of it.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from fintune.models.files import written_aside
from fintune.models.gpt.config import GPTConfig
from fintune.models.gpt.model import GPTForCausalLM
from fintune.models.quiet import no_progress_bars
from fintune.schema.errors import ModelError
from fintune.schema.run_directory import writing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def register() -> None:
    """Makes ``AutoConfig`` and ``AutoModelForCausalLM`` know a saved GPT by its config.json; any number of times."""
    AutoConfig.register(GPTConfig.model_type, GPTConfig, exist_ok=True)
    AutoModelForCausalLM.register(GPTConfig, GPTForCausalLM, exist_ok=True)


def refuse_to_overwrite(folder: Path) -> None:
    """Raises ``ModelError`` where ``folder`` exists, so that no trained model is lost."""
    if folder.exists():
        raise ModelError(f"{folder} exists already.", "Choose another folder, or remove this one.")


def write_untrained(path: str | Path, config: GPTConfig, tokenizer: PreTrainedTokenizerBase, *, seed: int = 0) -> Path:
    """Writes a GPT that has read nothing, with its tokenizer, and returns the folder.

    Args:
        path: folder to write; one of this name must not exist, so that no trained model is lost.
        config: of the GPT; begin, end and padding tokens are taken from the tokenizer.
        tokenizer: what it will read with.
        seed: decides the weights; torch's global generator is left as it was.

    Raises:
        ModelError: the folder exists, or the vocabulary is smaller than the tokenizer's.
        RunError: it cannot be written.
    """
    folder = Path(path)
    refuse_to_overwrite(folder)
    if len(tokenizer) > config.vocab_size:
        raise ModelError(
            f"The tokenizer has {len(tokenizer)} tokens, but the model embeds {config.vocab_size}.",
            f"Set vocab_size to {len(tokenizer)} or more.",
        )
    config = copy.deepcopy(config)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, getattr(tokenizer, name))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = GPTForCausalLM(config)
    with writing(folder), written_aside(folder, replace=False) as aside, no_progress_bars():
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
    return folder
