"""Sections of written forecasts beside a reference's: ROUGE for each, and FinGPT's published figures as they are made.

Enters: parsed answers and references. Leaves: F measures from 0 to 1. ROUGE is Google's ``rouge-score`` with Porter's
stemmer, which FinGPT uses too, so that the figures can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

from fintune.metrics.forecast_answers import ForecastAnswer, parse_strict

SECTIONS = ("positives", "concerns", "analysis")
ROUGES = ("rouge1", "rouge2", "rougeL")


def section_rouge(answer: ForecastAnswer, reference: ForecastAnswer) -> dict[str, float]:
    """ROUGE-1, 2 and L of each section that the reference has, such as ``analysis_rougeL``; 0 for a missing section."""
    return {
        f"{section}_{name}": score
        for section in SECTIONS
        if getattr(reference, section).strip()
        for name, score in _rouge(getattr(reference, section), getattr(answer, section)).items()
    }


def fingpt_scores(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """FinGPT's ``calc_metrics``, defects included, for comparison with its published figures only.

    Both sides are read by ``parse_strict``; a pair of which either cannot be read is dropped from every score, and the
    truth is what the reference answer says, not the price. ``valid_count`` says how many pairs were left; ``bin_acc``
    is accuracy on -1, 0 and 1; ``mse`` is in squared percent points.

    Returns:
        Scores by name; empty when no pair can be read.
    """
    pairs = [(parse_strict(said), parse_strict(true)) for said, true in zip(answers, references, strict=True)]
    pairs = [(said, true) for said, true in pairs if not said.missing and not true.missing]
    if not pairs:
        return {}
    right = sum(said.direction == true.direction for said, true in pairs)
    squared = sum(((said.magnitude or 0.0) - (true.magnitude or 0.0)) ** 2 for said, true in pairs)
    scores = {"valid_count": float(len(pairs)), "bin_acc": right / len(pairs), "mse": squared / len(pairs)}
    for section in SECTIONS:
        found = [_rouge(getattr(true, section), getattr(said, section)) for said, true in pairs]
        scores |= {f"{section}_{name}": sum(one[name] for one in found) / len(pairs) for name in ROUGES}
    return scores


def _rouge(reference: str, text: str) -> dict[str, float]:
    return dict(_scored(reference.strip(), text.strip()))


@lru_cache(maxsize=4096)
def _scored(reference: str, text: str) -> tuple[tuple[str, float], ...]:
    """A long section takes a hundredth of a second, and is asked for under our rules and under FinGPT's."""
    return tuple((name, float(score.fmeasure)) for name, score in _scorer().score(reference, text).items())


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(ROUGES), use_stemmer=True)
