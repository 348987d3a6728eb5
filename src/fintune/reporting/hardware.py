"""What the GPUs did while a run trained, as a figure: utilisation, memory, power, temperature, throughput.

Enters: lines of ``metrics.jsonl``, and of further processes by rank; or of several runs by name. Leaves: a figure, or
None without GPU figures. Processes differ by dash and grey, runs by dash and marker, so that it reads without colour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fintune.reporting.curves import MIN_SMOOTHED, History, draw_run, run_legend, series, smoothed
from fintune.reporting.styles import with_grid

HARDWARE_CAPTION = (
    "What the GPU reported of itself, throughput, and the share of its peak that the model used; of one process or of "
    "several runs, the dark lines of the last two are running medians."
)
_GIB = 2**30
# Title, key of the lines, what its values are divided by.
_PANELS = (
    ("GPU utilisation, %", "gpu_utilization_percent", 1),
    ("GPU memory in use, GiB", "gpu_memory_bytes", _GIB),
    ("Power, W", "gpu_power_w", 1),
    ("Temperature, °C", "gpu_temperature_c", 1),
    ("Tokens of samples a second", "tokens_per_s", 1),
    ("Model FLOP utilisation, %", "mfu", 0.01),
)
_UNEVEN = _PANELS[4:]
"""What differs from step to step with the lengths of samples; a running median shows its course."""
_STYLES = (("#222222", "-"), ("#8a8a8a", "--"), ("#555555", ":"), ("#b0b0b0", "-."))


def gpu_utilization(history: History, others: Mapping[int, History] | None = None) -> Figure | None:
    """Each figure by optimiser step, a line for each process; only panels with data.

    Args:
        history: lines of the first process.
        others: lines of further processes by rank.
    """
    ranks = {0: history, **(others or {})}
    drawn = _drawn(list(ranks.values()))
    if not drawn:
        return None
    figure, grid = _grid(drawn)
    for axes, panel in zip(grid, drawn, strict=True):
        for rank, rows in ranks.items():
            steps, values = _points(rows, *panel[1:])
            if len(ranks) == 1 and _is_uneven(panel, values):
                axes.plot(steps, values, color="#b0b0b0", linewidth=0.6)
                values = smoothed(values)
            _draw(axes, rank, steps, values)
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    if len(ranks) > 1:
        figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(8, len(ranks)))
    return figure


def gpus_of_runs(histories: Mapping[str, History]) -> Figure | None:
    """The same for the first process of several runs by name."""
    drawn = _drawn(list(histories.values()))
    if not drawn:
        return None
    figure, grid = _grid(drawn)
    for axes, panel in zip(grid, drawn, strict=True):
        for index, (name, rows) in enumerate(histories.items()):
            steps, values = _points(rows, *panel[1:])
            if steps:
                draw_run(axes, index, name, steps, smoothed(values) if _is_uneven(panel, values) else values)
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    run_legend(figure, grid)
    return figure


def _is_uneven(panel: tuple[str, str, float], values: Sequence[float]) -> bool:
    return panel in _UNEVEN and len(values) >= MIN_SMOOTHED


def _drawn(histories: Sequence[History]) -> list[tuple[str, str, float]]:
    """The panels with data; none where no line is about a GPU."""
    found = [panel for panel in _PANELS if any(_points(rows, *panel[1:])[0] for rows in histories)]
    return found if set(found) & set(_PANELS[:4]) else []


def _grid(drawn: Sequence[tuple[str, str, float]]) -> tuple[Figure, list[Axes]]:
    n_rows = -(-len(drawn) // 2)
    figure = Figure(figsize=(7.2, 2.1 * n_rows), layout="constrained")
    grid = list(figure.subplots(n_rows, 2, squeeze=False).ravel())
    for axes, (title, _, _) in zip(grid, drawn, strict=False):
        axes.set(title=title, xlabel="optimiser step")
        with_grid(axes)
    for axes in grid[len(drawn) :]:
        axes.set_visible(False)
    return figure, grid[: len(drawn)]


def _draw(axes: Axes, rank: int, steps: list[float], values: list[float]) -> None:
    colour, style = _STYLES[rank % len(_STYLES)]
    axes.plot(steps, values, color=colour, linestyle=style, linewidth=1.1, label=f"rank {rank}")


def _points(rows: History, key: str, unit: float) -> tuple[list[float], list[float]]:
    steps, values = series(rows, key)
    return steps, [value / unit for value in values]
