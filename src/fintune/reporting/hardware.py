"""What the GPUs did while a run trained, as a figure: utilisation, memory, power, temperature, throughput.

Enters: lines of ``metrics.jsonl``, and of further processes by rank. Leaves: a figure, or None without GPU figures.
Processes differ by line style and grey, so that the figure reads without colour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

History = Sequence[Mapping[str, Any]]

HARDWARE_CAPTION = "What the GPU reported of itself, throughput, and the share of its peak that the model used."
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
_STYLES = (("#222222", "-"), ("#8a8a8a", "--"), ("#555555", ":"), ("#b0b0b0", "-."))


def gpu_utilization(history: History, others: Mapping[int, History] | None = None) -> Figure | None:
    """Each figure by optimiser step, a line for each process; only panels with data.

    Args:
        history: lines of the first process.
        others: lines of further processes by rank.
    """
    ranks = {0: history, **(others or {})}
    if not any(_points(rows, key, 1)[0] for rows in ranks.values() for _, key, _ in _PANELS[:4]):
        return None
    panels = [panel for panel in _PANELS if any(_points(rows, *panel[1:])[0] for rows in ranks.values())]
    n_rows = -(-len(panels) // 2)
    figure = Figure(figsize=(7.2, 2.1 * n_rows), layout="constrained")
    grid = figure.subplots(n_rows, 2, squeeze=False).ravel()
    for axes, panel in zip(grid, panels, strict=False):
        for rank, rows in ranks.items():
            _draw(axes, rank, *_points(rows, *panel[1:]))
        axes.set(title=panel[0], xlabel="optimiser step")
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.6)
        axes.set_axisbelow(True)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    if len(ranks) > 1:
        figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(8, len(ranks)))
    return figure


def _draw(axes: Axes, rank: int, steps: list[int], values: list[float]) -> None:
    colour, style = _STYLES[rank % len(_STYLES)]
    axes.plot(steps, values, color=colour, linestyle=style, linewidth=1.1, label=f"rank {rank}")


def _points(rows: History, key: str, unit: float) -> tuple[list[int], list[float]]:
    found = [(int(row["step"]), float(row[key]) / unit) for row in rows if row.get(key) is not None and "step" in row]
    return [step for step, _ in found], [value for _, value in found]
