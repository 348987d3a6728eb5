"""How a written forecast is made, apart from whether it comes true: execution, depth and clarity, by rules.

Enters: an answer and the prompt it was given. Leaves: plain numbers by name, each defined in ``quality``. None of them
says that an answer is right; a fluent invention scores well on clarity, and ``figures_invented`` counts its figures.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from fintune.metrics.forecast_answers import ForecastAnswer, parse_robust, parse_strict
from fintune.metrics.numbers import MAX_CHARACTERS, Quantity, quantities_in

SHARES = frozenset({"sections", "format_valid", "points_tied", "repetition"})
"""Measures that lie between 0 and 1."""
SAME_POINT = 0.7
"""Points that share this much of their words (Jaccard) are one point."""
TIED_WORDS = 3
"""Words of content that a point must share with one line of the prompt to be tied to it."""
_GRAM = 4
_LISTED = re.compile(r"^\s*(?:[-*+•]|\(?\d{1,2}[.)])\s+(?=\S)", re.MULTILINE)
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_LETTERS = re.compile(r"[^\W\d_]+")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
_NAME = re.compile(r"(?<=[\w,&] )[A-Z][\w&-]*\w(?:\.com)?|\b[A-Z]{2,5}\b")
_CONTENT = 4  # letters from which on a word counts as content
_HEDGES = re.compile(
    r"\b(?:may|might|could|can|possibly|perhaps|potential(?:ly)?|likely|unlikely|probably|appears?|seems?|suggests?"
    r"|uncertain(?:ty)?|somewhat|slightly|relatively|cautious(?:ly)?|expected to)\b",
    re.IGNORECASE,
)


def quality(text: str, prompt: str) -> dict[str, float]:
    """Execution, depth and clarity of an answer.

    Execution:

    - ``sections``: share of the four sections (positives, concerns, prediction, analysis) that are there and not empty.
    - ``format_valid``: 1 where the answer keeps to the format so exactly that FinGPT's own parser reads it.
    - ``names_used``: distinct names of the prompt (capitalised words within sentences, tickers) that the answer has.
    - ``names_unknown``: distinct names of the answer that the prompt does not have.
    - ``figures_said``, ``figures_used``, ``figures_invented``: distinct figures of the answer, those of them that the
      prompt has (rounding and per cent for a ratio allowed), and the others. Numbers of lists and the forecast size
      itself do not count, nor does its repetition in the analysis.

    Depth:

    - ``points``: distinct points among positives and concerns: list items, or sentences where there is no list; points
      that share 70% of their words count once.
    - ``points_tied``: share of these that have a figure of the prompt, or three words of content with one line of it;
      0 without points.
    - ``repetition``: share of runs of four words that stood in the answer before.

    Clarity:

    - ``words``; ``words_per_sentence``; ``hedges_per_100_words``: words such as may, might, could, potentially.
    """
    answer = parse_robust(text)
    parts = dict.fromkeys((answer.positives, answer.concerns, answer.prediction, answer.analysis))
    said = _LISTED.sub("", "\n".join(parts))
    words = [word.lower() for word in _WORD.findall(said)]
    sentences = [part for part in _SENTENCE.split(said) if _WORD.search(part)]
    return {
        **_execution(text, answer, said, prompt),
        **_figures(answer, said, prompt),
        **_depth(answer, prompt),
        "repetition": _repetition(words),
        "words": float(len(words)),
        "words_per_sentence": len(words) / max(len(sentences), 1),
        "hedges_per_100_words": 100 * len(_HEDGES.findall(said)) / max(len(words), 1),
    }


def points_of(section: str) -> list[str]:
    """The distinct points of a section, in order: its list items, or its sentences where it has no list."""
    places = [match.start() for match in _LISTED.finditer(section)]
    listed = [section[start:end] for start, end in pairwise([*places, len(section)])]
    points = [_LISTED.sub("", one).strip() for one in listed] if places else _SENTENCE.split(section)
    kept: list[str] = []
    for point in points:
        words = _bag(point)
        if words and not any(_jaccard(words, _bag(other)) >= SAME_POINT for other in kept):
            kept.append(point)
    return kept


def _execution(text: str, answer: ForecastAnswer, said: str, prompt: str) -> dict[str, float]:
    sections = [answer.positives, answer.concerns, answer.prediction, answer.analysis]
    asked, given = set(_NAME.findall(prompt)), set(_NAME.findall(said))
    known = set(_LETTERS.findall(prompt.lower()))
    unknown = {name for name in given if not set(_LETTERS.findall(name.lower())) <= known}
    return {
        "sections": sum(bool(section.strip()) for section in sections) / len(sections),
        "format_valid": float(not parse_strict(text).missing),
        "names_used": float(len(asked & given)),
        "names_unknown": float(len(unknown)),
    }


def _figures(answer: ForecastAnswer, said: str, prompt: str) -> dict[str, float]:
    own = _numbers(answer.prediction) if answer.prediction != answer.analysis else []
    if answer.magnitude is not None:
        own.append(Quantity(abs(answer.magnitude), percent=True))
    known, figures = _numbers(prompt), [one for one in _numbers(said) if not _among(one, own)]
    used = sum(_among(one, known) for one in figures)
    return {
        "figures_said": float(len(figures)),
        "figures_used": float(used),
        "figures_invented": float(len(figures) - used),
    }


def _depth(answer: ForecastAnswer, prompt: str) -> dict[str, float]:
    points = [*points_of(answer.positives), *points_of(answer.concerns)]
    lines = [_bag(line) for line in prompt.splitlines()]
    known = _numbers(prompt)
    tied = sum(_is_tied(point, lines, known) for point in points)
    return {"points": float(len(points)), "points_tied": tied / max(len(points), 1)}


def _is_tied(point: str, lines: Sequence[set[str]], known: Sequence[Quantity]) -> bool:
    words = _bag(point)
    return any(len(words & line) >= TIED_WORDS for line in lines) or any(_among(n, known) for n in _numbers(point))


def _bag(text: str) -> set[str]:
    return {word.lower() for word in _WORD.findall(text) if len(word) >= _CONTENT}


def _jaccard(first: set[str], second: set[str]) -> float:
    return len(first & second) / max(len(first | second), 1)


def _repetition(words: Sequence[str]) -> float:
    grams = [tuple(words[start : start + _GRAM]) for start in range(len(words) - _GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _numbers(text: str) -> list[Quantity]:
    """The distinct figures of a text of any length; pieces keep lines whole."""
    pieces, size = [""], 0
    for line in text.splitlines():
        if size + len(line) >= MAX_CHARACTERS:
            pieces.append("")
            size = 0
        pieces[-1] += line[: MAX_CHARACTERS - 1] + "\n"
        size += len(line) + 1
    found = dict.fromkeys(number for piece in pieces for number in quantities_in(piece))
    return list(found)


def _among(number: Quantity, known: Sequence[Quantity]) -> bool:
    return any(_is_rounded(number, other) for other in known)


def _is_rounded(number: Quantity, known: Quantity) -> bool:
    """Whether a figure is a known one but for sign, to the decimals it has, as such or as per cent of a ratio."""
    half_unit = 0.5 * 10.0 ** -len(f"{abs(number.value)!r}".partition(".")[2].rstrip("0"))
    size, whole = abs(number.value), abs(known.value)
    candidates = [whole * known.scale / number.scale, whole]
    if number.percent and not known.percent:
        candidates.append(100 * whole)
    return any(abs(size - one) <= half_unit * (1 + 1e-9) and (one != 0 or size == 0) for one in candidates)
