"""An adapter merged into its base, as a base model of its own, and what that changed.

Enters: a base as it is held, an adapter of it, a few prompts. Leaves: a folder in Hugging Face layout with the merged
weights in 16 bits (32 where the base computes in those), the merged base held as the old one was, and the gap.

Quantised weights cannot take an adapter in: it is merged into the weights they were quantised from, or, where a
checkpoint is stored quantised, into what they stand for; then the sum is quantised anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fintune.models.adapter_files import load_adapter, read_adapter_info, require_same_base
from fintune.models.adapters import peft_quiet
from fintune.models.files import written_aside
from fintune.models.load import LoadedBase, load_base
from fintune.models.quiet import no_progress_bars
from fintune.schema.errors import AdapterError
from fintune.schema.recipe import ModelSection


@dataclass(frozen=True)
class MergeGap:
    """How far the logits after the last token of some prompts moved when an adapter was merged.

    Attributes:
        prompts: how many were compared.
        largest: largest absolute difference of a logit.
        mean: mean absolute difference.
        mean_size: mean absolute value of the logits before, to compare with.
        held: how the base is held, such as nf4.
    """

    prompts: int
    largest: float
    mean: float
    mean_size: float
    held: str

    def as_facts(self) -> dict[str, Any]:
        """For facts.json."""
        return {"rule": "merge", **asdict(self)}


def merge_adapter(
    base: LoadedBase, section: ModelSection, adapter: Path, target: Path, prompts: Sequence[Sequence[int]]
) -> tuple[LoadedBase, MergeGap]:
    """Merges an adapter and loads the result.

    Args:
        base: the base as it is held, without an adapter; used up.
        section: what it was loaded by.
        adapter: folder of a LoRA adapter trained on it.
        target: folder for the merged base; replaced in one step.
        prompts: token numbers of each prompt whose logits are compared.

    Raises:
        AdapterError: it holds all weights, or was made for another base.
    """
    info = read_adapter_info(adapter)
    require_same_base(base, info)
    if info.kind == "full":
        raise AdapterError(
            f"{adapter} holds a wholly trained model, which needs no merging.", f"Set model.base={adapter}."
        )
    device, held = base.model.device, base.quantization
    before = _last_logits(load_adapter(base, adapter), prompts, device)
    _write_merged(base, section, adapter, target)
    after = load_base(merged_section(section, held, target), device=device, for_training=True)
    gap = (_last_logits(after.model, prompts, device) - before).abs()
    sizes = (float(gap.max()), float(gap.mean()), float(before.abs().mean())) if len(prompts) else (0.0, 0.0, 0.0)
    return after, MergeGap(len(prompts), *sizes, held=held)


def merged_section(section: ModelSection, held: str, target: Path) -> ModelSection:
    """What loads the merged base as the old one was held."""
    update = {"base": str(target), "revision": None, "content_hash": None, "quantization": held}
    return ModelSection.model_validate({**section.model_dump(), **update})


def _write_merged(base: LoadedBase, section: ModelSection, adapter: Path, target: Path) -> None:
    """On the host, where both copies of the weights have room, in the type that the base computes in."""
    precision = {"quantization": "none", "dtype": str(base.dtype).removeprefix("torch.")}
    whole = load_base(section.model_copy(update=precision), device=torch.device("cpu"), for_training=False)
    stored_quantised = whole.quantization != "none"
    if stored_quantised:
        whole.model.dequantize()  # type: ignore[no-untyped-call]
    with peft_quiet():
        merged: Any = load_adapter(whole, adapter)
        merged = merged.merge_and_unload()
    with no_progress_bars(), written_aside(target) as aside:
        # What transformers did to read quantised weights it cannot undo.
        merged.save_pretrained(str(aside), save_original_format=not stored_quantised)
        whole.tokenizer.save_pretrained(str(aside))
        note = f"{whole.files.source} with the adapter {adapter} merged into it."
        (aside / "README.md").write_text(f"---\nlicense: {whole.files.licence}\n---\n{note}\n", encoding="utf-8")


def _last_logits(model: Any, prompts: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """(prompts, vocabulary), fp32, on the CPU."""
    model.eval()
    rows = []
    with torch.no_grad():
        for prompt in prompts:
            tokens = torch.from_numpy(np.asarray(prompt, np.int64))[None].to(device)
            rows.append(model(input_ids=tokens, use_cache=False).logits[0, -1].float().cpu())
    return torch.stack(rows) if rows else torch.zeros(0, 1)
