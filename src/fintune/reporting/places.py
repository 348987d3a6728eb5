r"""Folders of this machine out of what a report says: ``/home/ann/data/news.csv`` becomes ``…/news.csv``.

A page that is passed on need not say who made it and where. Enters: facts, recipes, sentences. Leaves: the same, with
absolute paths cut to their last part; addresses on the web and relative paths stay.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel

_Model = TypeVar("_Model", bound=BaseModel)
# Not behind a letter, a dot, a colon or a slash: those belong to addresses, relative paths and fractions.
_POSIX = re.compile(r"(?<![\w.:/~-])~?/(?:[^\s/'\",;:()<>]+/)+([^\s/'\",;:()<>]*)")
_WINDOWS = re.compile(r"(?<!\w)(?:[A-Za-z]:|\\\\[^\\\s]+)\\(?:[^\\\s'\",;:()<>]+\\)*([^\\\s'\",;:()<>]*)")
_WHOLE = re.compile(r"(?:~?/|[A-Za-z]:[\\/]|\\\\).*[\\/]([^\\/]+)[\\/]?", re.DOTALL)


def without_places(value: Any) -> Any:
    """Any value with the absolute paths in its texts cut; what is one path as a whole may hold spaces."""
    if isinstance(value, str):
        whole = _WHOLE.fullmatch(value) if "\n" not in value else None
        if whole is not None and "://" not in value:
            return f"…/{whole[1]}"
        return _WINDOWS.sub(r"…/\1", _POSIX.sub(r"…/\1", value))
    if isinstance(value, Mapping):
        return {without_places(key): without_places(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_places(item) for item in value]
    return value


def model_without_places(model: _Model, *fields: str) -> _Model:
    """A copy whose ``fields`` hold no absolute path."""
    return model.model_copy(update={name: without_places(getattr(model, name)) for name in fields})
