"""Next-day distributions as tables and sentences.

Enters: ``BuildFacts`` or ``QuantEvaluation``. Leaves: ``Table`` objects and plain sentences.
"""

from __future__ import annotations

from collections.abc import Mapping

from fintune.forecasting.quant.building import BuildFacts
from fintune.forecasting.quant.comparison import Difference, ModelScores, QuantEvaluation
from fintune.reporting.tables import Table
from fintune.reporting.wording import p_phrase, p_value
from fintune.schema.results import Estimate

_UNITS = {"log_score": ("log-likelihood", "nats"), "crps": ("CRPS", "percent points")}


def build_sentences(facts: BuildFacts) -> list[str]:
    """What became of the prices, everything that was left out included."""
    days = ", ".join(f"{number:,} {split}" for split, number in facts.days.items())
    lines = [
        f"{facts.tickers} tickers, {days} ticker-days; validation from {facts.first_validation}, test from "
        f"{facts.first_test}; {facts.vocabulary} tokens, 8 a day.",
        f"Rows left out of {facts.rows:,}: {_counts(facts.dropped_rows)}. Tickers left out: "
        f"{_counts(facts.dropped_tickers)}. First days that only start the volatility: {facts.warm_up_days:,}.",
        f"Days: {_counts(facts.gaps)}. Adjustments: {_counts(facts.events)}.",
        f"Changes decoded from their bins miss the real ones by {facts.change_rmse:.1%} of their size (root mean "
        f"square), {facts.change_rmse_inner:.1%} without the {facts.change_tail:,} beyond 5 expected sizes.",
    ]
    if not facts.adjusted:
        lines.append("The prices have no adjusted close: splits and dividends count as moves.")
    return lines


def scores_table(found: QuantEvaluation) -> Table:
    """Every model's scores."""
    rows = tuple(_row(one) for one in found.scores)
    caption = (
        f"Next-day changes, {found.split} days: {found.n:,} ticker-days of {found.n_tickers} tickers on {found.n_days} "
        f"days, {found.first_day} to {found.last_day}"
    )
    note = (
        f"{found.confidence:.0%} intervals by day. Log-likelihood of the realised one of {found.n_bins} bins in nats "
        "(more is better); CRPS in percent points (less is better); shares of outcomes in the central intervals."
    )
    columns = ("Model", "Log-likelihood", "CRPS", "In 50 / 90 %")
    return Table("quant-scores", caption, columns, rows, note=note, emphasised=frozenset({0}))


def differences_tables(found: QuantEvaluation) -> list[Table]:
    """The first model against every other, a table for each score."""
    note = (
        "p: the larger one of two tests, which swap whole days and whole weeks, each corrected over these models "
        "(Holm). Better or worse only where both and the interval say so."
    )
    tables = []
    for score, (name, unit) in _UNITS.items():
        rows = tuple(
            (one.reference, _interval(one.difference, signed=True), p_value(_larger_p(one)), one.verdict)
            for one in found.differences
            if one.score == score
        )
        caption = f"{found.scores[0].name} minus each other model: {name} in {unit}"
        tables.append(Table(f"quant-{score}", caption, ("Against", "Difference", "p", "Verdict"), rows, note=note))
    return tables


def _larger_p(one: Difference) -> float:
    return max(one.holm_p, one.week_holm_p)


def verdict_sentences(found: QuantEvaluation) -> list[str]:
    """Better, worse or not told apart, from each baseline; then what was chosen and what went wrong."""
    first = found.scores[0].name
    lines = [_verdict(first, one) for one in found.differences if one.score == "log_score"]
    lines += [f"{one.name}: {one.chosen} (chosen on validation days)." for one in found.scores if one.chosen]
    lines += [f"{one.name}: {_counts(one.counts)}." for one in found.scores if one.counts]
    return lines


def pit_sentence(scores: ModelScores) -> str:
    """Where outcomes fell in their distributions, tenth by tenth."""
    return f"{scores.name}: outcomes by tenth of the forecast: {' '.join(f'{share:.1%}' for share in scores.pit)}."


def _verdict(first: str, one: Difference) -> str:
    unit = _UNITS[one.score][1]
    said = "not told apart from" if one.verdict == "not told apart" else f"{one.verdict} than"
    return f"{first} is {said} {one.reference}: {_interval(one.difference, signed=True)} {unit} a ticker-day, " + (
        f"{p_phrase(one.holm_p)} after Holm, by week {p_phrase(one.week_holm_p)}."
    )


def _row(one: ModelScores) -> tuple[str, ...]:
    shares = " / ".join(f"{100 * one.metrics[name].value:.1f}" for name in ("coverage_50", "coverage_90"))
    return (one.name, *(_interval(one.metrics[name], places=3) for name in ("log_score", "crps")), f"{shares} %")


def _interval(estimate: Estimate, signed: bool = False, places: int = 4) -> str:
    form = f"{'+' if signed else ''}.{places}f"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:{form}}"
    return f"{estimate.value:{form}} ({estimate.low:{form}}, {estimate.high:{form}})"


def _counts(counts: Mapping[str, float]) -> str:
    return "; ".join(f"{number:,.6g} {what}" for what, number in counts.items()) or "none"
