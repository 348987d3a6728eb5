"""The model behind the page, asked by one visitor at a time, and the same base without its adapter.

Enters: a run, adapter or base model. Leaves: one or two ``Predictor`` that share weights, template and limits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from fintune.models.adapter_files import read_adapter_info
from fintune.serving.predictor import Predictor, load_predictor


@dataclass(frozen=True)
class DemoModels:
    """What the page asks.

    Attributes:
        name: what was loaded, as it was named.
        main: the model with its adapter, where it has one.
        base: the same model with its adapter switched off; None where there is nothing to switch off.
    """

    name: str
    main: Predictor
    base: Predictor | None = None


def load_models(place: str | Path, *, device: torch.device) -> DemoModels:
    """Loads a run, adapter or base model once.

    Raises:
        FintuneError: as ``load_predictor``.
    """
    return share_model(load_predictor(place, device=device), str(place))


def share_model(loaded: Predictor, name: str) -> DemoModels:
    """The predictor behind a lock, and its base under the same tasks, prompts and template."""
    lock = Lock()
    main = replace(loaded, using=partial(_alone, lock, loaded.using))
    if loaded.adapter is None or read_adapter_info(loaded.adapter).kind == "full":
        return DemoModels(name, main)
    without = loaded.scorer.model.model.disable_adapter
    return DemoModels(name, main, replace(loaded, using=partial(_alone, lock, without)))


@contextmanager
def _alone(lock: Lock, using: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    with lock, using():
        yield
