"""Experimental: vLLM in place of our own generation, where it is installed.

Enters: a model folder, an adapter folder if there is one, then prompts as for ``generate``. Leaves: the same answers up
to rounding, as vLLM's kernels are not those of ``transformers``. Written to the interface of vLLM 0.33.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fintune.inference.drafts import OnDone, StopPredicate
from fintune.schema.errors import AdapterError, DependencyError
from fintune.schema.recipe import Packing
from fintune.trees.prefix_tree import IntArray

# vLLM reserves room for one of these ranks and takes no other number.
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


@dataclass(frozen=True)
class VllmModel:
    """A model opened in vLLM.

    Attributes:
        engine: vLLM's ``LLM``.
        adapter: vLLM's ``LoRARequest``, or None for the base model alone.
    """

    engine: Any
    adapter: Any = None


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DependencyError(
            f"The vLLM engine was asked for, but {name} cannot be imported ({error}).",
            "Install vllm into an environment of its own, or set evaluation.engine=fintune.",
        ) from error


def require_vllm() -> None:
    """Raises a ``DependencyError`` where vLLM is not installed, before anything slow begins."""
    _module("vllm")


def open_vllm(
    model: Path,
    *,
    adapter: Path | None = None,
    batch_size: int = 256,
    lora_rank: int | None = None,
    **engine_options: Any,
) -> VllmModel:
    """Opens a model folder in vLLM.

    Args:
        model: base model in Hugging Face layout.
        adapter: folder of a LoRA adapter as peft saves it.
        batch_size: answers written at once.
        lora_rank: reserves room for adapters up to this rank, which requests bring (``lora_request``).
        **engine_options: passed on to vLLM's ``LLM``, such as dtype, max_model_len or gpu_memory_utilization.

    Raises:
        DependencyError: vLLM is not installed.
        AdapterError: the adapter is not a LoRA adapter that vLLM can hold.
    """
    options: dict[str, Any] = {"enable_prefix_caching": True, "max_num_seqs": batch_size, "seed": 0, **engine_options}
    rank = rank_to_reserve(adapter) if adapter is not None else lora_rank
    if rank is None:
        return VllmModel(_module("vllm").LLM(model=str(model), **options))
    options |= {"enable_lora": True, "max_lora_rank": rank}
    engine = _module("vllm").LLM(model=str(model), **options)
    return VllmModel(engine, lora_request("fintune", 1, adapter) if adapter is not None else None)


def lora_request(name: str, number: int, adapter: Path) -> Any:
    """An adapter as vLLM takes it beside a prompt, by a number from 1 that no other one has."""
    return _module("vllm.lora.request").LoRARequest(name, number, str(adapter))


def rank_to_reserve(adapter: Path) -> int:
    """The room, as a rank that vLLM takes, of an adapter's folder.

    Raises:
        AdapterError: it is not a LoRA adapter that vLLM can hold.
    """
    file = adapter / "adapter_config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        rank = max([int(config["r"]), *(config.get("rank_pattern") or {}).values()])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdapterError(f"{file} does not describe a LoRA adapter.", "Merge the adapter into its base.") from error
    if config.get("use_dora"):
        raise AdapterError(f"{file} is a DoRA adapter, which vLLM cannot hold.", "Merge the adapter into its base.")
    if rank > _RANKS[-1]:
        raise AdapterError(f"{file} has rank {rank}, and vLLM holds {_RANKS[-1]} at most.", "Merge the adapter.")
    return next(allowed for allowed in _RANKS if rank <= allowed)


def generate(
    model: VllmModel,
    prompts: Sequence[IntArray],
    *,
    max_new_tokens: int | Sequence[int],
    stop_ids: Collection[int],
    stop: StopPredicate | None = None,
    batch_size: int = 0,
    tokens_per_batch: int = 0,
    on_done: OnDone | None = None,
    packing: Packing = "tree",
) -> list[IntArray]:
    """As ``fintune.inference.generate.generate``, with vLLM.

    vLLM schedules by itself, so ``batch_size``, ``tokens_per_batch`` and ``packing`` do nothing here: pass the first to
    ``open_vllm``. It cannot ask ``stop`` while it writes; longer answers are cut where it would have held first.
    """
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    written = [np.zeros(0, np.int64)] * len(prompts)
    asked = [i for i, limit in enumerate(limits) if limit > 0]  # vLLM refuses to write nothing
    stop_tokens = frozenset(int(token) for token in stop_ids)
    if asked:
        outputs = model.engine.generate(
            [{"prompt_token_ids": prompts[i].tolist()} for i in asked],
            [_sampling(limits[i], stop_tokens) for i in asked],
            use_tqdm=False,
            lora_request=model.adapter,
        )
        for i, output in zip(asked, outputs, strict=True):
            written[i] = _cut(output.outputs[0].token_ids, stop_tokens, stop)
    if on_done is not None and prompts:
        on_done(len(prompts))
    return written


def _sampling(limit: int, stop_ids: frozenset[int]) -> Any:
    # ignore_eos: an answer ends at our tokens, not at those the model's folder names.
    return _module("vllm").SamplingParams(
        temperature=0.0, max_tokens=limit, stop_token_ids=sorted(stop_ids), ignore_eos=True, detokenize=False
    )


def _cut(tokens: Sequence[int], stop_ids: frozenset[int], stop: StopPredicate | None) -> IntArray:
    """The answer without its stop token, up to where ``stop`` first holds."""
    answer: list[int] = []
    for token in tokens:
        if token in stop_ids:
            break
        answer.append(int(token))
        if stop is not None and stop(answer):
            break
    return np.asarray(answer, np.int64)
