"""A model that needs no merge, in 16 bits and in shards: a base, or one that was trained as a whole.

Enters: the section that loads it. Leaves: a folder in Hugging Face layout.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from fintune.models.files import written_aside
from fintune.models.load import DTYPES, load_base
from fintune.models.merging import SHARD_BYTES, dequantized
from fintune.models.quiet import no_progress_bars
from fintune.schema.recipe import ModelSection
from fintune.schema.run_directory import writing


def write_whole(
    section: ModelSection,
    target: Path,
    *,
    dtype: Literal["bfloat16", "float16"] = "bfloat16",
    shard_bytes: int = SHARD_BYTES,
) -> str:
    """Writes the model with its tokenizer, chat template and generation configuration, and returns its licence.

    It is read into the host's memory: two bytes a weight, four where it is stored in 4 or 8 bits.

    Args:
        section: what loads it.
        target: folder to make; replaced in one step.
        dtype: of the weights.
        shard_bytes: largest file of weights.

    Raises:
        ModelError: it cannot be loaded.
        RunError: it could not be written.
    """
    plain = ModelSection.model_validate({**section.model_dump(), "quantization": "none", "dtype": dtype})
    place = torch.device("cpu")
    base = load_base(plain, device=place, for_training=False, needs_template=False)
    model: Any = dequantized(base, place).model if base.facts.prequantized else base.model
    model = model.to(DTYPES[dtype])
    model.config.dtype, model.config.use_cache = DTYPES[dtype], True
    if base.facts.chat_template == "none":
        base.tokenizer.chat_template = None  # a stand-in, which is no part of the model
    with writing(target), written_aside(target) as aside, no_progress_bars():
        model.save_pretrained(str(aside), save_original_format=not base.facts.prequantized, max_shard_size=shard_bytes)
        base.tokenizer.save_pretrained(str(aside))
    return base.files.licence
