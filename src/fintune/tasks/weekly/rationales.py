"""What a forecaster is taught to write: the prediction alone, or headlines of its own prompt before it.

Enters: a row and its label. Leaves: the target's text. A teacher that is told the outcome writes hindsight; the two
targets here use nothing but the prompt and the label. What a teacher wrote is read from a file (``read_rationales``).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from fintune.metrics.return_bins import phrase_of
from fintune.schema.errors import DataError
from fintune.tasks.corpus_files import json_lines, need_keys

RATIONALES_FILE, RATIONALES_VARIABLE = "rationales.jsonl", "FINTUNE_RATIONALES"
MOST_FACTORS = 4
_POLAR = 0.05


def said(label: str) -> str:
    """A bin as an answer begins: ``Up by 2-3%``."""
    phrase = phrase_of(label)
    return phrase[0].upper() + phrase[1:]


def label_target(row: Mapping[str, Any]) -> str:
    """The prediction in its fixed form."""
    return f"Prediction: {said(row['label'])}"


def extractive_target(row: Mapping[str, Any]) -> str:
    """The three sections with the prompt's most positive and most negative headlines, word for word.

    Their headings are those that FinGPT's own parser reads, with the last one's colon, which its prompt lacks.

    A headline's polarity is VADER's compound score; from 0.05 on it is positive, as its authors have it. The analysis
    states the last week's move and how many headlines speak for each side.
    """
    headlines = list(dict.fromkeys(one["headline"] for week in row["weeks"] for one in week["news"]))
    scored = sorted(((_polarity(headline), headline) for headline in headlines), key=lambda pair: -abs(pair[0]))
    good = [headline for score, headline in scored if score >= _POLAR]
    bad = [headline for score, headline in scored if score <= -_POLAR]
    last = row["weeks"][-1]
    move = 100 * (last["last"] / last["first"] - 1)
    analysis = (
        f"In the week to {last['end']} the price {'rose' if move >= 0 else 'fell'} by {abs(move):.1f}%. Of "
        f"{len(headlines)} headlines {len(good)} read positive and {len(bad)} negative."
    )
    return (
        f"[Positive Developments]:\n{_numbered(good)}\n\n[Potential Concerns]:\n{_numbered(bad)}\n\n"
        f"[Prediction & Analysis]:\n{label_target(row)}\nAnalysis: {analysis}"
    )


def read_rationales(source: str) -> dict[str, str]:
    """A teacher's answers by row id.

    They are looked for in the file that ``FINTUNE_RATIONALES`` names, else in ``rationales.jsonl`` beside the rows.

    Raises:
        DataError: there is no such file.
    """
    named, place = os.environ.get(RATIONALES_VARIABLE), Path(source).expanduser()
    file = Path(named).expanduser() if named else (place if place.is_dir() else place.parent) / RATIONALES_FILE
    if not file.is_file():
        raise DataError(
            f"There are no teacher's rationales in {file}.",
            f"Have them written by `fintune rationales`, and name their file in {RATIONALES_VARIABLE}.",
        )
    answers = {}
    for record in json_lines(file):
        need_keys(file, record, ("id", "answer"))
        answers[str(record["id"])] = str(record["answer"])
    return answers


def _numbered(headlines: list[str]) -> str:
    chosen = headlines[:MOST_FACTORS]
    return "\n".join(f"{number}. {text}" for number, text in enumerate(chosen, 1)) or "1. None in the news."


@lru_cache(1 << 14)
def _polarity(headline: str) -> float:
    return float(_analyzer().polarity_scores(headline)["compound"])


@lru_cache(1)
def _analyzer() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()
