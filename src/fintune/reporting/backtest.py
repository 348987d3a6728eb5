"""Weekly forecasts for people: scores beside baselines, what trading on them earned, and what that allows one to say.

Enters: ``Assessment``, or the ``backtest.json`` of a run. Leaves: tables, sentences, and the figure of the equity.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from fintune.reporting.html import Picture, Section
from fintune.reporting.styles import BLUE, GREEN, GREY, INK, ORANGE, write_figure
from fintune.reporting.tables import Table
from fintune.reporting.wording import interval, p_value, percent, system_name
from fintune.schema.results import Estimate

if TYPE_CHECKING:
    from fintune.forecasting.assessment import Assessment
    from fintune.forecasting.performance import Performance

FILE, PICTURE = "backtest.json", "figures/backtest.png"
NAMES = {
    "buy_and_hold": "Buy and hold",
    "equal_weight": "Equal weight, weekly",
    "majority_sign": "Majority sign",
    "last_sign": "Last week again",
    "zero_return": "Zero return",
    "linear": "Linear, past returns",
}
_SCORES = {
    "coverage": "Coverage",
    "direction_accuracy": "Direction accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "mcc": "MCC",
    "mse_all": "Squared error",
}
WRITTEN = {
    "sections": "Sections there",
    "format_valid": "Format kept exactly",
    "names_used": "Names of the prompt used",
    "names_unknown": "Names not in the prompt",
    "figures_said": "Figures",
    "figures_used": "Figures of the prompt",
    "figures_invented": "Figures not in the prompt",
    "points": "Points",
    "points_tied": "Points tied to the prompt",
    "repetition": "Repetition",
    "words": "Words",
    "words_per_sentence": "Words a sentence",
    "hedges_per_100_words": "Hedges in 100 words",
}
_FINGPT = {
    "valid_count": "Read",
    "bin_acc": "Binary accuracy",
    "mse": "MSE",
    "positives_rouge1": "ROUGE-1 pros",
    "concerns_rouge1": "ROUGE-1 cons",
    "analysis_rouge1": "ROUGE-1 analysis",
}
_OF_DIRECTION = frozenset({"coverage", "direction_accuracy", "balanced_accuracy", "mcc"})
_LINES = ((GREEN, "-."), ("#CC79A7", ":"), ("#56B4E9", (0, (5, 1))), ("#D55E00", "-."), ("#8a5a00", ":"))
_KNOWN = {
    "base": (ORANGE, "--"),
    "tuned": (BLUE, "-"),
    "buy_and_hold": (INK, "-"),
    "equal_weight": (GREY, "--"),
}
_NONE = "–"
_KIND = re.compile(r"\w+(?=, | \(|$)")
"""The system in ``tuned, weekly_acl18`` (of a task) and ``base (label)`` (of a run)."""


def backtest_sections(run_path: Path) -> list[Section]:
    """The section of a run's report; none where the run was not backtested."""
    from fintune.forecasting.assessment import read_assessment

    if not (run_path / FILE).is_file():
        return []
    assessment, picture = read_assessment(run_path / FILE), run_path / PICTURE
    pictures = [Picture(picture, "Equity of each strategy, after costs.")] if picture.is_file() else []
    tables, words = assessment_tables(assessment), assessment_sentences(assessment)
    return [Section("Forecasts and backtest", "backtest", pictures, tables, words)]


def assessment_tables(assessment: Assessment) -> list[Table]:
    """Scores, comparisons with the baselines, calibration where there is any, and strategies."""
    calibrated = [calibration_table(assessment)] if assessment.calibration else []
    compared = [comparisons_table(assessment)] if assessment.comparisons else []
    forecasts = [scores_table(assessment), *compared, *calibrated]
    written = [written_table(assessment), *strict_tables(assessment)] if assessment.written else []
    return [*forecasts, *written, performance_table(assessment), chance_table(assessment)]


def scores_table(assessment: Assessment) -> Table:
    """Systems and baselines on the same stocks and weeks."""
    rows = tuple(
        (
            name_of(name),
            str(found.missing),
            *(_score(name, metric, found.metrics) for metric in _SCORES),
        )
        for name, found in assessment.scores.items()
    )
    one = next(iter(assessment.scores.values()))
    note = (
        "Intervals are over weeks. Errors are in percent points, over all forecasts, one without a size counting as "
        "no change. A missing forecast has a wrong direction."
    )
    caption = f"Forecasts of {one.n:,} stock-weeks in {one.n_weeks} weeks"
    return Table("forecasts", caption, ("System", "Missing", *_SCORES.values()), rows, note=note)


def comparisons_table(assessment: Assessment) -> Table:
    """Each system against each baseline."""
    rows = tuple(
        (
            *(name_of(one.system), name_of(one.reference), _SCORES[one.metric]),
            *(interval(one.difference, signed=True), p_value(one.p), p_value(one.holm_p)),
        )
        for one in assessment.comparisons
    )
    columns = ("System", "Against", "Score", "Difference", "p", "p (Holm)")
    note = "System minus baseline. The test flips whole weeks; p (Holm) is corrected over all rows of this table."
    return Table("forecast-comparisons", "Forecasts against baselines", columns, rows, text_columns=3, note=note)


def calibration_table(assessment: Assessment) -> Table:
    """Whether the probability of a rise means what it says."""
    rows = tuple(
        (name_of(name), str(one.n), interval(one.brier), f"{one.brier_constant:.3f}", interval(one.ece))
        for name, one in assessment.calibration.items()
    )
    columns = ("System", "n", "Brier score", "Constant forecast", "Calibration error")
    note = "The constant forecast is the share of rises in these weeks, which nobody knew."
    return Table("forecast-calibration", "Probability of a rise", columns, rows, note=note)


