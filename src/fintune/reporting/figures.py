"""Scores as figures: every system's, confusion matrices, reliability diagrams.

Enters: results, records. Leaves: figures, or None where there is nothing to show. Drawn on matplotlib's object
interface, so no global state, no display and no pyplot.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fintune.metrics.calibration import reliability_table
from fintune.reporting.styles import BLUE, INK, ORANGE, bar_style, line_style, with_grid
from fintune.reporting.tables import MISSING
from fintune.reporting.wording import metric_in_sentence, metric_name, shortened, system_name, systems_of, tasks_of
from fintune.schema.results import DocumentRecord, Estimate, EvaluationResults, TaskResult

_TASKS_A_PANEL = 3
_LEGEND_CHARACTERS, _KEY_CHARACTERS = 120, 8
MOST_SHOWN = 6
_LINE = 14
_RELIABILITY = {"base": (ORANGE, "s", "--"), "tuned": (BLUE, "o", "-")}


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
    grid = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for axes, (title, scores) in zip(grid, panels, strict=False):
        for position, score in enumerate(scores):
            _draw_cluster(axes, results, score, position, systems, with_values=_bars_in(results, scores) <= 12)
        named = title == ""
        axes.set_xticks(
            range(len(scores)),
            [_broken(task) + (f"\n{metric_in_sentence(metric)}" if named else "") for task, metric in scores],
        )
        axes.tick_params(axis="x", length=0)
        axes.set_title(title)
        axes.set_xlim(-0.6, len(scores) - 0.4)
        if _are_shares(results, scores):
            axes.set(ylim=(0, 1.08), yticks=[0, 0.2, 0.4, 0.6, 0.8, 1.0])
        else:
            axes.margins(y=0.15)
        with_grid(axes)
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
    alike = all(r.scoring == "classification" for r in first.values()) and _are_shares(results, pairs)
    if pairs and len(pairs) <= _TASKS_A_PANEL and alike:
        # An old results.json may lack macro F1, a hand-made one accuracy.
        return [
            (metric_name(metric), found)
            for metric in dict.fromkeys((pairs[0][1], "macro_f1"))
            if (found := [(task, metric) for task, result in first.items() if metric in result.metrics])
        ]
    shares = [pair for pair in pairs if _are_shares(results, [pair])]
    panels = [("", shares[start : start + _TASKS_A_PANEL]) for start in range(0, len(shares), _TASKS_A_PANEL)]
    return panels + [("", [pair]) for pair in pairs if pair not in shares]


def _are_shares(results: EvaluationResults, scores: Sequence[tuple[str, str]]) -> bool:
    """Whether all of the scores lie between 0 and 1; a perplexity, say, has an axis of its own."""
    found = [
        result.metrics[metric].value
        for task, metric in scores
        for result in results.under("robust")
        if result.task == task and metric in result.metrics
    ]
    return all(0 <= value <= 1 for value in found)


def confusion_matrices(results: EvaluationResults, task: str, systems: Sequence[str] = ()) -> Figure | None:
    """Confusion matrices side by side; the shade is the share of the row.

    Of base and tuned, where they are there, or else of the ``systems``; without any, of the last two.
    """
    order = list(systems) or [s for s in ("base", "tuned") if results.find(task, s)] or systems_of(results, task)[-2:]
    shown = [r for s in order if (r := results.find(task, s)) is not None and r.confusion][:MOST_SHOWN]
    if not shown:
        return None
    side = max(2.6, 0.62 * len(shown[0].labels) + 1.2)
    n_columns = min(3, len(shown))
    n_rows = math.ceil(len(shown) / n_columns)
    figure = Figure(figsize=(side * n_columns, side * n_rows), layout="constrained")
    some_missing = any(row[-1] for r in shown for row in r.confusion)
    grid = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for axes, result in zip(grid, shown, strict=False):
        _draw_confusion(axes, result, some_missing)
    for axes in grid[len(shown) :]:
        axes.set_visible(False)
    return figure


def reliability_diagram(
    records: Iterable[DocumentRecord], task: str, systems: Sequence[str] = ("base", "tuned")
) -> Figure | None:
    """Accuracy against confidence for each of the systems; None without probabilities.

    Only answers under our rules carry probabilities, so those by other rules do not count twice.
    """
    found = [
        r for r in records if r.task == task and r.protocol == "robust" and r.probabilities and r.system in systems
    ]
    shown = [s for s in systems if any(r.system == s for r in found)][:MOST_SHOWN]
    if not shown:
        return None
    figure = Figure(figsize=(3.4, 3.7), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8, linestyle=":", label="perfect")
    for system in shown:
        mine = [r for r in found if r.system == system]
        table = reliability_table([max(r.probabilities or (0.0,)) for r in mine], [r.correct for r in mine])
        filled = [(b.confidence, b.accuracy, b.n) for b in table if b.confidence is not None and b.accuracy is not None]
        x, y, n = zip(*filled, strict=True)
        colour, marker, dash = _RELIABILITY.get(system) or _spare_look(
            [s for s in shown if s not in _RELIABILITY], system
        )
        axes.plot(x, y, color=colour, linewidth=1, linestyle=dash)
        sizes = [12 + 90 * count / len(mine) for count in n]
        axes.scatter(x, y, s=sizes, color=colour, marker=marker, label=system_name(system), zorder=3)
    axes.set(xlabel="probability of the answer", ylabel="share right", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.set_title(f"Calibration: {shortened(task, 30)}")
    axes.set_aspect("equal")
    n_columns = 3 if len(shown) < 3 else 2
    legend = figure.legend(loc="outside lower center", ncols=n_columns, handlelength=1.4, columnspacing=1.2)
    for handle in legend.legend_handles:
        if handle is not None and hasattr(handle, "set_sizes"):
            handle.set_sizes([28])
    return figure


def _spare_look(shown: Sequence[str], system: str) -> tuple[str, str, str]:
    # Base and tuned have squares and circles, dashed and plain; others go on behind them.
    style = line_style([one for one in shown if one not in _RELIABILITY].index(system) + 2)
    return style.colour, style.marker, style.dash


def _scored(results: EvaluationResults, score: tuple[str, str], systems: Sequence[str]) -> dict[str, Estimate]:
    task, metric = score
    found = {system: results.find(task, system) for system in systems}
    return {system: one.metrics[metric] for system, one in found.items() if one is not None and metric in one.metrics}


def _bars_in(results: EvaluationResults, scores: Sequence[tuple[str, str]]) -> int:
    """Room for bars: as many in every cluster as in the fullest."""
    return len(scores) * max(len(_scored(results, score, systems_of(results))) for score in scores)


def _draw_cluster(
    axes: Axes,
    results: EvaluationResults,
    score: tuple[str, str],
    position: int,
    systems: Sequence[str],
    *,
    with_values: bool,
) -> None:
    """The bars of one score side by side around ``position``: of the systems that have it, without gaps for others."""
    estimates = _scored(results, score, systems)
    width = 0.84 / max(2, len(estimates))
    known = axes.get_legend_handles_labels()[1]
    for index, (system, estimate) in enumerate(estimates.items()):
        colour, hatch = bar_style(system, systems)
        x = position + (index - (len(estimates) - 1) / 2) * width
        name = system_name(system)
        label = None if name in known else name  # one legend entry a system
        axes.bar(x, estimate.value, 0.9 * width, color=colour, hatch=hatch, edgecolor=INK, linewidth=0.6, label=label)
        if estimate.low is not None and estimate.high is not None:
            reach = [[estimate.value - estimate.low], [estimate.high - estimate.value]]
            axes.errorbar(x, estimate.value, reach, color=INK, linewidth=1, capsize=2)
        if with_values:
            top = estimate.value if estimate.high is None else estimate.high
            axes.annotate(
                *(f"{estimate.value:.2f}", (x, top)),
                xytext=(0, 2), textcoords="offset points", ha="center", va="bottom", fontsize=7,
            )  # fmt: skip


def _broken(task: str) -> str:
    """A task's name in lines of some letters, broken behind a dash."""
    lines = [""]
    for part in re.findall(r"[^_@-]*[_@-]?", shortened(task, 36)):
        if lines[-1] and len(lines[-1]) + len(part) > _LINE:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _draw_confusion(axes: Axes, result: TaskResult, some_missing: bool) -> None:
    columns = [*result.labels, MISSING] if some_missing else list(result.labels)
    shares = [[count / max(1, sum(row)) for count in row[: len(columns)]] for row in result.confusion]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for i, row in enumerate(result.confusion):
        for j, count in enumerate(row[: len(columns)]):
            axes.text(j, i, f"{count:,}", ha="center", va="center", color="white" if shares[i][j] > 0.6 else INK)
    slanted = len(columns) > 4 or max(map(len, columns)) > 9
    names = [shortened(label, 18) for label in columns]
    axes.set_xticks(range(len(columns)), names, rotation=35 if slanted else 0, ha="right" if slanted else "center")
    axes.set_yticks(range(len(result.labels)), [shortened(label, 18) for label in result.labels])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(title=system_name(result.system), xlabel="answer", ylabel="target")
