"""Whether a checkpoint's config and weights can belong together, found out before a model is built from the config.

Enters: a model folder and its config. Leaves: nothing, or a ``ModelError``. A model of as many layers as a damaged
config asks for would be built for minutes before anyone looked at the weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from fintune.models.files import weight_files
from fintune.models.foreign import first_line, speaks_of_the_file
from fintune.schema.errors import ModelError
from fintune.schema.keys import show_value

# Keys that state how many modules there are; vocab_size_per_layer_input and the like state widths.
_COUNT = re.compile(r"(num|n)_(\w+_)?(layers?|experts?)(_per_tok)?|(en|de)coder_layers")


def require_plausible(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuses unreadable weight files, and a config with more layers or experts than the weights can hold."""
    tensors, largest = _sizes(folder)
    for key, count in _counts(config):
        limit = tensors if "layer" in key else max(tensors, largest)
        if count > limit:
            stated = f"{folder / 'config.json'} states {key} {show_value(count)}"
            raise ModelError(
                f"{stated}, but the weights beside it are {tensors} tensors.",
                "Download the model again; its config.json does not belong to these weights.",
            )


def _sizes(folder: Path) -> tuple[int, int]:
    """How many tensors the weight files hold, and the largest size of any dimension."""
    tensors, largest = 0, 0
    for file in weight_files(folder):
        try:
            with safe_open(file, framework="pt") as stored:
                names = list(stored.keys())
                largest = max([largest, *(size for name in names for size in stored.get_slice(name).get_shape())])
        except BaseException as exc:
            if not speaks_of_the_file(exc):
                raise
            raise ModelError(
                f"The weight file {file} cannot be read ({type(exc).__name__}: {first_line(exc)}).",
                "Download it again; the file may be incomplete.",
            ) from exc
        tensors += len(names)
    return tensors, largest


def _counts(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _counts(value)
        elif isinstance(value, int) and _COUNT.fullmatch(key):
            yield key, value
