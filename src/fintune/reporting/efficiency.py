"""What runs cost: memory, time, sizes, answering.

Enters: runs. Leaves: bars, one a run in each panel; for a single run its own sizes and systems side by side. And the
same as a table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fintune.reporting.run_data import RunData
from fintune.reporting.styles import INK, SPARE_BARS, bar_style
from fintune.reporting.tables import Table
from fintune.reporting.wording import shortened, system_name
from fintune.schema.results import TimeCost

EFFICIENCY_CAPTION = "What training took and what is kept of it; each bar has its value."
_GIB, _MIB = 2**30, 2**20
_NAME = 26


@dataclass(frozen=True)
class _Bar:
    name: str
    value: float
    look: tuple[str, str]


_Panel = tuple[str, list[_Bar]]
_Read = Callable[[RunData], float | None]


def _fact(key: str, unit: float = 1.0) -> _Read:
    def read(run: RunData) -> float | None:
        value = _known(run, key)
        return None if value is None else value / unit

    return read


def _known(run: RunData, key: str) -> float | None:
    """A number of the facts; None where it is not known, which NaN says too."""
    value = run.facts.get(key)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _tokens_per_s(run: RunData) -> float | None:
    tokens, seconds = _known(run, "sample_tokens"), _known(run, "training_seconds")
    return tokens / seconds if tokens and seconds else None


def _adapter(run: RunData) -> float | None:
    return None if run.adapter_bytes is None else run.adapter_bytes / _MIB


def _answering(run: RunData) -> float | None:
    costs = run.results.time_costs if run.results else ()
    system = "tuned" if any(cost.system == "tuned" for cost in costs) else "base"
    return _milliseconds([cost for cost in costs if cost.system == system])


_QUANTITIES: tuple[tuple[str, _Read], ...] = (
    ("Peak memory, GiB", _fact("peak_bytes", _GIB)),
    ("Training time, minutes", _fact("training_seconds", 60)),
    ("Tokens of samples a second", _tokens_per_s),
    ("Weights of the base in memory, MiB", _fact("weight_bytes", _MIB)),
    ("Adapter on disk, MiB", _adapter),
    ("Trained parameters, millions", _fact("trainable_parameters", 1e6)),
    ("Answering, ms a document", _answering),
)
_SETTINGS = (("Device", "device"), ("Quantisation", "quantization"), ("Activations", "activations"))


def efficiency_comparison(runs: Sequence[RunData]) -> Figure | None:
    """Horizontal bars with their values; only panels with data, None without any."""
    panels = _of_several(runs) if len(runs) > 1 else [panel for run in runs for panel in _of_one(run)]
    if not panels:
        return None
    n_rows = -(-len(panels) // 2)
    most = max(len(bars) for _, bars in panels)
    width = 7.2 if len(panels) > 1 else 4.2
    figure = Figure(figsize=(width, n_rows * (0.75 + 0.27 * most)), layout="constrained")
    grid = figure.subplots(n_rows, min(2, len(panels)), squeeze=False).ravel()
    for axes, (title, bars) in zip(grid, panels, strict=False):
        _draw(axes, title, bars)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    return figure


def efficiency_table(runs: Sequence[RunData]) -> Table | None:
    """The quantities of the figure, a column a run, and on what device."""
    shown = [(title, read) for title, read in _QUANTITIES if any(read(run) is not None for run in runs)]
    if not shown:
        return None
    rows = (
        *((name, *(str(run.facts.get(key, "–")) for run in runs)) for name, key in _SETTINGS),
        *((title, *("–" if (v := read(run)) is None else _number(v) for run in runs)) for title, read in shown),
    )
    note = "Times on different devices do not compare. Memory is what the process held at most."
    return Table("efficiency", "What training took", ("Quantity", *(run.name for run in runs)), rows, note=note)


def _of_several(runs: Sequence[RunData]) -> list[_Panel]:
    return [
        (title, bars)
        for title, read in _QUANTITIES
        if (
            bars := [
                _Bar(run.name, value, SPARE_BARS[index % len(SPARE_BARS)])
                for index, run in enumerate(runs)
                if (value := read(run)) is not None
            ]
        )
    ]


def _of_one(run: RunData) -> list[_Panel]:
    """Panels of one run: sizes in memory and on disk, parameters, and what each system's answers take."""
    sizes = {
        "weights of the base": _known(run, "weight_bytes"),
        "peak in training": _known(run, "peak_bytes"),
        "adapter on disk": run.adapter_bytes,
    }
    parameters = {"all": _known(run, "all_parameters"), "trained": _known(run, "trainable_parameters")}
    costs: Mapping[str, list[TimeCost]] = {}
    if run.results is not None:
        systems = dict.fromkeys(cost.system for cost in run.results.time_costs)
        costs = {system: [c for c in run.results.time_costs if c.system == system] for system in systems}
    answering = [
        _Bar(system_name(system), value, bar_style(system, list(costs)))
        for system, found in costs.items()
        if (value := _milliseconds(found)) is not None
    ]
    panels = [
        ("Memory and storage, MiB", _bars(sizes, _MIB)),
        ("Parameters, millions", _bars(parameters, 1e6)),
        ("Answering, ms a document", answering),
    ]
    return [panel for panel in panels if panel[1]]


def _bars(values: Mapping[str, float | None], unit: float) -> list[_Bar]:
    return [
        _Bar(name, value / unit, SPARE_BARS[index % len(SPARE_BARS)])
        for index, (name, value) in enumerate(values.items())
        if value is not None
    ]


def _milliseconds(costs: Sequence[TimeCost]) -> float | None:
    """Mean time an answer over all tasks."""
    answers = sum(cost.n for cost in costs)
    return 1000 * sum(cost.elapsed_s for cost in costs) / answers if answers else None


def _draw(axes: Axes, title: str, bars: Sequence[_Bar]) -> None:
    for place, bar in enumerate(bars):
        colour, hatch = bar.look
        axes.barh(-place, bar.value, 0.72, color=colour, hatch=hatch, edgecolor=INK, linewidth=0.6)
        axes.annotate(_number(bar.value), (bar.value, -place), (3, 0), textcoords="offset points", va="center")
    axes.set_yticks([-place for place in range(len(bars))], [shortened(bar.name, _NAME) for bar in bars])
    axes.set_ylim(0.6 - len(bars), 0.6)
    axes.set_xlim(0, 1.22 * max(bar.value for bar in bars) or 1.0)
    axes.tick_params(axis="y", length=0)
    axes.set_title(title)


def _number(value: float) -> str:
    """Three digits, or all that stand before the point."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
