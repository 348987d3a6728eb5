"""``fintune.push``: an adapter, whole weights or GGUF files, with their model card, to the Hugging Face hub.

Enters: a run, an adapter, or a folder that ``fintune export`` wrote. Leaves: a repository, or with a dry run
the list of what it would hold. Only files that belong to a model are sent; local paths in them are shortened, and
secrets refused.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fintune.exporting.cleaning import (
    BINARY_VOCABULARY,
    VOCABULARIES,
    metadata_text,
    own_places_in,
    require_no_secret,
    without_paths,
)
from fintune.models.files import require_safetensors, stated_licence
from fintune.schema.adapter_records import adapter_place
from fintune.schema.errors import ModelError, ProviderError
from fintune.schema.network import is_offline, offline_reason
from fintune.schema.run_directory import adapter_folder

log = logging.getLogger(__name__)
CARD = "README.md"
_WEIGHTS = (".safetensors", ".gguf")
_INDEX, _SHARD = "model.safetensors.index.json", re.compile(r".+-\d{5}-of-\d{5}\.safetensors")
_ADAPTER_CONFIG, _ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_AGAIN = "Export or copy it again, and push the new folder."
_TEXTS = (
    CARD,
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "NOTICE",
    "Modelfile",
    _ADAPTER_CONFIG,
    "chat_template.jinja",
    "config.json",
    "fintune_base.json",
    "fintune_validation.json",
    "generation_config.json",
    _INDEX,
    "recipe.yaml",
    "special_tokens_map.json",
    "tokenizer_config.json",
)


@dataclass(frozen=True)
class PushedFile:
    """One file of a repository.

    Attributes:
        name: in the repository.
        size_bytes: its size there.
        source: the file it comes from.
        content: what is sent in its place, where paths were shortened; None sends the file as it is.
        shortened: the local paths that were.
    """

    name: str
    size_bytes: int
    source: Path
    content: bytes | None
    shortened: tuple[str, ...]


@dataclass(frozen=True)
class PushReport:
    """What was sent, or with a dry run would be.

    Attributes:
        repository: its name on the hub.
        private: whether only its owner sees it.
        files: what it holds.
        left_out: files of the folder that belong to no model.
        card: the model card as it is sent.
        licence: that the card states.
        address: of what was sent; None of a dry run.
    """

    repository: str
    private: bool
    files: tuple[PushedFile, ...]
    left_out: tuple[str, ...]
    card: str
    licence: str
    address: str | None


def push(
    source: str | Path,
    repository: str,
    *,
    private: bool = True,
    dry_run: bool = False,
    revision: str | None = None,
    message: str = "Upload by fintune",
) -> PushReport:
    """Sends a model with its card to the Hugging Face hub, in one commit.

    Args:
        source: run directory, adapter folder or name, or one of the folders merged, adapter and gguf of an export.
        repository: ``owner/name``; made if it is not there.
        private: make it visible to its owner alone; a repository that exists stays as it is.
        dry_run: send nothing, open no connection, and return what would be sent.
        revision: branch; the main one when None.
        message: of the commit.

    Raises:
        ModelError: there is no model or no card, a file of the model is missing or damaged, or one holds a secret.
        ProviderError: the hub cannot be reached, or refuses.
    """
    _require_name(repository)
    folder = _model_folder(source)
    _require_whole(folder)
    files, left_out = _files(folder)
    card = next((file for file in files if file.name == CARD), None)
    if card is None:
        raise ModelError(
            f"{folder} has no model card ({CARD}).",
            "Write one with `fintune report RUN`, or by hand: licence, data, measurements and limits.",
        )
    text = (card.content or card.source.read_bytes()).decode("utf-8")
    address = None if dry_run else _send(files, repository, private, revision, message)
    return PushReport(repository, private, files, left_out, text, stated_licence(folder), address)


def _require_name(repository: str) -> None:
    import huggingface_hub.utils

    rules: Any = huggingface_hub.utils
    try:
        rules.validate_repo_id(repository)
    except ValueError as error:
        raise ModelError(f"{repository} is no name of a repository.", "Write owner/name.") from error
    if "/" not in repository:
        raise ModelError(f"{repository} does not say whose repository it is.", f"Write OWNER/{repository}.")


def _model_folder(source: str | Path) -> Path:
    folder = adapter_folder(adapter_place(source))
    if not folder.is_dir():
        raise ModelError(f"The folder {folder} does not exist.", "Name a run, an adapter or an export.")
    if any(file.suffix in _WEIGHTS for file in folder.iterdir()):
        return folder
    parts = [name for name in ("merged", "adapter", "gguf") if (folder / name).is_dir()]
    remedy = f"Push {' or '.join(str(folder / name) for name in parts)}." if parts else "Train or export it first."
    raise ModelError(f"{folder} holds no weights in safetensors or GGUF form.", remedy)


def _require_whole(folder: Path) -> None:
    """Refuses a model of which a file is missing: whoever downloads it could not load it.

    Raises:
        ModelError: naming the file.
    """
    names = {file.name for file in folder.iterdir() if file.suffix == ".safetensors"}
    if not names:
        return  # GGUF files, each whole by itself
    if (folder / _ADAPTER_CONFIG).is_file():
        if _ADAPTER_WEIGHTS not in names:
            raise ModelError(f"{folder} lacks {_ADAPTER_WEIGHTS}.", _AGAIN)
        return
    try:
        require_safetensors(folder)
    except ModelError as error:
        raise ModelError(error.message, _AGAIN) from error
    if any(map(_SHARD.fullmatch, names)) and not (folder / _INDEX).is_file():
        raise ModelError(f"{folder} lacks {_INDEX}, which says what each of its files holds.", _AGAIN)


def _files(folder: Path) -> tuple[tuple[PushedFile, ...], tuple[str, ...]]:
    """What is sent of a folder, and the names of what is not."""
    sent, left_out = [], []
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.suffix in _WEIGHTS and not file.name.startswith("."):
            sent.append(_weights(file))
        elif file.is_file() and file.name in _TEXTS:
            sent.append(_text(file, folder))
        elif file.is_file() and file.name in VOCABULARIES:
            sent.append(_vocabulary(file, folder))
        else:
            left_out.append(file.name)
    return tuple(sent), tuple(left_out)


def _weights(file: Path) -> PushedFile:
    said = metadata_text(file)
    require_no_secret(file.name, said)
    template = "tokenizer.chat_template"
    plain = "\n".join(line for line in said.splitlines() if not line.startswith(template))
    if found := without_paths(plain)[1]:
        raise ModelError(f"The metadata of {file} names the local path {found[0]}.", "Export the model again.")
    return PushedFile(file.name, file.stat().st_size, file, None, ())


def _text(file: Path, folder: Path) -> PushedFile:
    raw = file.read_bytes()
    text = _decoded(file, raw)
    require_no_secret(file.name, text)
    clean, shortened = without_paths(text, [folder.resolve(), folder.resolve().parent])
    if not shortened:
        return PushedFile(file.name, len(raw), file, None, ())
    content = clean.encode("utf-8")
    return PushedFile(file.name, len(content), file, content, tuple(shortened))


def _vocabulary(file: Path, folder: Path) -> PushedFile:
    """A vocabulary as it is: a token that is shortened would be another one."""
    raw = file.read_bytes()
    # SentencePiece's own format holds texts between numbers; as Latin-1 every byte is a character.
    text = raw.decode("latin-1") if file.name == BINARY_VOCABULARY else _decoded(file, raw)
    require_no_secret(file.name, text)
    if found := own_places_in(text, [folder.resolve(), folder.resolve().parent]):
        raise ModelError(f"{file} names the local path {found[0]}.", "Make the tokenizer without it.")
    return PushedFile(file.name, len(raw), file, None, ())


def _decoded(file: Path, raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelError(
            f"{file} is no text in UTF-8 (byte {error.start}), so it cannot be searched for secrets and local paths.",
            "Write it again as UTF-8, or take it out of the folder.",
        ) from error


def _send(files: tuple[PushedFile, ...], repository: str, private: bool, revision: str | None, message: str) -> str:
    from huggingface_hub import CommitOperationAdd, HfApi, errors
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    no_answer: Any = vars(errors)["HTTPError"]  # of the library that the hub's version speaks HTTP with; no OSError
    if is_offline():
        raise ProviderError(f"Nothing is sent to the hub: {offline_reason()}.", "Leave it out, or use --dry-run.")
    operations: list[Any] = [
        CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=file.content or str(file.source)) for file in files
    ]
    hub = HfApi(library_name="fintune")
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        if revision is not None:
            hub.create_branch(repository, branch=revision, exist_ok=True)
        made = hub.create_commit(repository, operations, commit_message=message, revision=revision)
    except LocalTokenNotFoundError as error:
        raise ProviderError("The hub needs to know who you are.", "Run: hf auth login") from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "no status")
        remedy = "Run: hf auth login" if status in (401, 403) else "Try again later; nothing was committed."
        raise ProviderError(f"The hub refused {repository} ({status}).", remedy) from error
    except (OSError, no_answer) as error:  # no route, no name, a proxy, or no answer in time
        raise ProviderError(
            f"The hub cannot be reached ({type(error).__name__}).",
            "Check the connection, and start the same command again.",
        ) from error
    return str(made.commit_url)
