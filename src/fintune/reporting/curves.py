"""Training as curves over optimiser steps: loss, validation scores, learning rate, gradient norm.

Enters: lines of ``metrics.jsonl`` of one run, or of several by name. Leaves: a figure, or None without such lines.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fintune.reporting.styles import BLUE, GREEN, GREY, INK, ORANGE, line_style, with_grid

History = Sequence[Mapping[str, Any]]
_PANELS = (
    ("Loss", (("loss", "training", GREY), ("eval_loss", "validation", BLUE))),
    ("Validation score", (("eval_macro_f1", "macro F1", BLUE), ("eval_accuracy", "accuracy", ORANGE))),
    ("Learning rate", (("learning_rate", "learning rate", GREEN),)),
    ("Gradient norm", (("grad_norm", "gradient norm", GREY),)),
)
_OF_SEVERAL = (
    ("Training loss", "loss"),
    ("Validation loss", "eval_loss"),
    ("Validation macro F1", "eval_macro_f1"),
    ("Validation accuracy", "eval_accuracy"),
    ("Learning rate", "learning_rate"),
    ("Gradient norm", "grad_norm"),
)
_WINDOW = 7
MIN_SMOOTHED = 20
_MARKERS_A_LINE = 6
_Panel = tuple[str, list[tuple[str, str, str, tuple[list[float], list[float]]]]]


def training_curves(history: History) -> Figure | None:
    """Loss, validation scores, learning rate and gradient norm over optimiser steps; only panels with data."""
    panels = _panels(history)
    if not panels:
        return None
    figure, grid = _grid(len(panels))
    for axes, (title, lines) in zip(grid, panels, strict=True):
        for key, name, colour, (steps, values) in lines:
            _draw_series(axes, key, name, colour, steps, values)
        axes.set(title=title, xlabel="optimiser step")
        with_grid(axes)
        if len(axes.get_legend_handles_labels()[0]) > 1:
            axes.legend()
    return figure


def curves_of_runs(histories: Mapping[str, History]) -> Figure | None:
    """The same for several runs by name, a line each; what was logged at many steps is a running median."""
    drawn = [
        (title, key, found)
        for title, key in _OF_SEVERAL
        if (found := {name: xy for name, rows in histories.items() if (xy := series(rows, key))[0]})
    ]
    if not drawn:
        return None
    figure, grid = _grid(len(drawn))
    names = list(histories)
    for axes, (title, key, found) in zip(grid, drawn, strict=True):
        for name, (steps, values) in found.items():
            smooth = key in ("loss", "grad_norm") and len(values) >= MIN_SMOOTHED
            draw_run(axes, names.index(name), name, steps, smoothed(values) if smooth else values)
        axes.set(title=title, xlabel="optimiser step")
        with_grid(axes)
    run_legend(figure, grid)
    return figure


def draw_run(axes: Axes, index: int, name: str, x: Sequence[float], y: Sequence[float]) -> None:
    """One run's line: its dash and a few markers tell it from others without colour."""
    style = line_style(index)
    spread = max(1, len(x) // _MARKERS_A_LINE)
    axes.plot(
        *(x, y),
        color=style.colour,
        linestyle=style.dash,
        marker=style.marker,
        # Starts apart, so that markers of equal curves do not hide one another.
        markevery=(min(index * spread // 4, len(x) - 1), spread),
        markersize=4,
        linewidth=1.1,
        label=name,
    )


def run_legend(figure: Figure, grid: Sequence[Axes]) -> None:
    """One legend for all panels, below them."""
    entries = {name: line for axes in grid for line, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(
        list(entries.values()), list(entries), loc="outside lower center", ncols=min(4, len(entries)), handlelength=3.2
    )


def curves_caption(history: History) -> str:
    """What ``training_curves`` really draws, in a sentence."""
    names = [title for title, _ in _panels(history)]
    names = names[:1] + [name.lower() for name in names[1:]]
    listed = ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else "".join(names)
    many = len(series(history, "loss")[0]) >= MIN_SMOOTHED
    return f"{listed} by optimiser step." + (
        f" The dark line is a running median of {_WINDOW} logged steps, centred." if many else ""
    )


def series(history: History, key: str) -> tuple[list[float], list[float]]:
    """Steps and finite values of one key; rows without it are skipped."""
    points = [(row["step"], row[key]) for row in history if row.get("step") is not None and row.get(key) is not None]
    finite = [(float(step), float(value)) for step, value in points if math.isfinite(step) and math.isfinite(value)]
    return [step for step, _ in finite], [value for _, value in finite]


def smoothed(values: Sequence[float]) -> list[float]:
    """A centred running median, which neither lags nor follows single spikes; the window shrinks evenly at the ends."""
    last = len(values) - 1
    reach = [min(_WINDOW // 2, i, last - i) for i in range(len(values))]
    return [median(values[i - r : i + r + 1]) for i, r in enumerate(reach)]


def _panels(history: History) -> list[_Panel]:
    """The panels with data: a title and its lines as key, name, colour and points."""
    return [
        (title, lines)
        for title, wanted in _PANELS
        if (lines := [(key, name, colour, xy) for key, name, colour in wanted if (xy := series(history, key))[0]])
    ]


def _grid(n_panels: int) -> tuple[Figure, list[Axes]]:
    # An odd count lets the first panel, the loss, span its row, so no quadrant stays empty.
    cells = list(range(n_panels))
    cells = [0, *cells] if n_panels > 1 and n_panels % 2 else cells
    rows: list[list[Any]] = [cells[i : i + 2] for i in range(0, len(cells), 2)]
    figure = Figure(figsize=(3.6 * len(rows[0]), 2.7 * len(rows)), layout="constrained")
    grid = figure.subplot_mosaic(rows)
    return figure, [grid[index] for index in range(n_panels)]


def _draw_series(axes: Axes, key: str, name: str, colour: str, steps: list[float], values: list[float]) -> None:
    if key.startswith("eval_"):
        marker, dash = ("o", "-") if colour == BLUE else ("s", "--")
        axes.plot(steps, values, color=colour, marker=marker, linestyle=dash, markersize=4, label=name)
        return
    axes.plot(steps, values, color=colour, linewidth=0.8 if key == "loss" else 1.1, label=name)
    if key == "loss" and len(values) >= MIN_SMOOTHED:
        axes.plot(steps, smoothed(values), color=INK, linewidth=1.4, label=f"training, median of {_WINDOW}")
