"""Shared by all tests: nothing reaches a hub or a user's cache, and runs do not depend on the terminal."""

from __future__ import annotations

import os

# Before any library reads them.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "agg")

import pytest
from hypothesis import HealthCheck, settings

# Examples are slow to start on a shared two-core machine; a deadline would only measure the neighbours.
settings.register_profile("fintune", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fintune")


def pytest_collection_modifyitems(items):
    """Skips what is marked ``gpu`` where there is no CUDA device."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def own_cache(tmp_path_factory, monkeypatch):
    """Converted models of one test, apart from those of others and from the user's."""
    monkeypatch.setenv("FINTUNE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny random Llama with its tokenizer."""
    from fintune.models.tiny import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "llama")
