"""What other programs start an export with, beside its weights: an Ollama Modelfile, and YAML for ``vllm serve``.

Enters: ``Source`` and the folder with what was written. Leaves: these files, and the copied adapter that one names.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fintune.exporting.source import Source
from fintune.schema.errors import AdapterError

if TYPE_CHECKING:
    from fintune.models.export.gguf_file import GgufFile


def write_settings(source: Source, aside: Path, merged: Path, gguf: Sequence[GgufFile], asked: Sequence[str]) -> None:
    """Writes what Ollama and vLLM start whole weights from.

    Args:
        source: what is exported.
        aside: the folder of the export.
        merged: whole weights in it.
        gguf: GGUF files in it.
        asked: the formats.
    """
    from transformers import AutoTokenizer

    from fintune.models.export.chat_shape import chat_shape
    from fintune.models.export.gguf_file import end_tokens
    from fintune.models.export.launchers import modelfile, vllm_merged
    from fintune.models.own import know_own_models

    know_own_models()
    tokenizer: Any = AutoTokenizer.from_pretrained(merged, trust_remote_code=False)
    if "merged" in asked:
        text = vllm_merged("merged", source.name, _context(merged))
        (aside / "vllm-merged.yaml").write_text(text, encoding="utf-8")
    if gguf:
        ends = dict.fromkeys([*end_tokens(merged), tokenizer.eos_token_id])
        opening = bool(tokenizer.bos_token) and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
        text = modelfile(
            gguf[0].path.name,
            chat_shape(tokenizer),
            context=gguf[0].context,
            stops=[tokenizer.convert_ids_to_tokens(token) for token in ends if token is not None],
            bos=tokenizer.bos_token if opening else "",
            greedy=source.recipe is not None and not any(task.conversations for task in source.recipe.data.tasks),
            others=[one.path.name for one in gguf[1:]],
        )
        (aside / "gguf" / "Modelfile").write_text(text, encoding="utf-8")


def write_adapter(source: Source, aside: Path) -> list[str]:
    """Copies the adapter, and writes what vLLM starts it from; returns what could not be written, and why.

    Raises:
        AdapterError: it was trained on another base.
        ModelError: there is no such base.
    """
    from fintune.inference.vllm_engine import rank_to_reserve
    from fintune.models.adapter_files import read_adapter_info, require_same_base
    from fintune.models.export.launchers import vllm_lora
    from fintune.models.locate import locate_base

    assert source.adapter is not None
    files = locate_base(source.section)
    require_same_base(files, read_adapter_info(source.adapter))
    shutil.copytree(source.adapter, aside / "adapter", ignore=shutil.ignore_patterns(".*"))
    has_tokenizer = (aside / "adapter" / "tokenizer_config.json").is_file()
    revision = files.revision if files.hub_id == source.section.base else None
    try:
        text = vllm_lora(
            files.hub_id or str(files.path),
            "adapter",
            source.name,
            tokenizer="adapter" if has_tokenizer else None,
            rank=rank_to_reserve(source.adapter),
            context=_context(files.path),
            held=source.section.quantization,
            revision=revision,
        )
    except AdapterError as error:
        return [f"No vllm-lora.yaml: {error.message}"]
    (aside / "vllm-lora.yaml").write_text(text, encoding="utf-8")
    if files.hub_id and files.hub_id != source.section.base:
        return [f"vllm-lora.yaml names {files.hub_id}, whose weights are not rounded as those trained on were."]
    return []


def _context(folder: Path) -> int:
    """Tokens that the model in a folder reads at most."""
    from transformers import AutoConfig

    from fintune.models.own import know_own_models
    from fintune.models.window import context_window

    know_own_models()
    return context_window(AutoConfig.from_pretrained(folder, trust_remote_code=False)) or 2048
