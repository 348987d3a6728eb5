"""Adapters on disk: PEFT's own files plus the tokenizer and a note saying which base they belong to.

::

    adapter/
      adapter_config.json  adapter_model.safetensors   PEFT's format, readable without fintune
      tokenizer files, chat template                   so that serving formats prompts as training did
      fintune_base.json                                base model, revision and SHA-256 of its weights

With ``adapter.kind: none`` the folder holds the whole model instead, in Hugging Face layout, with the same note.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fintune.models.adapters import peft_quiet, seeded
from fintune.models.files import BaseModelFiles, content_hash, read_json, weight_files, written_aside
from fintune.models.foreign import first_line, speaks_of_the_file
from fintune.models.fp8_linear import refuse_merging
from fintune.models.load import LoadedBase
from fintune.models.quiet import no_progress_bars
from fintune.schema.errors import AdapterError, ModelError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NOTE = "fintune_base.json"
_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class AdapterInfo:
    """What a saved adapter says about itself.

    Attributes:
        path: its folder.
        kind: ``lora``, or ``full`` for a whole trained model.
        base: the base model as the recipe named it.
        base_revision: commit or file hash of the base, when known.
        base_content_hash: SHA-256 of the base's weights; None for adapters made by other tools.
        content_hash: SHA-256 of the adapter's own weights.
    """

    path: Path
    kind: Literal["lora", "full"]
    base: str
    base_revision: str | None
    base_content_hash: str | None
    content_hash: str


def save_adapter(
    model: PeftModel | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    path: str | Path,
    base_files: BaseModelFiles,
    weights: dict[str, Any] | None = None,
) -> Path:
    """Saves the trained weights, tokenizer and chat template together, replacing ``path`` in one step.

    Args:
        model: whose adapter, or all of whose weights, are saved.
        tokenizer: saved beside them.
        path: the adapter folder.
        base_files: which base it belongs to.
        weights: the trained parameters by name, where those of ``model`` are only a part of them.

    Raises:
        AdapterError: ``path`` holds something that is not an adapter, which would be lost.
    """
    from peft import PeftModel

    target = Path(path)
    if target.exists() and not _replaceable(target):
        raise AdapterError(f"{target} exists and is not an adapter folder.", "Choose another folder.")
    is_peft = isinstance(model, PeftModel)
    note = {
        "kind": "lora" if is_peft else "full",
        "base": base_files.source,
        "revision": base_files.revision,
        "content_hash": base_files.content_hash,
        "licence": base_files.licence,
    }
    with no_progress_bars(), written_aside(target) as aside:
        if is_peft:
            # "auto" would ask the hub whether the vocabulary has grown; it never does here.
            model.save_pretrained(str(aside), save_embedding_layers=False, state_dict=weights)
            sort_targets(aside / _CONFIG)
            (aside / "README.md").unlink(missing_ok=True)  # PEFT's empty card; the report writes a real one
        else:
            model.save_pretrained(str(aside), state_dict=weights)
        tokenizer.save_pretrained(str(aside))
        (aside / NOTE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
        for file in aside.iterdir():
            file.chmod((aside / NOTE).stat().st_mode)  # safetensors writes for the owner's eyes only
    return target


def sort_targets(config_file: Path) -> None:
    """PEFT writes a set in the order of this process's string hashes; sorted, equal adapters have equal files."""
    config = read_json(config_file)
    if isinstance(config.get("target_modules"), list):
        config["target_modules"] = sorted(config["target_modules"])
        config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _replaceable(target: Path) -> bool:
    if not target.is_dir():
        return False
    return (target / NOTE).is_file() or (target / _CONFIG).is_file() or not any(target.iterdir())


def read_adapter_info(path: str | Path) -> AdapterInfo:
    """Reads what an adapter folder says about itself, without loading weights or a model."""
    folder = Path(path)
    if not folder.is_dir():
        raise AdapterError(f"The adapter folder {folder} does not exist.", "Check the path.")
    try:
        note = _note(folder)
        if note.get("kind") == "full":
            return _info(folder, "full", str(note.get("base", "")), note, content_hash(folder))
        config = _lora_config(folder)
        base = str(note.get("base") or config.get("base_model_name_or_path") or "")
        return _info(folder, "lora", base, note, content_hash(folder))
    except ModelError as exc:
        raise AdapterError(exc.message, exc.remedy) from exc


