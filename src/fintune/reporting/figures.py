"""The figures of a report as PNG files at 300 dpi, readable in greyscale and by the colour-blind.

Enters: history rows, results, records. Leaves: files; a figure without anything to show is not written.
Drawn on matplotlib's object interface, so no global state, no display and no pyplot.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fintune.metrics.calibration import reliability_table
from fintune.reporting.hardware import gpu_utilization
from fintune.reporting.tables import MISSING
from fintune.reporting.wording import metric_in_sentence, metric_name, shortened, system_name, systems_of, tasks_of
from fintune.schema.recipe import sanitize_name
from fintune.schema.results import DocumentRecord, EvaluationResults, TaskResult

DPI = 300
BLUE, ORANGE, GREEN, GREY, INK = "#0072B2", "#E69F00", "#009E73", "#8a8a8a", "#222222"
# Fill and hatch: dark and light differ in greyscale too, and hatches tell the greys apart.
_BARS = {
    "base": (ORANGE, "////"),
    "tuned": (BLUE, ""),
    "majority": ("#f2f2f2", ""),
    "lexicon": ("#dcdcdc", "...."),
    "tfidf": ("#b8b8b8", "xxxx"),
    "last_direction": ("#ffffff", "oooo"),
    "always_rise": ("#d0d0d0", "++++"),
    "base_5shot": ("#F0E442", "////"),
    "base_calibrated": ("#D55E00", "////"),
}
_SPARE_BARS = ((GREEN, "\\\\\\\\"), ("#CC79A7", "||||"), ("#56B4E9", "----"))
_STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.labelcolor": INK,
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "legend.frameon": False,
    "hatch.linewidth": 0.5,
    # A label such as "$up$" is text; math parsing would change it or fail.
    "text.parse_math": False,
}
_PANELS = (
    ("Loss", (("loss", "training", GREY), ("eval_loss", "validation", BLUE))),
    ("Validation score", (("eval_macro_f1", "macro F1", BLUE), ("eval_accuracy", "accuracy", ORANGE))),
    ("Learning rate", (("learning_rate", "learning rate", GREEN),)),
    ("Gradient norm", (("grad_norm", "gradient norm", GREY),)),
)


_WINDOW = 7
_TASKS_A_PANEL = 3
_LEGEND_CHARACTERS, _KEY_CHARACTERS = 120, 8
_MIN_SMOOTHED = 20
_Panel = tuple[str, list[tuple[str, str, str, tuple[list[float], list[float]]]]]


def write_figures(
    folder: Path,
    *,
    results: EvaluationResults,
    records: Sequence[DocumentRecord],
    history: Sequence[Mapping[str, Any]],
    other_ranks: Mapping[int, Sequence[Mapping[str, Any]]] | None = None,
) -> dict[str, Path]:
    """All figures the inputs allow, by name: file stem to path."""
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(_STYLE):
        drawn = {
            "training_curves": training_curves(history),
            "gpu_utilization": gpu_utilization(history, other_ranks),
            "performance_comparison": performance_comparison(results),
        }
        for task in tasks_of(results):
            drawn[f"confusion_{sanitize_name(task)}"] = confusion_matrices(results, task)
            drawn[f"calibration_{sanitize_name(task)}"] = reliability_diagram(records, task)
        return {stem: _save(figure, folder / f"{stem}.png") for stem, figure in drawn.items() if figure is not None}


def training_curves(history: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Loss, validation scores, learning rate and gradient norm over optimiser steps; only panels with data."""
    panels = _panels(history)
    if not panels:
        return None
    # An odd count lets the first panel, the loss, span its row, so no quadrant stays empty.
    cells = list(range(len(panels)))
    cells = [0, *cells] if len(cells) > 1 and len(cells) % 2 else cells
    rows: list[list[Any]] = [cells[i : i + 2] for i in range(0, len(cells), 2)]
    figure = Figure(figsize=(3.6 * len(rows[0]), 2.7 * len(rows)), layout="constrained")
    grid = figure.subplot_mosaic(rows)
    for index, (title, lines) in enumerate(panels):
        axes = grid[index]
        for key, name, colour, (steps, values) in lines:
            _draw_series(axes, key, name, colour, steps, values)
        axes.set(title=title, xlabel="optimiser step")
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.6)
        axes.set_axisbelow(True)
        if len(axes.get_legend_handles_labels()[0]) > 1:
            axes.legend()
    return figure


def curves_caption(history: Sequence[Mapping[str, Any]]) -> str:
    """What ``training_curves`` really draws, in a sentence."""
    names = [title for title, _ in _panels(history)]
    names = names[:1] + [name.lower() for name in names[1:]]
    listed = ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else "".join(names)
    smoothed = len(_series(history, "loss")[0]) >= _MIN_SMOOTHED
    return f"{listed} by optimiser step." + (
        f" The dark line is a running median of {_WINDOW} logged steps, centred." if smoothed else ""
    )


