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
        f"Days after the day before: {_counts(facts.gaps)}. Adjustments: {_counts(facts.events)}.",
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
    columns = ("Model", "Log-likelihood", "CRPS", "In 50%", "In 90%")
    return Table("quant-scores", caption, columns, rows, note=note, emphasised=frozenset({0}))


def differences_table(found: QuantEvaluation) -> Table:
    """The first model against every other."""
    rows = tuple(
        (
            one.reference,
            _UNITS[one.score][0],
            _interval(one.difference, signed=True),
            p_value(one.holm_p),
            p_value(one.week_holm_p),
            f"{one.persistence:+.2f}",
            one.verdict,
        )
        for one in found.differences
    )
    columns = ("Against", "Score", "Difference", "p (Holm)", "by week", "Persistence", "Verdict")
    note = (
        "Days (then weeks) are swapped as a whole; p is corrected over the models of a score. Persistence: correlation "
        "of the daily difference with the day before's. Better or worse only where both tests say so."
    )
    first = found.scores[0].name
    return Table("quant-differences", f"{first} minus each other model", columns, rows, text_columns=2, note=note)


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
    shares = [f"{100 * one.metrics[name].value:.1f}%" for name in ("coverage_50", "coverage_90")]
    return (one.name, *(_interval(one.metrics[name]) for name in ("log_score", "crps")), *shares)


def _interval(estimate: Estimate, signed: bool = False) -> str:
    form = "+.4f" if signed else ".4f"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:{form}}"
    return f"{estimate.value:{form}} ({estimate.low:{form}} to {estimate.high:{form}})"


def _counts(counts: Mapping[str, float]) -> str:
    return "; ".join(f"{number:,.6g} {what}" for what, number in counts.items()) or "none"
