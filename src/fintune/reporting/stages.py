"""Runs with stages as a figure: how the loss goes on from stage to stage, and what every task scores after each.

Enters: runs, of which one at least has stages. Leaves: a figure, or None. After which stage a score was measured shows
in the marker, and which run in its row, so that the figure reads without colour.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fintune.reporting.curves import draw_run, run_legend, series, smoothed
from fintune.reporting.run_data import RunData
from fintune.reporting.styles import GREY, INK, line_style, with_grid
from fintune.reporting.wording import metric_in_sentence, shortened, tasks_of
from fintune.schema.results import Estimate, EvaluationResults

STAGES_CAPTION = (
    "Training loss by optimiser step, with a line where a stage ends, and each task's primary score after each stage "
    "that was measured, with intervals."
)
_NAME = 22


@dataclass(frozen=True)
class _Point:
    """A score in the row of a run: after a stage (``place`` in its order), of the base (-1), or at the end (None)."""

    row: str
    place: int | None
    estimate: Estimate


def curriculum_comparison(runs: Sequence[RunData], without: Collection[str] = ()) -> Figure | None:
    """Loss on the left, scores on the right, but of the tasks ``without``; None where no run has several stages."""
    if not any(len(run.stages) > 1 for run in runs):
        return None
    trained = {run.name: xy for run in runs if (xy := series(run.history, "loss"))[0]}
    tasks = [task for task in _tasks(runs) if task not in (*without, *tasks_beyond_shares(runs))]
    n_panels = bool(trained) + bool(tasks)
    if not n_panels:
        return None
    rows = sum(len(_rows(runs, task)) + 1 for task in tasks)
    figure = Figure(figsize=(3.9 * n_panels, max(3.2, 0.9 + 0.2 * rows)), layout="constrained")
    grid = list(figure.subplots(1, n_panels, squeeze=False).ravel())
    if trained:
        _draw_losses(grid[0], runs)
    if tasks:
        _draw_scores(grid[-1], runs, tasks)
    run_legend(figure, grid)
    return figure


def tasks_beyond_shares(runs: Sequence[RunData]) -> list[str]:
    """Tasks whose score is no share, such as a perplexity, and has no place on an axis from 0 to 1."""
    results = [one for run in runs for one in (run.results, *run.stages.values()) if one is not None]
    found = [one for several in results for one in several.under("robust")]
    beyond = [one.task for one in found if one.primary in one.metrics and not 0 <= one.metrics[one.primary].value <= 1]
    return list(dict.fromkeys(beyond))


def _tasks(runs: Sequence[RunData]) -> list[str]:
    return list(dict.fromkeys(task for run in runs if run.results for task in tasks_of(run.results)))


def _draw_losses(axes: Axes, runs: Sequence[RunData]) -> None:
    for index, run in enumerate(runs):
        steps, values = series(run.history, "loss")
        if not steps:
            continue
        draw_run(axes, index, run.name or "training loss", steps, smoothed(values))
        for end in _stage_ends(run)[:-1]:
            axes.axvline(end, color=line_style(index).colour, linestyle=line_style(index).dash, linewidth=0.7)
    axes.set(title="Training loss, running median", xlabel="optimiser step")
    with_grid(axes)


def _stage_ends(run: RunData) -> list[float]:
    """The last step of each stage."""
    ends: dict[str, float] = {}
    for row in run.history:
        if "stage" in row and row.get("step") is not None:
            ends[str(row["stage"])] = float(row["step"])
    return list(ends.values())


def _rows(runs: Sequence[RunData], task: str) -> list[_Point]:
    """The scores of a task from top to bottom: the base, then each run's stages in order, the last being its end."""
    points: list[_Point] = []
    for run in runs:
        base = _score(run.results, task, "base")
        if base is not None and all(point.place != -1 or point.estimate != base for point in points):
            points.append(_Point("base", -1, base))
    for run in runs:
        stages = list(run.stages.items()) if len(run.stages) > 1 else []
        for place, (stage, results) in enumerate(stages[:-1]):
            if (found := _score(results, task, "tuned")) is not None:
                points.append(_Point(f"{run.name} {stage}".strip(), place, found))
        if (found := _score(run.results, task, "tuned")) is not None:
            last = f"{run.name} {stages[-1][0]}".strip() if stages else run.name
            points.append(_Point(last, None, found))
    return points


def _score(results: EvaluationResults | None, task: str, system: str) -> Estimate | None:
    found = results.find(task, system) if results is not None else None
    return found.metrics.get(found.primary) if found is not None else None


def _draw_scores(axes: Axes, runs: Sequence[RunData], tasks: Sequence[str]) -> None:
    ticks: list[tuple[float, str]] = []
    height = 0.0
    for task in tasks:
        scored = [result for run in runs if run.results for result in run.results.under("robust")]
        primary = next(result.primary for result in scored if result.task == task)
        title = f"{shortened(task, _NAME)}, {metric_in_sentence(primary)}"
        axes.text(0.0, height, title, transform=axes.get_yaxis_transform(), va="center", weight="bold", fontsize=7)
        height -= 1
        for point in _rows(runs, task):
            _draw_point(axes, point, height)
            ticks.append((height, shortened(point.row, _NAME + 8)))
            height -= 1
        axes.axhline(height + 0.5, color="#dddddd", linewidth=0.6)
    axes.set_yticks([place for place, _ in ticks], [name for _, name in ticks])
    axes.tick_params(axis="y", length=0, labelsize=7)
    axes.set(title="Scores after each stage", ylim=(height + 0.5, 0.7), xlim=(-0.02, 1.02))
    axes.margins(x=0.05)
    with_grid(axes, "x")


def _draw_point(axes: Axes, point: _Point, height: float) -> None:
    one = point.estimate
    if one.low is not None and one.high is not None:
        axes.plot([one.low, one.high], [height, height], color=INK, linewidth=1)
    looks = {-1: ("D", GREY, "base"), None: ("o", INK, "at the end")}
    marker, face, label = looks.get(point.place, ("s", "white", "after an earlier stage"))
    known = axes.get_legend_handles_labels()[1]
    axes.plot(
        *([one.value], [height]),
        linestyle="none",
        marker=marker,
        markersize=4.5,
        markerfacecolor=face,
        markeredgecolor=INK,
        zorder=3,
        label=None if label in known else label,
    )
