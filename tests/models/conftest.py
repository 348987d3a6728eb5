from pathlib import Path

import pytest

from fintune.models import LoadedBase, load_base, write_tiny_model
from fintune.schema.recipe import ModelSection


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("FINTUNE_CACHE", str(cache))
    return cache


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture
def load_tiny(tiny_folder: Path):
    import torch

    def load(folder: Path = tiny_folder, **section) -> LoadedBase:
        return load_base(ModelSection(base=str(folder), **section), device=torch.device("cpu"), for_training=True)

    return load
