"""GGUF files become ordinary safetensors folders, once, in the cache.

Enters: a ``.gguf`` file. Leaves: a folder with a plain fp32 model and its tokenizer (chat template included), written
aside and renamed, under a file lock, so that concurrent runs and crashes never see half of it.
"""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fintune.models.files import cache_dir, content_hash, read_json, sha256_of, written_aside
from fintune.models.foreign import first_line, speaks_of_the_file
from fintune.models.gguf_header import check_gguf, require_magic
from fintune.models.gguf_splits import split_as_stated
from fintune.models.quiet import forbid_fetched_kernels, no_gguf_progress_bar, no_progress_bars
from fintune.schema.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONVERTER_VERSION = 2
MANIFEST = "fintune_conversion.json"


def converted_folder(source_hash: str) -> Path:
    """Where the conversion of the file with this SHA-256 is cached."""
    return cache_dir() / "bases" / f"gguf-{source_hash[:32]}-v{CONVERTER_VERSION}"


def convert_gguf(file: Path, *, source_hash: str | None = None) -> Path:
    """The cached safetensors folder of a GGUF file, converted now if it is not there yet.

    Args:
        file: the GGUF file.
        source_hash: its SHA-256 when the caller has computed it already.
    """
    require_magic(file)
    source_hash = source_hash or sha256_of(file)
    folder = converted_folder(source_hash)
    if _is_intact(folder, source_hash):
        return folder
    from filelock import FileLock

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(str(folder) + ".lock"):
            if not _is_intact(folder, source_hash):  # another process may have converted it while we waited
                _remove_leftovers(folder)
                _convert(file, folder, source_hash)
    except OSError as exc:
        raise ModelError(
            f"The converted model cannot be written to {folder.parent} ({exc.strerror or exc}).",
            "Free some disk space, or set FINTUNE_CACHE to a folder that has it.",
        ) from exc
    return folder


def _is_intact(folder: Path, source_hash: str) -> bool:
    manifest_file = folder / MANIFEST
    if not manifest_file.is_file():
        return False
    try:
        manifest = read_json(manifest_file)
        return manifest.get("source_sha256") == source_hash and manifest.get("weights_sha256") == content_hash(folder)
    except (ModelError, OSError):
        return False


def _remove_leftovers(folder: Path) -> None:
    """Removes a damaged conversion and what killed ones left behind; only called while holding the lock."""
    for stale in (folder, *folder.parent.glob(f".{folder.name}.*")):
        shutil.rmtree(stale, ignore_errors=True)


def _convert(file: Path, folder: Path, source_hash: str) -> None:
    forbid_fetched_kernels()
    with no_progress_bars(), no_gguf_progress_bar():
        model, tokenizer = _read(file)
        with written_aside(folder) as aside:
            model.save_pretrained(aside)
            tokenizer.save_pretrained(aside)
            del model
            manifest = {
                "source_sha256": source_hash,
                "source_name": file.name,
                "converter_version": CONVERTER_VERSION,
                "weights_sha256": content_hash(aside, remember=False),
            }
            (aside / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _read(file: Path) -> tuple[PreTrainedModel, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    metadata = check_gguf(file)
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
        split_as_stated(tokenizer, metadata, file)
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32, trust_remote_code=False
        )
        return _plain_copy(model), tokenizer
    except BaseException as exc:  # the reader raises whatever the damaged bytes lead it to
        if isinstance(exc, MemoryError) or not speaks_of_the_file(exc):
            raise
        raise ModelError(
            f"{file} cannot be read as a GGUF language model ({type(exc).__name__}: {first_line(exc)}).",
            "Download it again; if it is intact, its architecture is not supported: use the safetensors version.",
        ) from exc


def _plain_copy(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights under a configuration that no longer says they came from GGUF, which cannot be saved."""
    import torch

    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config._name_or_path = ""
    config.__dict__.pop("_model_name_or_path", None)  # the GGUF's own title, not a path
    with torch.device("meta"):
        plain = type(model)(config)
    missing, unexpected = plain.load_state_dict(model.state_dict(), strict=False, assign=True)
    plain.tie_weights()
    lost = [name for name in missing if not (config.tie_word_embeddings and name == "lm_head.weight")]
    if lost or unexpected:
        raise ModelError(
            f"The GGUF file does not fit a {type(model).__name__}: {[*lost, *unexpected][0]} is left over."
        )
    plain.generation_config = model.generation_config
    return plain