def _note(folder: Path) -> dict[str, Any]:
    """What ``save_adapter`` wrote about the base; empty for adapters made by other tools."""
    if not (folder / NOTE).is_file():
        return {}
    note = read_json(folder / NOTE)
    for key in ("kind", "base", "revision", "content_hash"):
        if not isinstance(note.get(key), str | None):
            raise AdapterError(
                f"{folder / NOTE} holds no text as its {key}.", "The adapter is damaged; copy or train it again."
            )
    return note


def _info(folder: Path, kind: Literal["lora", "full"], base: str, note: dict[str, Any], digest: str) -> AdapterInfo:
    return AdapterInfo(folder, kind, base, note.get("revision"), note.get("content_hash"), digest)


def _lora_config(folder: Path) -> dict[str, Any]:
    if not (folder / _CONFIG).is_file():
        raise AdapterError(f"{folder} has no {_CONFIG}, so it is not an adapter folder.", "Check the path.")
    if not (folder / _WEIGHTS).is_file():
        if (folder / "adapter_model.bin").is_file():
            raise AdapterError(
                f"{folder} holds its adapter only in pickled form (adapter_model.bin), which can run code when opened.",
                "Load it with PEFT where you trust it and save it again with safe_serialization=True.",
            )
        raise AdapterError(f"{folder} lacks {_WEIGHTS}.", "The adapter is incomplete; copy or train it again.")
    config = read_json(folder / _CONFIG)
    if config.get("peft_type") != "LORA":
        raise AdapterError(
            f"{folder} is a {config.get('peft_type')} adapter, but fintune reads LoRA adapters.",
            "Load it with PEFT directly, or train a LoRA adapter.",
        )
    if config.get("megatron_config"):  # PEFT would import whatever Python module megatron_core names
        raise AdapterError(
            f"{folder / _CONFIG} sets megatron_config, which names Python code to run.",
            "Load it with PEFT directly where you trust it.",
        )
    _require_rank_as_stored(folder, config)
    return config


def _require_rank_as_stored(folder: Path, config: dict[str, Any]) -> None:
    """PEFT allocates what the configuration says before it looks at the weights, so the two must agree first."""
    from safetensors import safe_open

    try:
        with safe_open(folder / _WEIGHTS, framework="pt") as stored:
            names = list(stored.keys())
            largest = max((max(stored.get_slice(name).get_shape(), default=0) for name in names), default=0)
    except BaseException as exc:
        if not speaks_of_the_file(exc):
            raise
        raise AdapterError(
            f"{folder / _WEIGHTS} cannot be read ({type(exc).__name__}: {first_line(exc)}).",
            "The adapter is damaged; copy or train it again.",
        ) from exc
    pattern = config.get("rank_pattern") or {}
    ranks = [config.get("r"), *(pattern.values() if isinstance(pattern, dict) else [None])]
    if bad := [rank for rank in ranks if not isinstance(rank, int) or not 0 < rank <= largest]:
        raise AdapterError(
            f"{folder / _CONFIG} states the rank {bad[0]!r:.60}, which the weights beside it do not have.",
            "The adapter is damaged; copy or train it again.",
        )


def load_adapter(base: LoadedBase, path: str | Path, *, name: str = "default") -> PeftModel | PreTrainedModel:
    """Puts a saved adapter (or wholly trained weights) on a freshly loaded base.

    Args:
        base: the base model it was trained on; changed in place.
        path: folder written by ``save_adapter``, or any PEFT LoRA folder in safetensors form.
        name: what peft calls it, for ``load_beside``.

    Raises:
        AdapterError: it is damaged, pickled, or was made for another base.
    """
    info = read_adapter_info(path)
    require_same_base(base.files, info)
    if info.kind == "full":
        return _load_full(base, info)
    from peft import PeftModel

    def put() -> PeftModel:
        return PeftModel.from_pretrained(base.model, str(info.path), adapter_name=name)

    return _put_on(base, info, put, name)