def written_table(assessment: Assessment) -> Table:
    """Execution, depth and clarity of written answers, and ROUGE of their sections, one measure a row."""
    systems = assessment.written
    names = dict.fromkeys(name for one in systems.values() for name in one.measures)
    rows = tuple(
        (
            WRITTEN.get(name) or rouge_name(name),
            *(interval(one.measures[name]) if name in one.measures else _NONE for one in systems.values()),
        )
        for name in names
    )
    note = "Means over answers, with intervals over weeks. None of them says that a forecast is right."
    columns = ("Measure", *map(name_of, systems))
    return Table("forecast-texts", "How the answers are written", columns, rows, note=note)


def strict_tables(assessment: Assessment) -> list[Table]:
    """What FinGPT's parser reads in the same answers, and its published figures where there are references."""
    read = tuple(
        (name_of(name), str(one.strict.missing), *(_score(name, metric, one.strict.metrics) for metric in _SCORES))
        for name, one in assessment.written.items()
        if one.strict is not None
    )
    made = tuple(
        (name_of(name), f"{one.fingpt['valid_count']:.0f}", *(f"{one.fingpt[key]:.3f}" for key in list(_FINGPT)[1:]))
        for name, one in assessment.written.items()
        if one.fingpt
    )
    note = (
        "Against the reference answer, not the price, and without the answers that cannot be read: not comparable with "
        "the tables above, only with figures made in the same way."
    )
    tables = [
        Table("forecasts-strict", "As FinGPT's parser reads them", ("System", "Missing", *_SCORES.values()), read),
        Table("forecasts-fingpt", "FinGPT's own figures", ("System", *_FINGPT.values()), made, note=note),
    ]
    return [table for table in tables if table.rows]


def rouge_name(measure: str) -> str:
    """``analysis_rougeL`` becomes ``ROUGE-L of analysis``."""
    section, _, kind = measure.partition("_rouge")
    return f"ROUGE-{kind} of {section}"


def performance_table(assessment: Assessment) -> Table:
    """Strategies, then what it is to beat."""
    settings = assessment.settings
    costs = settings.costs
    sides = "long only" if settings.long_only else "long and short"
    note = (
        f"Positions by {settings.rule}, {sides}, entered at the open after the forecast; {costs.commission_bp:g} basis "
        f"points of commission and {costs.slippage_bp:g} of slippage on what is traded. The Sharpe ratio "
        "is yearly, without a risk-free rate."
    )
    columns = (
        *("Strategy", "Weeks", "Return a year", "Volatility", "Sharpe ratio", "Deepest fall"),
        *("Turnover a week", "Cost"),
    )
    rows = tuple(_performance(one) for one in (*assessment.strategies, *assessment.benchmarks))
    return Table("backtest", "Trading on the forecasts, after costs", columns, rows, note=note)


def chance_table(assessment: Assessment) -> Table:
    """Whether the strategies differ from chance."""
    rows = tuple(
        (
            *(name_of(one.name), percent(one.hit_rate), p_value(one.p_zero), p_value(one.p_hold)),
            _NONE if one.deflated_sharpe is None else f"{one.deflated_sharpe:.2f}",
        )
        for one in assessment.strategies
    )
    columns = ("Strategy", "Weeks up", "p against nothing", "p against holding", "Deflated Sharpe ratio")
    note = (
        "The p-values flip the sign of whole weeks and are corrected by Holm over all strategies and both tests. The "
        f"deflated ratio is how surely the true one is above 0 after {assessment.counts['strategies tried']} tries."
    )
    return Table("backtest-chance", "Against chance", columns, rows, note=note)


def assessment_sentences(assessment: Assessment) -> list[str]:
    """What the backtest allows one to say, what to know about it, and what was left out."""
    said = [one.sentence.replace(one.name, name_of(one.name), 1) for one in assessment.strategies]
    counts = "; ".join(f"{name}: {count:,}" for name, count in assessment.counts.items())
    return [*said, *assessment.notes, counts[:1].upper() + counts[1:] + "."]


def write_equity(assessment: Assessment, path: Path) -> Path:
    """Draws the equity curves."""
    return write_figure(lambda: equity_figure(assessment), path)


def equity_figure(assessment: Assessment) -> Figure:
    """Equity at daily closes, from 1 before the first entry, of all strategies and of holding."""
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.subplots()
    others = [name for name in assessment.curves if name not in _KNOWN]
    for name, curve in assessment.curves.items():
        colour, line = _KNOWN[name] if name in _KNOWN else _LINES[others.index(name) % len(_LINES)]
        days, values = zip(*curve, strict=True)
        axes.plot(days, values, color=colour, linestyle=line, linewidth=1.2, label=name_of(name))
    axes.axhline(1, color="#999999", linewidth=0.6)
    axes.set(title="Equity after costs", ylabel="value of 1 invested")
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    figure.autofmt_xdate()
    figure.legend(loc="outside lower center", ncols=3, handlelength=2.4)
    return figure


def name_of(name: str) -> str:
    """The name people read, of a system, a baseline or a benchmark."""
    kind = _KIND.match(name)
    return NAMES.get(name) or (system_name(kind[0]) + name[kind.end() :] if kind else name)


def _score(name: str, metric: str, found: Mapping[str, Estimate]) -> str:
    if metric not in found or (name == "zero_return" and metric in _OF_DIRECTION):
        return _NONE
    return interval(found[metric])


def _performance(one: Performance) -> tuple[str, ...]:
    return (
        *(name_of(one.name), str(one.n_periods), percent(one.annual_return)),
        _NONE if one.annual_volatility is None else percent(one.annual_volatility),
        _NONE if one.sharpe is None else interval(one.sharpe),
        *(percent(one.max_drawdown), f"{one.turnover:.2f}", percent(one.cost)),
    )
