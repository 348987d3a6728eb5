"""A stand-in for ``fintune.api`` that records its calls: the commands are thin, so this is all they touch."""

from __future__ import annotations

import logging
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import fintune
from fintune.cli import main
from fintune.schema.loading import list_recipes
from fintune.schema.results import Comparison, DataLicence, Estimate, EvaluationResults, OverlapReport, TaskResult


def task_result(system: str, score: float) -> TaskResult:
    estimate = Estimate(value=score, low=score - 0.05, high=score + 0.05)
    metrics = {name: estimate for name in ("accuracy", "macro_f1", "weighted_f1", "mcc")}
    return TaskResult(
        system=system, task="tfns", task_version="1", split="test", n=240, n_groups=240, missing_rate=0.0,
        confidence=0.95, metrics=metrics,
    )  # fmt: skip


RESULTS = EvaluationResults(
    model="smollm2-135m",
    adapter="runs/x/adapter",
    results=tuple(task_result(s, v) for s, v in (("majority", 0.17), ("tfidf", 0.7), ("tuned", 0.78), ("base", 0.33))),
    comparisons=(
        Comparison(
            task="tfns", system="tuned", reference="base", n=240, only_system_correct=120, only_reference_correct=11,
            mcnemar_p=1e-20, differences={"macro_f1": Estimate(value=0.45, low=0.38, high=0.51)},
        ),
    ),
    data=(
        DataLicence(task="tfns", source="s", licence="MIT", citation="-", split_note="Shipped sample: class-balanced."),
        DataLicence(task="fpb", source="x/y", licence="-", citation="-", split_note="Only trained on."),
    ),
    overlap=(OverlapReport(task="tfns", n_train=900, n_test=240, exact=0, normalised=1, removed_from_train=1),),
)  # fmt: skip


@dataclass
class Outcome:
    run_dir: Path = Path("runs/x")
    adapter_dir: Path = Path("runs/x/adapter")
    results: EvaluationResults | None = RESULTS
    report: Path | None = Path("runs/x/report.html")
    facts: dict[str, Any] = field(default_factory=lambda: {"tokens_per_s": float("nan"), "steps": 3})


@dataclass(frozen=True)
class Prediction:
    label: str
    probabilities: dict[str, float]
    text: str
    abstained: bool = False


@dataclass(frozen=True)
class PreviewSample:
    example_id: str
    tokens: tuple[tuple[str, int, bool], ...]
    truncated: bool


@dataclass(frozen=True)
class TaskInfo:
    name: str = "tfns"
    version: str = "1"
    description: str = "Twitter Financial News Sentiment"
    licence: str = "MIT"
    citation: str = "Someone (2022)"
    prompts: tuple[str, ...] = ("short", "flare")
    choices: tuple[str, ...] = ("negative", "neutral", "positive")
    configs: tuple[str, ...] = ()
    hub_ids: tuple[str, ...] = ("some/where",)
    has_sample: bool = True


@dataclass(frozen=True)
class Check:
    name: str
    ok: bool | None
    detail: str
    remedy: str = ""


class FakeApi(types.ModuleType):
    """Answers like the real one; ``raises`` makes every call fail with that error."""

    def __init__(self) -> None:
        super().__init__("fintune.api")
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.raises: BaseException | None = None
        self.logs: list[tuple[str, int, str]] = []
        self.checks = [Check("python", True, "3.11"), Check("gpu", None, "no GPU", "Training runs on the CPU.")]

    def _answer(self, name: str, value: Any) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, args, kwargs))
            print("a library prints to standard output")
            for logger, level, text in self.logs:
                logging.getLogger(logger).log(level, text)
            if self.raises is not None:
                raise self.raises
            return value

        return call

    def __getattr__(self, name: str) -> Any:
        predictor = types.SimpleNamespace(
            predict=self._answer("predict", [Prediction("positive", {"negative": 0.1, "positive": 0.9}, "up [bold]")])
        )
        tokens = (("Sentiment", 1, False), ("?\n", 2, False), ("pos", 3, True), ("itive", 4, True), ("!", 5, False))
        answers = {
            "train": Outcome(),
            "evaluate": RESULTS,
            "compare": RESULTS,
            "load": predictor,
            "report": Path("runs/x/report.html"),
            "preview": [PreviewSample("tfns-1", tokens, True)],
        }
        if name in answers:
            return self._answer(name, answers[name])
        if name == "recipes":
            return list_recipes
        if name == "tasks":
            return lambda: [TaskInfo()]
        if name == "doctor":
            return lambda: self.checks
        raise AttributeError(name)


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> FakeApi:
    fake = FakeApi()
    monkeypatch.setitem(sys.modules, "fintune.api", fake)
    monkeypatch.setattr(fintune, "api", fake, raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    return fake


@dataclass
class Ran:
    code: int
    out: str
    err: str


@pytest.fixture
def run(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    def command(*arguments: str) -> Ran:
        capsys.readouterr()
        code = main(list(arguments))
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return command