def load_beside(base: LoadedBase, model: PeftModel, path: str | Path, name: str) -> None:
    """Puts one more adapter on a base that has one; ``model.set_adapter(name)`` switches to it.

    Args:
        base: the base below ``model``.
        model: what ``load_adapter`` returned.
        path: folder of a LoRA adapter.
        name: what peft calls it; peft takes no dots, and finds tensors by it, so it should look like no layer.

    Raises:
        AdapterError: as in ``load_adapter``, or it is a whole model, which cannot be switched.
    """
    info = read_adapter_info(path)
    require_same_base(base.files, info)
    if info.kind == "full":
        raise AdapterError(
            f"{info.path} holds a wholly trained model, which cannot stand beside adapters.", "Load it by itself."
        )

    def put() -> PeftModel:
        model.load_adapter(str(info.path), adapter_name=name, torch_device=str(base.model.device))
        return model

    _put_on(base, info, put, name)


def _put_on(base: LoadedBase, info: AdapterInfo, put: Callable[[], PeftModel], name: str) -> PeftModel:
    try:
        with seeded(0, base.model.device), peft_quiet():  # PEFT draws random weights before it reads the stored ones
            model = put()
    except BaseException as exc:  # shape, configuration and safetensors errors of PEFT and below
        if not speaks_of_the_file(exc):
            raise
        raise _does_not_fit(base, info, exc) from exc
    _require_complete(model, info, name)
    refuse_merging(model)
    return model


def require_same_base(files: BaseModelFiles, info: AdapterInfo) -> None:
    """Refuses an adapter that was trained on other weights than those of the base in ``files``."""
    if info.base_content_hash == files.content_hash:
        return
    if info.base_content_hash is not None:
        raise AdapterError(
            f"The adapter {info.path} was trained on {info.base or 'another base'} with weights "
            f"{info.base_content_hash[:12]}…, but {files.source} has {files.content_hash[:12]}….",
            f"Load the base it was trained on ({info.base}, revision {info.base_revision or 'unknown'}).",
        )
    if info.base and Path(info.base).name.lower() != Path(files.source).name.lower():
        raise AdapterError(
            f"The adapter {info.path} says it was trained on {info.base}, not on {files.source}.",
            f"Set model.base={info.base}.",
        )


def _does_not_fit(base: LoadedBase, info: AdapterInfo, exc: BaseException) -> AdapterError:
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    reason = next((line for line in lines if "mismatch" in line and "torch.Size" in line), first_line(exc))
    return AdapterError(
        f"The adapter {info.path} does not fit {base.files.source} ({type(exc).__name__}: {reason[:240].rstrip('.')}).",
        f"Load it on the base it was trained on ({info.base or 'unknown'}), or copy it again if it is damaged.",
    )


def _require_complete(model: PeftModel, info: AdapterInfo, name: str) -> None:
    """PEFT only warns when stored and expected tensors differ; one with holes must not pass for a trained adapter."""
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(info.path / _WEIGHTS, framework="pt") as stored_file:
        stored = set(stored_file.keys())
    expected = set(get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False))
    if odd := sorted(expected ^ stored):
        raise AdapterError(
            f"The adapter {info.path} and the model differ in {len(odd)} tensors, first {odd[0]}.",
            f"Load it on the base it was trained on ({info.base or 'unknown'}).",
        )


def _load_full(base: LoadedBase, info: AdapterInfo) -> PreTrainedModel:
    from safetensors.torch import load_file

    if base.quantization != "none":
        raise AdapterError(
            f"{info.path} holds a wholly trained model, which cannot replace {base.quantization} weights.",
            f"Set model.quantization=none, or set model.base={info.path}.",
        )
    model: Any = base.model
    expected = {name for name, _ in model.named_parameters()} | {name for name, _ in model.named_buffers()}
    seen: set[str] = set()
    try:
        for shard in weight_files(info.path):
            weights = load_file(shard)
            seen |= set(weights)
            model.load_state_dict(weights, strict=False)
    except BaseException as exc:
        if not speaks_of_the_file(exc):
            raise
        raise _does_not_fit(base, info, exc) from exc
    wanted = expected & set(model.state_dict())
    if lacking := sorted(wanted - seen):
        raise AdapterError(f"{info.path} lacks {lacking[0]}, which {base.files.source} has.", "Copy or train it again.")
    model.requires_grad_(False)
    return base.model
