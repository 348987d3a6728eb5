"""Shared by all tests: nothing reaches a hub or a user's cache, and runs do not depend on the terminal."""

from __future__ import annotations

import gc
import os
import shutil
import sys
import time
from pathlib import Path

# Before any library reads them.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ["FINTUNE_HOME"] = str(Path(__file__).parent / "no-home")  # names of the user's adapters must not matter
if "PYTEST_XDIST_WORKER" in os.environ:  # tests in several processes share the cores: threads that wait would spin
    threads = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    if gpus := os.environ.get("FINTUNE_TEST_GPUS"):  # "0,1,2": the processes take turns among them
        own = int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw")) % len(gpus.split(","))
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus.split(",")[own]

import pytest
from hypothesis import HealthCheck, settings

# Examples are slow to start on a shared two-core machine; a deadline would only measure the neighbours.
settings.register_profile("fintune", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fintune")


# Files that take minutes go first: one that came last would run alone while the other processes have nothing to do.
LONG = ("test_several_processes.py", "test_strategies.py", "test_kill.py", "test_demo_browser.py", "test_blocks.py")


def pytest_collection_modifyitems(items):
    """Long files first; skips what is marked ``gpu`` where there is no CUDA device."""
    items.sort(key=lambda item: item.path.name not in LONG)
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


frozen_at = 0  # modules that were loaded


def pytest_collection_finish(session):
    freeze_modules()


def pytest_runtest_setup(item):
    if len(sys.modules) > frozen_at + 300:
        freeze_modules()


def freeze_modules():
    """Keeps the modules out of later collections of garbage: each would go through their millions of objects again."""
    global frozen_at
    gc.collect()
    gc.freeze()
    frozen_at = len(sys.modules)


def pytest_sessionfinish(session, exitstatus):
    """Notes a complete run of the GPU tests in gpu_tested.json; FINTUNE_GPU_TESTED names another place for it."""
    import torch

    is_worker = "PYTEST_XDIST_WORKER" in os.environ  # the process that it works for knows what passed
    if is_worker or exitstatus or session.config.option.markexpr != "gpu" or not torch.cuda.is_available():
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    whole = {"tests/kernels", "tests/models", "tests/inference", "tests/training"}  # where they all are
    given = {arg.rstrip("/") for arg in session.config.args}
    if "tests" not in given and not whole <= given:
        return  # a part of the tests proves nothing about the rest
    sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
    import gpu_tested

    facts = {
        "date": time.strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "passed": len(reporter.stats.get("passed", [])),
    }
    gpu_tested.write_record(Path(os.environ.get("FINTUNE_GPU_TESTED", gpu_tested.RECORD)), facts)


@pytest.fixture
def own_cache(tmp_path_factory, monkeypatch):
    """Converted models of one test, apart from those of others and from the user's."""
    monkeypatch.setenv("FINTUNE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def own_home(tmp_path_factory, monkeypatch):
    """A registry of adapters for one test."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("FINTUNE_HOME", str(home))
    return home


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny random Llama with its tokenizer."""
    from fintune.models.tiny import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture(scope="module")  # no longer than a file: while it is open, no other event loop can run
def browser():
    """A real Chromium; the tests are skipped where there is none, or nothing to drive it."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("there is no Chromium on this machine")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()
