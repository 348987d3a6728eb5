"""Weekly stock forecasts: what was known about a stock at the end of a week, and what the next week brought.

Enters: prices, dated news and financials from a collection, a corpus or the published Dow-30 set. Leaves: tasks in the
registry, and for one date the ``Week`` that a prompt is written from. ``find_lookahead`` proves that no prompt knows
its future.
"""

from fintune.tasks.weekly.calendar import cutoff, cutoff_day, forecast_dates
from fintune.tasks.weekly.collected import collected_histories
from fintune.tasks.weekly.history import History, News, PriceHistory, Report
from fintune.tasks.weekly.lookahead import Lookahead, find_lookahead, require_no_lookahead
from fintune.tasks.weekly.published import Fault, find_faults
from fintune.tasks.weekly.tables import week_row, weekly_tables
from fintune.tasks.weekly.weeks import Week, WeekOptions, build_week, build_weeks

__all__ = [
    "Fault",
    "History",
    "Lookahead",
    "News",
    "PriceHistory",
    "Report",
    "Week",
    "WeekOptions",
    "build_week",
    "build_weeks",
    "collected_histories",
    "cutoff",
    "cutoff_day",
    "find_faults",
    "find_lookahead",
    "forecast_dates",
    "require_no_lookahead",
    "week_row",
    "weekly_tables",
]
