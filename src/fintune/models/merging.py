"""An adapter merged into its base, as a whole model of its own, with the measured distance from adapter on base.

Enters: a base as it is held and an adapter of it. Leaves: a folder in Hugging Face layout with a ``MergeReport``, or
the merged base held as the old one was with a ``LogitGap``. A base held in 4 or 8 bits is unpacked first: the merged
model is that of the rounded weights the adapter was trained on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fintune.models.adapter_files import AdapterInfo, load_adapter, read_adapter_info, require_same_base
from fintune.models.files import written_aside
from fintune.models.fp8_linear import Fp8Linear
from fintune.models.load import DTYPES, LoadedBase, load_base
from fintune.models.quiet import no_progress_bars
from fintune.schema.errors import AdapterError
from fintune.schema.recipe import ModelSection
from fintune.schema.run_directory import writing

MERGE_NOTE = "fintune_merge.json"
SHARD_BYTES = 5 * 10**9
TEXTS = (
    "Operating profit rose to EUR 13.1 mn from EUR 8.7 mn in the corresponding period of 2007.",
    "Shares of the bank fell 3.4% after the board cut its dividend and warned of weaker demand.",
    "What is the sentiment of this news? Please choose an answer from negative, neutral or positive.",
    "The company had 2,400 employees at the end of the year, and its net sales were USD 310 million.",
)

_LAST = slice(-1, None)


@dataclass(frozen=True)
class LogitGap:
    """How far the next-token logits of some texts moved when an adapter was merged.

    Attributes:
        positions: tokens whose logits were compared.
        largest: absolute difference of two logits, at most; likewise the mean.
        mean: over all logits.
        spread: standard deviation of the logits themselves, to compare the differences with.
        agreement: share of positions whose likeliest token is the same.
    """

    positions: int
    largest: float
    mean: float
    spread: float
    agreement: float


@dataclass(frozen=True)
class MergeReport:
    """What a merge made and how far it is from the adapter on its base.

    Attributes:
        path: folder of the merged model.
        adapter: folder of the adapter.
        base: the base model as the adapter names it.
        held: how the base was held: none, nf4, int8 or fp8.
        dtype: of the merged weights.
        base_bytes: memory of the base as it was held.
        merged_bytes: of the merged weights on disk.
        gap: difference of the logits.
        computed_in: type both were computed in.
    """

    path: Path
    adapter: Path
    base: str
    held: str
    dtype: str
    base_bytes: int
    merged_bytes: int
    gap: LogitGap
    computed_in: str


def merge_adapter(
    section: ModelSection,
    adapter: Path,
    target: Path,
    *,
    device: torch.device,
    dtype: Literal["bfloat16", "float16"] = "bfloat16",
    texts: Sequence[str] = TEXTS,
    shard_bytes: int = SHARD_BYTES,
) -> MergeReport:
    """Merges an adapter and measures what that changed.

    The merge itself is done in fp32, which takes four bytes a weight on ``device``.

    Args:
        section: the base model, held as the adapter was trained on it.
        adapter: folder of a LoRA or DoRA adapter.
        target: folder to make.
        device: where everything is computed.
        dtype: of the merged weights.
        texts: what the logits are compared on.
        shard_bytes: largest file of weights.

    Raises:
        AdapterError: ``target`` exists, or the adapter is none or of another base.
        ModelError: the base cannot be loaded, or another program has made ``target`` meanwhile.
        RunError: the merged model could not be written.
    """
    if target.exists():
        raise AdapterError(f"{target} exists, and would be overwritten.", "Choose another --output.")
    info = _info_to_merge(adapter)
    base = load_base(section, device=device, for_training=False)
    require_same_base(base.files, info)
    samples = [base.tokenizer(text, return_tensors="pt")["input_ids"].to(device) for text in texts]
    model: Any = load_adapter(base, adapter)
    expected = logits_of(model, samples, base.dtype)
    model = model.unload()
    with _merged(base, info, target, DTYPES[dtype], device, shard_bytes, replace=False) as aside:
        del model
        found = logits_of(_reload(aside, base, device), samples, base.dtype)
        report = MergeReport(
            path=target,
            adapter=adapter,
            base=info.base,
            held=base.quantization,
            dtype=dtype,
            base_bytes=base.facts.weight_bytes,
            merged_bytes=sum(file.stat().st_size for file in aside.glob("*.safetensors")),
            gap=logit_gap(expected, found),
            computed_in=str(base.dtype).removeprefix("torch."),
        )
        facts = asdict(report) | {"base_content_hash": base.files.content_hash, "adapter_hash": info.content_hash}
        (aside / MERGE_NOTE).write_text(json.dumps(facts, indent=2, default=str) + "\n", encoding="utf-8")
    return report


def merge_and_load(
    base: LoadedBase, section: ModelSection, adapter: Path, target: Path, prompts: Sequence[Sequence[int]]
) -> tuple[LoadedBase, LogitGap]:
    """Merges an adapter and loads the result as the base was held, which rounds quantised weights anew.

    The merge is done on the host, which has room for the whole weights of a base that is held in four bits.

    Args:
        base: the base as it is held, without an adapter; used up.
        section: what it was loaded by.
        adapter: folder of a LoRA or DoRA adapter trained on it.
        target: folder for the merged base; replaced in one step.
        prompts: token numbers of each prompt after which the logits are compared; ``TEXTS`` when all are empty.

    Raises:
        AdapterError: the adapter is none or of another base.
        RunError: the merged model could not be written.
    """
    info, device, held = _info_to_merge(adapter), base.model.device, base.quantization
    tokens = [list(prompt) for prompt in prompts if len(prompt)] or [
        base.tokenizer(text)["input_ids"] for text in TEXTS
    ]
    samples = [torch.tensor([row], device=device) for row in tokens]
    model: Any = load_adapter(base, adapter)
    expected = logits_of(model, samples, base.dtype, _LAST)
    model = model.unload()
    with _merged(base, info, target, base.dtype, torch.device("cpu")):
        pass
    after = load_base(merged_section(section, held, target), device=device, for_training=True)
    return after, logit_gap(expected, logits_of(after.model, samples, base.dtype, _LAST))


def merged_section(section: ModelSection, held: str, target: Path) -> ModelSection:
    """What loads a merged base as the old one was held."""
    update = {"base": str(target), "revision": None, "content_hash": None, "quantization": held}
    return ModelSection.model_validate({**section.model_dump(), **update})


def _info_to_merge(adapter: Path) -> AdapterInfo:
    info = read_adapter_info(adapter)
    if info.kind != "lora":
        raise AdapterError(
            f"{adapter} holds a wholly trained model; there is nothing to merge.", f"Set model.base={adapter}."
        )
    return info


@contextmanager
def _merged(
    base: LoadedBase,
    info: AdapterInfo,
    target: Path,
    dtype: torch.dtype,
    place: torch.device,
    shard_bytes: int = SHARD_BYTES,
    *,
    replace: bool = True,
) -> Iterator[Path]:
    """The folder with the merged model, which takes its place after the block (``written_aside``); ``base`` is used up.

    Merged on ``place`` in fp32, and written in ``dtype``.
    """
    merged: Any = load_adapter(dequantized(base, place), info.path)
    merged = merged.merge_and_unload(safe_merge=True).to(dtype)
    merged.config.dtype = dtype
    with writing(target), written_aside(target, replace=replace) as aside:
        with no_progress_bars():
            # What transformers did to read weights that were stored quantised it cannot undo.
            merged.save_pretrained(
                str(aside), save_original_format=not base.facts.prequantized, max_shard_size=shard_bytes
            )
        base.tokenizer.save_pretrained(str(aside))
        note = f"{base.files.source} with the adapter {info.path} merged into it."
        (aside / "README.md").write_text(f"---\nlicense: {base.files.licence}\n---\n{note}\n", encoding="utf-8")
        del merged
        yield aside


def dequantized(base: LoadedBase, place: torch.device) -> LoadedBase:
    """The same base with every weight in fp32 on ``place``, packed ones unpacked; changed in place, layer by layer."""
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    model: Any = base.model
    for name, module in list(model.named_modules()):
        if isinstance(module, Fp8Linear):
            weight = module.held().dense(torch.float32)
        elif type(module).__name__ == "Linear4bit":
            weight = dequantize_bnb_weight(module.weight)
        elif type(module).__name__ == "Linear8bitLt":
            weight = dequantize_bnb_weight(module.weight, module.state)
        else:
            continue
        model.set_submodule(name, _linear(weight.detach().to(place, torch.float32), module.bias))
    if getattr(model, "hf_quantizer", None) is not None:
        model.hf_quantizer.remove_quantization_config(model)
    return replace(base, model=model.float().to(place), dtype=torch.float32, quantization="none")


def _linear(weight: Tensor, bias: Any) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().to(weight), requires_grad=False)
    return linear


@torch.no_grad()
def logits_of(
    model: Any, samples: Sequence[Tensor], dtype: torch.dtype, positions: slice = slice(None)
) -> list[Tensor]:
    """(T, V) fp32 logits of each (1, T) sample, or at the ``positions`` asked for, on the CPU."""
    model.eval()
    found = []
    for sample in samples:
        with torch.autocast(sample.device.type, dtype=dtype, enabled=dtype != torch.float32):
            found.append(model(input_ids=sample, use_cache=False).logits[0, positions].float().cpu())
    return found


def logit_gap(expected: Sequence[Tensor], found: Sequence[Tensor]) -> LogitGap:
    """Compares the logits of the same samples, each (T, V)."""
    before, after = torch.cat(list(expected)), torch.cat(list(found))
    difference = (before - after).abs()
    return LogitGap(
        positions=len(before),
        largest=float(difference.max()),
        mean=float(difference.double().mean()),
        spread=float(before.double().std()),
        agreement=float((before.argmax(-1) == after.argmax(-1)).double().mean()),
    )


def _reload(folder: Path, base: LoadedBase, device: torch.device) -> Any:
    from transformers import AutoModelForCausalLM

    loader: Any = AutoModelForCausalLM
    with no_progress_bars():
        return loader.from_pretrained(folder, dtype=base.dtype, use_safetensors=True).to(device)
