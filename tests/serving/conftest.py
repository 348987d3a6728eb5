"""A labeller without a model: what labelling files does to rows needs none."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest

from fintune.serving.answers import Prediction, Question
from fintune.serving.files import FileOutcome, label_file
from fintune.serving.predictor import Predictor


@dataclass
class LengthLabeller:
    """Says x of texts with an even number of characters; remembers what it was asked."""

    asked: list[str] = field(default_factory=list)
    rows_a_part: ClassVar[int] = 1024

    def read(self, texts, task=None):
        return texts

    def label_read(self, read, threshold=None):
        self.asked += read
        return [Prediction(text, *self.of(text)) for text in read]

    def of(self, text: str) -> tuple[str, dict[str, float]]:
        return ("x", {"x": 0.75, "y": 0.25}) if len(text) % 2 == 0 else ("y", {"x": 0.25, "y": 0.75})

    def choices(self, task=None):
        return ("x", "y")

    def fingerprint(self, task):
        return {"model": "length", "task": str(task)}

    def label(self, source: Path, output: Path, text: str = "text", threshold: float | None = None) -> FileOutcome:
        return label_file(Question(self, None, threshold), source, text, output, progress=False)


@pytest.fixture
def labeller():
    return LengthLabeller()


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of six rows."""
    monkeypatch.setattr(LengthLabeller, "rows_a_part", 6)
    monkeypatch.setattr(Predictor, "rows_a_part", 6)
