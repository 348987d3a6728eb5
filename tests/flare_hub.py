"""Rows in the hub's exact columns, served in place of the network."""

import json
from pathlib import Path

import datasets

from fintune.sources import hub

FIXTURES = Path(__file__).parent / "tasks" / "fixtures"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def hub_rows(name):
    return [json.loads(line) for line in (FIXTURES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def serve(monkeypatch, name, *splits):
    """Lets ``datasets`` load the fixture as every one of ``splits``; returns what was asked of it."""
    rows = datasets.Dataset.from_list(hub_rows(name))
    return serve_data(monkeypatch, datasets.DatasetDict(dict.fromkeys(splits, rows)))


def serve_data(monkeypatch, data):
    """Lets ``datasets`` load ``data`` from any hub id; returns what was asked of it."""
    asked = {}

    def load(hub_id, config, *, revision):
        asked.update(hub_id=hub_id, config=config, revision=revision)
        return data

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(hub, "resolve_commit", lambda hub_id, revision: COMMIT)
    for key in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "FINTUNE_OFFLINE", "FINTUNE_DATA_DIR"):
        monkeypatch.delenv(key, raising=False)
    return asked
