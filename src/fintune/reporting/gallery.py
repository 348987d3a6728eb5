"""All figures of one or several runs: which there are, which are left out and why, and their files.

Enters: runs. Leaves: files by name of the figure, and for each figure that is left out a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure

from fintune.reporting.curves import History, curves_of_runs, series, training_curves
from fintune.reporting.efficiency import efficiency_comparison
from fintune.reporting.figures import MOST_SHOWN, confusion_matrices, performance_comparison, reliability_diagram
from fintune.reporting.hardware import gpu_utilization, gpus_of_runs
from fintune.reporting.run_data import RunData, together
from fintune.reporting.stages import curriculum_comparison, tasks_beyond_shares
from fintune.reporting.styles import Format, save, styled
from fintune.reporting.wording import file_names, systems_of, tasks_of
from fintune.schema.results import DocumentRecord, EvaluationResults

_NO_STEP = "no training step is logged in metrics.jsonl"
_NO_GPU = "no line of metrics.jsonl has figures of a GPU"
_NO_SCORES = "nothing was measured, or by no score that the runs share"
_NO_COST = "facts.json has neither memory, time nor sizes"
_NO_STAGES = "no run has several stages"
_NO_SHARE = "its score is not between 0 and 1"
_NO_CLASSES = "the task has no fixed set of labels"
_NO_PROBABILITIES = "no answer has a probability"


@dataclass(frozen=True)
class Drawn:
    """What was drawn.

    Attributes:
        files: by name of the figure, one for each format.
        left_out: by name of the figure, or of a part of it, the reason.
    """

    files: Mapping[str, list[Path]] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def first(self) -> dict[str, Path]:
        """One file for each figure, of the first format."""
        return {name: files[0] for name, files in self.files.items()}


def write_figures(folder: Path, runs: Sequence[RunData], formats: Sequence[Format] = ("png",)) -> Drawn:
    """Writes every figure that the runs allow into ``folder``; figures of an earlier time that are not drawn now go.

    Args:
        folder: made when it is missing.
        runs: one, or several with names of their own.
        formats: png, pdf, svg; png at 300 dpi.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, list[Path]] = {}
    left_out: dict[str, str] = {}
    with styled():
        wanted, reasons = _wanted(runs)
        for name, (draw, why) in wanted.items():
            figure = draw()
            if figure is not None:
                files[name] = save(figure, folder / name, formats)
                continue
            left_out[name] = why
            for old in (folder / f"{name}.{kind}" for kind in ("png", "pdf", "svg")):
                old.unlink(missing_ok=True)
    return Drawn(files, left_out | reasons)


_Wanted = Callable[[], Figure | None]


def _wanted(runs: Sequence[RunData]) -> tuple[dict[str, tuple[_Wanted, str]], dict[str, str]]:
    """What draws each figure and what its absence means; and what several runs leave out of figures that are drawn."""
    if len(runs) == 1:
        run = runs[0]
        results = run.results or EvaluationResults(model="", adapter=None, results=())
        records: Sequence[DocumentRecord] = run.records
        training, gpus = training_curves(run.history), gpu_utilization(run.history, run.other_ranks)
        systems: list[str] = []
        unlike: dict[str, str] = {}
        reasons: dict[str, str] = {}
    else:
        results, records, unlike = together(runs)
        histories = {run.name: run.history for run in runs}
        training, gpus = curves_of_runs(histories), gpus_of_runs(histories)
        systems = systems_of(results)
        reasons = {f"{task} in comparisons": why for task, why in unlike.items()}
        reasons |= _absent(runs)
    wanted: dict[str, tuple[_Wanted, str]] = {
        "training_curves": (lambda: training, _NO_STEP),
        "gpu_utilization": (lambda: gpus, _NO_GPU),
        "performance_comparison": (lambda: performance_comparison(results), _NO_SCORES),
        "efficiency_comparison": (lambda: efficiency_comparison(runs), _NO_COST),
        "curriculum_comparison": (lambda: curriculum_comparison(runs, unlike), _NO_STAGES),
    }
    if any(len(run.stages) > 1 for run in runs):
        reasons |= {f"{task} in curriculum_comparison": _NO_SHARE for task in tasks_beyond_shares(runs)}
    for task, name in file_names(tasks_of(results)).items():
        wanted |= _of_task(results, records, task, name, systems)
        own = systems_of(results, task)
        if len(systems) and len(own) > MOST_SHOWN:
            why = f"these figures show {MOST_SHOWN} systems at most"
            reasons |= {f"{name} in confusion_ and calibration_{task}": why for name in own[MOST_SHOWN:]}
    return wanted, reasons


def _of_task(
    results: EvaluationResults, records: Sequence[DocumentRecord], task: str, name: str, systems: Sequence[str]
) -> dict[str, tuple[_Wanted, str]]:
    own = [system for system in systems if results.find(task, system)]
    shown = own or ("base", "tuned")
    return {
        f"confusion_{name}": (lambda: confusion_matrices(results, task, own), _NO_CLASSES),
        f"calibration_{name}": (lambda: reliability_diagram(records, task, shown), _NO_PROBABILITIES),
    }


def _has_gpu(rows: History) -> bool:
    keys = ("gpu_utilization_percent", "gpu_memory_bytes", "gpu_power_w", "gpu_temperature_c")
    return any(row.get(key) is not None for row in rows for key in keys)


def _absent(runs: Sequence[RunData]) -> dict[str, str]:
    """What single runs lack in figures that others are in."""
    checks: tuple[tuple[str, str, Callable[[RunData], bool]], ...] = (
        ("training_curves", _NO_STEP, lambda run: bool(series(run.history, "loss")[0])),
        ("gpu_utilization", _NO_GPU, lambda run: _has_gpu(run.history)),
        ("performance_comparison", "it was not evaluated", lambda run: run.results is not None),
    )
    found: dict[str, str] = {}
    for figure, why, has in checks:
        if any(map(has, runs)):
            found |= {f"{run.name} in {figure}": why for run in runs if not has(run)}
    return found
