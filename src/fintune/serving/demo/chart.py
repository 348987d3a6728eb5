"""The price chart of one forecast: what the model was told, and the week that is forecast.

Enters: a history and a week of it. Leaves: a matplotlib figure; closes after the forecast date are dashed.
"""

from __future__ import annotations

from datetime import date

import numpy as np
from matplotlib.figure import Figure

from fintune.reporting.styles import BLUE, GREY, ORANGE
from fintune.tasks.weekly import History, Week, cutoff_day
from fintune.tasks.weekly.calendar import WEEK
from fintune.tasks.weekly.history import known_path


def price_figure(history: History, week: Week) -> Figure:
    """Closes of the weeks in sight, 100 at the first, with the forecast week shaded."""
    start = date.fromisoformat(week.date)
    last_seen = cutoff_day(start)
    window = history.prices.between(week.weeks[0].first_day, str(start + WEEK))
    path_D = known_path(window)
    path_D = 100 * path_D / path_D[0]
    days_D = np.array(window.days, "datetime64[D]")
    n_seen = sum(day <= last_seen for day in window.days)
    figure = Figure(figsize=(7.2, 3.0), layout="constrained")
    axes = figure.subplots()
    ahead = np.array([str(start), str(start + WEEK)], "datetime64[D]")
    whole_height = axes.get_xaxis_transform()
    axes.fill_between(ahead, 0, 1, transform=whole_height, color=ORANGE, alpha=0.25, label="forecast week")
    axes.plot(days_D[:n_seen], path_D[:n_seen], color=BLUE, marker=".", linewidth=1.2, label="known at the forecast")
    if n_seen < len(days_D):
        after = slice(n_seen - 1, None)
        axes.plot(days_D[after], path_D[after], color=GREY, linestyle="--", linewidth=1.2, label="came later")
    axes.set(ylabel="close, first is 100")
    axes.set_title(f"{week.ticker}, forecast of {start} to {start + WEEK}", parse_math=False)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    axes.legend(frameon=False, loc="best", fontsize="small")
    figure.autofmt_xdate()
    return figure
