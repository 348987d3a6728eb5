"""The allocator's setting is ours only where nobody else decided."""

import os
import sys

import pytest

from fintune.schema.cuda_memory import NAMES, segments_grow, settle_cuda_memory


@pytest.fixture(autouse=True)
def undecided(monkeypatch):
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "platform", "linux")


def test_segments_may_grow():
    assert not segments_grow()
    settle_cuda_memory()
    assert os.environ[NAMES[0]] == "expandable_segments:True" and segments_grow()


@pytest.mark.parametrize("name", NAMES)
def test_a_users_own_setting_stays(monkeypatch, name):
    monkeypatch.setenv(name, "max_split_size_mb:128")
    settle_cuda_memory()
    assert {key: os.environ.get(key) for key in NAMES} == {key: None for key in NAMES} | {name: "max_split_size_mb:128"}


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    settle_cuda_memory()
    assert not any(name in os.environ for name in NAMES)