def performance_comparison(results: EvaluationResults) -> Figure | None:
    """Bars of every system's primary score with intervals, a cluster of bars a task and a few tasks a panel.

    A few tasks with labels share a row: their primary score and, beside it, macro F1.
    """
    systems, panels = systems_of(results), _score_panels(results)
    if not panels:
        return None
    n_columns = 2 if len(panels) > 1 else 1
    n_rows = math.ceil(len(panels) / n_columns)
    figure = Figure(figsize=(7.2, 3.1 if n_rows == 1 else 0.5 + 2.1 * n_rows), layout="constrained")
    grid = figure.subplots(n_rows, n_columns, sharey=True, squeeze=False).ravel()
    for axes, (title, scores) in zip(grid, panels, strict=False):
        for index, system in enumerate(systems):
            _draw_bars(axes, results, scores, system, index, len(systems))
        named = title == ""
        axes.set_xticks(
            range(len(scores)),
            [shortened(task, 24) + (f"\n{metric_in_sentence(metric)}" if named else "") for task, metric in scores],
        )
        axes.tick_params(axis="x", length=0)
        axes.set(title=title, ylim=(0, 1.08), yticks=[0, 0.2, 0.4, 0.6, 0.8, 1.0])
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.6)
        axes.set_axisbelow(True)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    entries = {name: handle for axes in grid for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(
        list(entries.values()),
        list(entries),
        loc="outside lower center",
        ncols=_legend_columns(list(entries)),
        handlelength=1.4,
    )
    return figure


def _legend_columns(names: Sequence[str]) -> int:
    """As many columns, five at most, as the figure has room for; a legend is filled column by column."""
    for n_columns in (5, 4, 3):
        height = math.ceil(len(names) / n_columns)
        widths = [max(map(len, names[start : start + height])) for start in range(0, len(names), height)]
        if sum(widths) + _KEY_CHARACTERS * len(widths) <= _LEGEND_CHARACTERS:
            return min(n_columns, len(names))
    return 2


def comparison_caption(results: EvaluationResults) -> str:
    """What ``performance_comparison`` shows, in a sentence."""
    titles = [title for title, _ in _score_panels(results) if title]
    names = [titles[0], *(metric_in_sentence(metric) for metric in ("macro_f1",) if len(titles) > 1)] if titles else []
    return f"{' and '.join(names) or 'The primary score of each task'} of every system, with intervals."


def _score_panels(results: EvaluationResults) -> list[tuple[str, list[tuple[str, str]]]]:
    """Panels as a title and pairs of task and metric; without a title the metrics differ from task to task."""
    first = {task: next(r for r in results.under("robust") if r.task == task) for task in tasks_of(results)}
    pairs = [(task, result.primary) for task, result in first.items()]
    if pairs and len(pairs) <= _TASKS_A_PANEL and all(r.scoring == "classification" for r in first.values()):
        # An old results.json may lack macro F1, a hand-made one accuracy.
        return [
            (metric_name(metric), found)
            for metric in dict.fromkeys((pairs[0][1], "macro_f1"))
            if (found := [(task, metric) for task, result in first.items() if metric in result.metrics])
        ]
    return [("", pairs[start : start + _TASKS_A_PANEL]) for start in range(0, len(pairs), _TASKS_A_PANEL)]


def confusion_matrices(results: EvaluationResults, task: str) -> Figure | None:
    """Confusion matrices of base and tuned side by side; the shade is the share of the row."""
    order = [s for s in ("base", "tuned") if results.find(task, s)] or systems_of(results, task)[-2:]
    shown = [r for s in order if (r := results.find(task, s)) is not None and r.confusion]
    if not shown:
        return None
    side = max(2.6, 0.62 * len(shown[0].labels) + 1.2)
    figure = Figure(figsize=(side * len(shown), side), layout="constrained")
    some_missing = any(row[-1] for r in shown for row in r.confusion)
    for axes, result in zip(figure.subplots(1, len(shown), squeeze=False).ravel(), shown, strict=True):
        _draw_confusion(axes, result, some_missing)
    return figure


def reliability_diagram(records: Iterable[DocumentRecord], task: str) -> Figure | None:
    """Accuracy against confidence for base and tuned; None without probabilities.

    Only answers under our rules carry probabilities, so those by other rules do not count twice.
    """
    found = [
        r
        for r in records
        if r.task == task and r.protocol == "robust" and r.probabilities and r.system in ("base", "tuned")
    ]
    systems = [s for s in ("base", "tuned") if any(r.system == s for r in found)]
    if not systems:
        return None
    figure = Figure(figsize=(3.4, 3.7), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8, linestyle=":", label="perfect")
    for system in systems:
        mine = [r for r in found if r.system == system]
        table = reliability_table([max(r.probabilities or (0.0,)) for r in mine], [r.correct for r in mine])
        filled = [(b.confidence, b.accuracy, b.n) for b in table if b.confidence is not None and b.accuracy is not None]
        x, y, n = zip(*filled, strict=True)
        colour, marker = (ORANGE, "s") if system == "base" else (BLUE, "o")
        axes.plot(x, y, color=colour, linewidth=1, linestyle="--" if system == "base" else "-")
        sizes = [12 + 90 * count / len(mine) for count in n]
        axes.scatter(x, y, s=sizes, color=colour, marker=marker, label=system_name(system), zorder=3)
    axes.set(xlabel="probability of the answer", ylabel="share right", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.set_title(f"Calibration: {shortened(task, 30)}")
    axes.set_aspect("equal")
    legend = figure.legend(loc="outside lower center", ncols=3, handlelength=1.4, columnspacing=1.2)
    for handle in legend.legend_handles:
        if handle is not None and hasattr(handle, "set_sizes"):
            handle.set_sizes([28])
    return figure


def _panels(history: Sequence[Mapping[str, Any]]) -> list[_Panel]:
    """The panels with data: a title and its lines as key, name, colour and points."""
    return [
        (title, lines)
        for title, series in _PANELS
        if (lines := [(key, name, colour, xy) for key, name, colour in series if (xy := _series(history, key))[0]])
    ]


def _series(history: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Steps and finite values of one key; rows without it are skipped."""
    points = [(row["step"], row[key]) for row in history if row.get("step") is not None and row.get(key) is not None]
    finite = [(float(step), float(value)) for step, value in points if math.isfinite(value)]
    return [step for step, _ in finite], [value for _, value in finite]


def _draw_series(axes: Axes, key: str, name: str, colour: str, steps: list[float], values: list[float]) -> None:
    if key.startswith("eval_"):
        axes.plot(steps, values, color=colour, marker="o" if colour == BLUE else "s", markersize=4, label=name)
        return
    axes.plot(steps, values, color=colour, linewidth=0.8 if key == "loss" else 1.1, label=name)
    if key == "loss" and len(values) >= _MIN_SMOOTHED:
        axes.plot(steps, _smoothed(values), color=INK, linewidth=1.4, label=f"training, median of {_WINDOW}")


def _smoothed(values: list[float]) -> list[float]:
    """A centred running median, which neither lags nor follows single spikes; the window shrinks evenly at the ends."""
    last = len(values) - 1
    reach = [min(_WINDOW // 2, i, last - i) for i in range(len(values))]
    return [median(values[i - r : i + r + 1]) for i, r in enumerate(reach)]


def _draw_bars(
    axes: Axes, results: EvaluationResults, scores: list[tuple[str, str]], system: str, index: int, n_systems: int
) -> None:
    width = 0.84 / n_systems
    colour, hatch = _BARS.get(system) or _SPARE_BARS[index % len(_SPARE_BARS)]
    label: str | None = system_name(system)
    for position, (task, metric) in enumerate(scores):
        result = results.find(task, system)
        if result is None or metric not in result.metrics:
            continue
        estimate = result.metrics[metric]
        x = position + (index - (n_systems - 1) / 2) * width
        top = estimate.value if estimate.high is None else estimate.high
        axes.bar(x, estimate.value, 0.9 * width, color=colour, hatch=hatch, edgecolor=INK, linewidth=0.6, label=label)
        label = None  # one legend entry a system
        if estimate.low is not None and estimate.high is not None:
            reach = [[estimate.value - estimate.low], [estimate.high - estimate.value]]
            axes.errorbar(x, estimate.value, reach, color=INK, linewidth=1, capsize=2)
        if len(scores) * n_systems <= 12:
            axes.text(x, top + 0.012, f"{estimate.value:.2f}", ha="center", va="bottom", fontsize=7)


def _draw_confusion(axes: Axes, result: TaskResult, some_missing: bool) -> None:
    columns = [*result.labels, MISSING] if some_missing else list(result.labels)
    shares = [[count / max(1, sum(row)) for count in row[: len(columns)]] for row in result.confusion]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for i, row in enumerate(result.confusion):
        for j, count in enumerate(row[: len(columns)]):
            axes.text(j, i, f"{count:,}", ha="center", va="center", color="white" if shares[i][j] > 0.5 else INK)
    slanted = len(columns) > 4 or max(map(len, columns)) > 9
    names = [shortened(label, 18) for label in columns]
    axes.set_xticks(range(len(columns)), names, rotation=35 if slanted else 0, ha="right" if slanted else "center")
    axes.set_yticks(range(len(result.labels)), [shortened(label, 18) for label in result.labels])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(title=system_name(result.system), xlabel="answer", ylabel="target")


def write_figure(draw: Callable[[], Figure], path: Path) -> Path:
    """Draws one figure in the style of all of them, as a PNG at ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(_STYLE):
        return _save(draw(), path)


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=DPI, facecolor="white", metadata={"Software": "fintune"})
    return path
