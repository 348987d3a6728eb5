"""A base model as files on disk: where the cache is, which formats are accepted, and the hash that identifies weights.

Enters: a folder. Leaves: ``BaseModelFiles`` or ``ModelError``. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fintune.schema.errors import ModelError

PICKLED_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class BaseModelFiles:
    """Which weights a run starts from.

    Attributes:
        path: folder with config, safetensors and tokenizer.
        source: what the recipe named (alias, hub id, folder or .gguf file).
        revision: commit of a hub model, ``sha256:…`` of a GGUF file, None for a local folder.
        content_hash: SHA-256 over the safetensors files; the same weights have the same hash wherever they lie.
        licence: licence identifier as the source states it, or ``unknown``.
        hub_id: where the same model is published, when that is known.
    """

    path: Path
    source: str
    revision: str | None
    content_hash: str
    licence: str
    hub_id: str | None = None


def cache_dir() -> Path:
    """Fintune's cache folder: ``FINTUNE_CACHE``, or the user's cache folder of this system."""
    override = os.environ.get("FINTUNE_CACHE")
    if override:
        return Path(override).expanduser()
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("fintune"))


def sha256_of(path: Path) -> str:
    """SHA-256 of one file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up the model in ``folder``: those its index names, else all of them."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file() or not index.is_file():
        single = folder / "model.safetensors"
        return [single] if single.is_file() else sorted(folder.glob("*.safetensors"))
    shards = _shard_names(index)
    missing = [name for name in shards if not (folder / name).is_file()]
    if missing:
        raise ModelError(
            f"{folder} lacks {missing[0]}, one of the {len(shards)} weight files its index names.",
            "Download the model again; the last download was incomplete.",
        )
    return [folder / name for name in shards]


def _shard_names(index: Path) -> list[str]:
    weight_map = read_json(index).get("weight_map")
    names = set(weight_map.values()) if isinstance(weight_map, dict) and _all_text(weight_map.values()) else set()
    if not names:
        raise ModelError(f"{index} has no weight_map of file names.", "Download or write the file again.")
    for name in sorted(names):
        # A file may be a symbolic link, as in the hub's cache, but its name may not lead out of the folder.
        if name in ("", ".", "..") or any(separator in name for separator in "/\\:\0"):
            raise ModelError(
                f"{index} names the weight file {name!r}, which does not lie in its folder.",
                "Do not trust this copy: download the model again from its publisher.",
            )
        if not name.endswith(".safetensors"):
            raise ModelError(
                f"{index} names the weight file {name!r}, which is not a safetensors file.",
                "Point model.base at a folder with safetensors weights.",
            )
    return sorted(names)


def _all_text(values: Iterable[object]) -> bool:
    return all(isinstance(value, str) for value in values)


def require_safetensors(folder: Path) -> None:
    """Refuses a folder that is not a complete model in safetensors form."""
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} has no config.json, so it is not a model folder.",
            "Point model.base at a folder written by save_pretrained, a .gguf file or a hub id, or use smollm2-135m.",
        )
    if weight_files(folder):
        return
    pickled = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLED_SUFFIXES)
    if pickled:
        raise ModelError(
            f"{folder} holds its weights only in pickled form ({pickled[0]}), which can run code when it is opened.",
            "Convert it to safetensors where you trust it: "
            "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder).",
        )
    raise ModelError(f"{folder} has no safetensors weights.", "Point model.base at a folder that has them.")


def content_hash(folder: Path, *, remember: bool = True) -> str:
    """SHA-256 over the folder's safetensors files.

    Digests are remembered in the cache by path, size and modification time, so a large model is read once.
    """
    files = weight_files(folder)
    sidecar = cache_dir() / "hashes" / f"{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()}.json"
    known = _remembered(sidecar)
    digests: dict[str, list[Any]] = {}
    for file in files:
        stat = file.stat()
        key = [stat.st_size, stat.st_mtime_ns]
        match known.get(file.name):
            case [size, modified, str(digest)] if [size, modified] == key:
                digests[file.name] = [*key, digest]
            case _:
                digests[file.name] = [*key, sha256_of(file)]
    if remember and digests != known:
        _remember(sidecar, digests)
    if len(files) == 1:
        return str(digests[files[0].name][2])
    listing = "".join(f"{digests[file.name][2]}\n" for file in files)
    return hashlib.sha256(listing.encode()).hexdigest()


def _remembered(sidecar: Path) -> dict[str, Any]:
    try:
        return read_json(sidecar) if sidecar.is_file() else {}
    except ModelError:
        return {}  # a damaged cache only costs hashing again


def _remember(sidecar: Path, digests: dict[str, list[Any]]) -> None:
    try:
        sidecar.parent.mkdir(parents=True, exist_ok=True)
        aside = sidecar.with_name(f"{sidecar.name}.{uuid.uuid4().hex}")
        aside.write_text(json.dumps(digests), encoding="utf-8")
        aside.replace(sidecar)
    except OSError:
        return  # a read-only or full cache only costs hashing again


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; anything else is a ``ModelError`` that names the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as exc:
        reason = str(exc).splitlines()[0][:200].rstrip(".")
        raise ModelError(f"{path} cannot be read as JSON ({reason}).", "Download or write the file again.") from exc
    if not isinstance(value, dict):
        raise ModelError(f"{path} does not hold a JSON object.", "Download or write the file again.")
    return value


def stated_licence(folder: Path) -> str:
    """The ``license`` of the model card in ``folder``, or ``unknown``."""
    card = folder / "README.md"
    if not card.is_file():
        return "unknown"
    lines = card.read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines or lines[0].strip() != "---":
        return "unknown"
    fields = {}
    for line in lines[1:]:
        if line.strip() == "---":
            break
        key, _, value = line.partition(":")
        fields[key] = value.strip().strip("\"'")
    licence = fields.get("license") or "unknown"
    return fields.get("license_name") or licence if licence == "other" else licence


@contextmanager
def written_aside(target: Path, *, replace: bool = True) -> Iterator[Path]:
    """Yields an empty folder beside ``target`` and puts it in its place when the block succeeds.

    A reader sees the old folder or the new one, never half of one. On failure the aside folder is removed.

    Args:
        target: folder to make.
        replace: an old one is removed; otherwise one that is there by the end is left as it is.

    Raises:
        ModelError: ``target`` is there by the end, and may not be replaced.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    mark = uuid.uuid4().hex[:12]
    aside = target.with_name(f".{target.name}.partial-{mark}")
    aside.mkdir()
    try:
        yield aside
        if not target.exists():
            aside.rename(target)
        elif replace:
            old = target.with_name(f".{target.name}.old-{mark}")
            target.rename(old)
            aside.rename(target)
            shutil.rmtree(old, ignore_errors=True)
        else:
            raise ModelError(
                f"{target} was made by another program meanwhile, and would be overwritten.", "Choose another folder."
            )
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
