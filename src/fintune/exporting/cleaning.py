"""What must not leave this machine: local paths are shortened to their last part, and secrets stop everything.

Enters: text, or a weight file whose own metadata is text. Leaves: text without paths, and sentences on what was done.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fintune.schema.errors import ModelError

_SECRETS = {
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{30,}",
    "an API key": r"\bsk-[A-Za-z0-9_-]{20,}",
    "an AWS key": r"\bAKIA[0-9A-Z]{16}\b",
    "a GitHub token": r"\bgh[pousr]_[A-Za-z0-9]{36,}|\bgithub_pat_[A-Za-z0-9_]{50,}",
    "a GitLab token": r"\bglpat-[A-Za-z0-9_-]{20,}",
    "a Slack token": r"\bxox[abprs]-[A-Za-z0-9-]{10,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a password in an address": r"\b[a-z][a-z0-9+.-]*://[^\s/:@]+:[^\s/:@]+@",
}
_ROOTS = (
    "Users|data|dbfs|efs|export|fsx|gpfs|home|kaggle|lustre|media|mnt|nfs|opt|private|root|scratch|srv|storage|tmp|usr|var"
    "|Volumes|work|workspace|content"
)
_PART = r"[^\s/\\\"'`|<>:*?,;()\[\]{}]+"
# A path below a usual root, a drive of Windows, or a file address; not the end of a longer word or of an address.
_PATHS = re.compile(
    rf"(?<![\w./\\:-])(?:file://)?/(?:{_ROOTS})(?:/{_PART})+/?"
    rf"|(?<![\w])[A-Za-z]:\\+(?:{_PART}\\+)*{_PART}"
    rf"|(?<![\w./\\~-])~/(?:{_PART}/)*{_PART}"
)
_SECRET_NAMES = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$")
_SHORTEST_SECRET = 8
_AGAIN = "It is damaged or cut off: export it again."
# Vocabularies hold fragments of addresses and paths that anyone wrote; only this machine's own places count there.
BINARY_VOCABULARY = "tokenizer.model"
VOCABULARIES = ("tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json", BINARY_VOCABULARY)


def without_paths(text: str, places: Iterable[Path] = ()) -> tuple[str, list[str]]:
    """The text with local paths shortened to their last part, and what was shortened.

    Args:
        text: contents of a file.
        places: folders of this machine to look for beside its usual ones.
    """
    found: list[str] = []

    def shortened(match: re.Match[str]) -> str:
        path = match[0].rstrip("/\\.")
        found.append(path)
        return re.split(r"[/\\]", path)[-1] + match[0][len(path) :].strip("/\\")

    for place in _known(places):
        text = re.sub(rf"{re.escape(str(place))}(?:/{_PART})*/?(?![\w-])", shortened, text)
    text = _PATHS.sub(shortened, text)
    return text, list(dict.fromkeys(found))


def own_places_in(text: str, places: Iterable[Path] = ()) -> list[str]:
    """Paths of this machine in a vocabulary, by the folders of ``without_paths`` and not by their form.

    ``/tmp`` alone is a token of many vocabularies: a folder below the root counts with what is in it. In a text that
    was read as Latin-1, folders are found by their bytes.
    """
    found: list[str] = []
    for place in _known(places):
        inside = "+" if len(place.parts) == 2 else "*"
        for name in {str(place), str(place).encode("utf-8", "surrogateescape").decode("latin-1")}:
            found += re.findall(rf"{re.escape(name)}(?:/[\w.-]{{2,}}){inside}(?![\w-])", text)
    return found


def _known(places: Iterable[Path]) -> list[Path]:
    """Folders of this machine, the longest first."""
    return sorted({*_own_places(), *places}, key=lambda place: len(str(place)), reverse=True)


def require_no_secret(name: str, text: str) -> None:
    """Refuses text that holds a secret.

    Raises:
        ModelError: naming the file and the kind of secret, never the secret.
    """
    for kind, pattern in _SECRETS.items():
        if match := re.search(pattern, text):
            line = text.count("\n", 0, match.start()) + 1
            raise ModelError(f"{name} holds {kind} (line {line}).", "Take it out, and withdraw it where it was issued.")
    for variable, value in os.environ.items():
        if _SECRET_NAMES.search(variable.upper()) and len(value) >= _SHORTEST_SECRET and value in text:
            raise ModelError(f"{name} holds the value of the variable {variable}.", "Take it out.")


def metadata_text(file: Path) -> str:
    """What a safetensors or GGUF file says in words beside its weights and vocabulary.

    Raises:
        ModelError: the file is damaged or cut off.
    """
    from fintune.models.foreign import first_line, speaks_of_the_file
    from fintune.models.gguf_header import check_gguf

    try:
        if file.suffix == ".safetensors":
            return _said_by_safetensors(file)
        check_gguf(file)
        return _said_by_gguf(file)
    except ModelError as error:
        raise ModelError(error.message, _AGAIN) from error
    except BaseException as error:
        if not speaks_of_the_file(error):
            raise
        raise ModelError(f"{file} cannot be read ({type(error).__name__}: {first_line(error)}).", _AGAIN) from error


def _said_by_safetensors(file: Path) -> str:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as stored:
        return "\n".join(f"{key}: {value}" for key, value in (stored.metadata() or {}).items())


def _said_by_gguf(file: Path) -> str:
    import gguf

    def said(field: Any) -> bool:
        return bool(field.types) and field.types[0] == gguf.GGUFValueType.STRING

    fields = gguf.GGUFReader(file).fields
    return "\n".join(f"{key}: {field.contents()}" for key, field in fields.items() if said(field))


def _own_places() -> list[Path]:
    from fintune.models.files import cache_dir

    named = [Path.home(), Path.cwd(), Path(tempfile.gettempdir()), cache_dir()]
    named += [
        Path(os.environ[name]) for name in ("FINTUNE_HOME", "FINTUNE_DATA_DIR", "HF_HOME") if os.environ.get(name)
    ]
    return [place for place in named if place.is_absolute() and len(place.parts) > 1]
