"""The number in a free-text answer, and whether it is the right one.

Enters: what a system answered, and gold as a number, "yes"/"no" or text. Leaves: a ``Quantity``, "yes"/"no", or
``None`` where the answer commits itself to nothing (a missing answer, never a guess at one).
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

GoldUnit = Literal["number", "ratio", "percent"]

# FinQA's gold answers are rounded to five decimals.
GOLD_RESOLUTION = 5e-6

MAX_CHARACTERS = 20_000
"""Longer answers are runaway text that commits itself to nothing: they are missing."""

# Minus signs, dashes and spaces of other alphabets and typesetters, by code point as they look alike.
_PLAIN = str.maketrans(
    dict.fromkeys("\u2212\u2013\u2012\ufe63\uff0d", "-")
    | dict.fromkeys("\u00a0\u2009\u202f", " ")
    | dict.fromkeys("\uff05\ufe6a", "%")
)
_SCALES = {"thousand": 1e3, "k": 1e3, "million": 1e6, "mm": 1e6, "mn": 1e6, "m": 1e6}
_SCALES |= {"billion": 1e9, "bn": 1e9, "b": 1e9, "trillion": 1e12, "tn": 1e12}
_ABSTENTION = re.compile(r"(?:n/?a|none|null|nan|unknown|not (?:available|applicable|enough information))\.?", re.I)
_ANSWER_WORD = re.compile(r"\banswer\b", re.IGNORECASE)
_MARKER = re.compile(r"\banswer\b(?P<link>[^\n:=]*?(?::|=|\bis\b:?))?[\s*]*+", re.IGNORECASE)
_YES_NO = re.compile(
    # "No. of shares" is no answer.
    r"[\s:=*\"'(]*+(?:(?:is|would be)\b[\s:=*\"'(]*+)?(yes|no)\b(?!\.?\s*of\b)"
    r"(?!\s*(?:or|/|and)\s*(?:yes|no)\b)",
    re.IGNORECASE,
)
_NEGATOR = re.compile(r"\b(?:not|never|neither|nor|cannot|hardly|unlikely|unclear|unknown)\b|n['’]t\b", re.IGNORECASE)
# What ends the reach of a "not": the rest of the clause it stands in.
_REACH_END = re.compile(r"[,;=!?\n]|\.(?!\d)|\b(?:but|rather|instead|because|since|so)\b", re.IGNORECASE)
_REACH_CHARACTERS = 200
_NUMBER = re.compile(
    r"""(?<![\w.,%])(?P<open>\(\s*)?
        (?P<sign>[-+]\s*)?(?:(?:us|c|a|hk)?[$€£¥]\s*(?P<inner>[-+]\s*)?)?
        (?P<digits>\.?\d[\d.,]*+(?:e[-+]?\d{1,3})?)
        (?:\s?(?P<percent>\\?%|percentage\ points?\b|percent\b|per\ cent\b|pct\b)
          |\s?(?P<scale>thousand|million|billion|trillion|mm|mn|bn|tn|k|m|b)s?\b|x\b)?
        (?!\w|-[^\W\d])(?P<close>\s*\))?""",
    re.IGNORECASE | re.VERBOSE | re.ASCII,
)
_SCALE_WORD = re.compile(r"\b(?P<scale>thousand|million|billion|trillion)s?\b", re.IGNORECASE)
# Groups of three or none: "1.234,5" and "12,34" are not guessed at.
_WELL_FORMED = re.compile(r"(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:e[-+]?\d+)?", re.IGNORECASE)
_CLAUSE_END = re.compile(r"[\s*}$]*(?:\Z|[,;]|\.(?!\d)|\([^)]*\Z|\([^)]*\))")
_OPERATORS = tuple("-+/×÷^")
# A sum left undone, or one of several numbers: "5829 - 5735", "5 +", "5 or 6".
_GOES_ON = re.compile(r"\s*(?:(?:[-+*/×÷^]|x\b|\(?(?:or|to|and)\b)\s*[($]*\s*\d|[-+/×÷^]\s*\Z)", re.IGNORECASE)


@dataclass(frozen=True)
class Quantity:
    """A number as written: "46.8%" has value 46.8 and ``percent``, "$1.2 million" value 1.2 and scale 1e6."""

    value: float
    percent: bool = False
    scale: float = 1.0

    @property
    def literal(self) -> float:
        """The number taken at its word: per cent are hundredths, a million is 1e6."""
        return self.value / 100 if self.percent else self.value * self.scale


Answer = Quantity | Literal["yes", "no"]


def parse_answer(text: str | None) -> Answer | None:
    """What an answer commits itself to, by the first of these rules that applies.

    1. Nothing, N/A and its like, or more than ``MAX_CHARACTERS`` characters: ``None``.
    2. What follows the last "answer" (and its "is", ":" or "=") on that line: yes or no, or else its number, by 4.
       An answer that is denied ("the answer cannot be determined: 5 or 6", "is not 5 but 6") is ``None``.
    3. A text that begins with yes or no is that ("No. of shares" does not).
    4. The number behind the word "answer" is the first if it ends its clause, else the first behind the last "=".
       No operator may follow ("5829 - 5735" and "x = 5 +" are sums left undone) and no second number ("5 or 6").
       Without the word it is the first behind the last "="; without either, all numbers must be one: "0.468 (46.8%)"
       is, "31 to 46" is not.

    A lone number in brackets is negative, as accountants write. A malformed number ("1.234,5") and a negated one
    ("not 5") count as one more number that cannot be read. Digits inside words ("10-K", "Q3", "2013a") are none.
    """
    plain = (text or "").translate(_PLAIN).strip()
    if not plain or len(plain) > MAX_CHARACTERS or _ABSTENTION.fullmatch(plain):
        return None
    places = [word.start() for word in _ANSWER_WORD.finditer(plain)]
    marker = _MARKER.match(plain, places[-1]) if places else None
    if marker is not None:
        behind = plain[marker.end() :].split("\n")[0].strip()
        clause = f"{marker['link'] or ''} " + _REACH_END.split(behind, maxsplit=1)[0]
        if _NEGATOR.search(clause) or _is_negated(plain, marker.start()) or _ABSTENTION.fullmatch(behind):
            return None
        found = _leading_yes_no(behind) or _marked_number(behind)
        if found is not None:
            return found
    return _leading_yes_no(plain) or _number(plain)


def quantities_in(text: str) -> list[Quantity]:
    """Every number that a text states, in order; none in a text of more than ``MAX_CHARACTERS`` characters."""
    plain = text.translate(_PLAIN)
    if len(plain) > MAX_CHARACTERS:
        return []
    found = (_quantity(match, negative=False) for match in _NUMBER.finditer(plain))
    return [quantity for quantity in found if quantity is not None]


def numbers_agree(
    prediction: str | None,
    gold: str | float,
    relative_tolerance: float = 1e-2,
    gold_unit: GoldUnit | None = None,
    stated_scales: Collection[float] = (),
) -> bool:
    """Is the number in ``prediction`` the gold number, within a tolerance relative to gold?

    A prediction has at most two readings, and they are fixed by how it is written and by gold's unit, never by what
    would fit:

    - "46.8%" is 0.468. It is 46.8 where gold is in per cent, and 46.8 as well where gold is a plain number of 1 or
      more: such gold may be a share that its annotator multiplied by 100, and nothing in the data tells. Gold below 1
      in size is a share as it stands, so there "0.468%" is not 0.468.
    - A bare "46.8" is itself, and also 0.468 where gold is a ratio; a bare "0.468" also 46.8 where gold is in per cent.
    - "94 million" is 94e6, and 94 as well where ``stated_scales`` holds 1e6: a page in millions gives gold in millions.

    The factor between per cent and ratio is 100 and nothing else; the sign must be right.

    Args:
        prediction: the raw answer; see ``parse_answer`` for which number in it counts.
        gold: a number, or text such as "yes" or "46.8%" (which is in per cent whatever ``gold_unit`` says).
        relative_tolerance: 0 asks for the number itself (a year, a count), up to gold's rounding to five decimals.
        gold_unit: what gold is; ``None`` takes numbers below 1 in size as ratios, all others as plain numbers.
        stated_scales: what the page says its numbers are in, as ``scales_in`` finds it.
    """
    found = parse_answer(prediction)
    if isinstance(gold, str):
        expected = parse_answer(gold)
        if not isinstance(expected, Quantity):
            return expected is not None and found == expected
        gold, gold_unit = expected.value * expected.scale, "percent" if expected.percent else gold_unit
    if not isinstance(found, Quantity) or not math.isfinite(gold):
        return False
    unit = gold_unit or ("ratio" if abs(gold) < 1 else "number")
    return any(_is_near(reading, gold, relative_tolerance) for reading in _readings(found, gold, unit, stated_scales))


def same_number(prediction: str | None, gold: Quantity, relative_tolerance: float = 1e-2) -> bool:
    """Is the number in ``prediction`` the gold number when per cent and scale words of both are taken at their word?"""
    found = parse_answer(prediction)
    return isinstance(found, Quantity) and _is_near(found.literal, gold.literal, relative_tolerance)


def scales_in(text: str) -> frozenset[float]:
    """The scales that a page or a question states in words: 1e6 for "in millions" or "$ 5 million"."""
    return frozenset(_SCALES[match["scale"].lower()] for match in _SCALE_WORD.finditer(text))


def exact_match(output: str, gold: str) -> bool:
    """FLARE's rule: the output without surrounding white space is gold, character for character."""
    return output.strip() == gold


def _is_near(value: float, gold: float, relative_tolerance: float) -> bool:
    return abs(value - gold) <= max(relative_tolerance * abs(gold), GOLD_RESOLUTION)


def _readings(found: Quantity, gold: float, unit: GoldUnit, stated_scales: Collection[float]) -> tuple[float, ...]:
    """What a number as written may stand for, at most two values."""
    if found.percent:
        if unit == "percent":
            return (found.value,)
        is_whole = unit == "number" and abs(gold) >= 1
        return (found.literal, found.value) if is_whole else (found.literal,)
    if found.scale != 1:
        return (found.literal, found.value) if found.scale in stated_scales else (found.literal,)
    if unit == "ratio":
        return found.value, found.value / 100
    return (found.value, found.value * 100) if unit == "percent" else (found.value,)


def _leading_yes_no(text: str) -> Literal["yes", "no"] | None:
    match = _YES_NO.match(text)
    if match is None:
        return None
    return "yes" if match.group(1).lower() == "yes" else "no"


def _number(text: str) -> Quantity | None:
    """The number of an unmarked text: behind the last "=", else the only one; none at the end of a sum left undone."""
    if text[-1:] in _OPERATORS:
        return None
    return (_behind_equals(text) if "=" in text else None) or _only(_find(text))


def _marked_number(text: str) -> Quantity | None:
    """The number of a text that is known to be the answer: the first that ends its clause, else behind "="."""
    found = _find(text)
    if found and _CLAUSE_END.match(text, found[0][1]):
        return found[0][0]
    return _behind_equals(text)


def _behind_equals(text: str) -> Quantity | None:
    """The first number behind the last "=" that has one, or of a text without "=", unless a sum goes on after it."""
    for part in reversed(text.split("=")):
        found = _find(part)
        if found:
            quantity, end = found[0]
            return None if _GOES_ON.match(part, end) else quantity
    return None


def _is_negated(text: str, place: int) -> bool:
    """Whether a "not" stands before ``place`` in its clause, within a window that keeps long answers cheap."""
    before = text[max(0, place - _REACH_CHARACTERS) : place]
    return _NEGATOR.search(_REACH_END.split(before)[-1]) is not None


def _find(text: str) -> list[tuple[Quantity | None, int]]:
    """Every number with the place where it ends; ``None`` for one that cannot be read or is denied ("not 5").

    Restatements are left out.
    """
    found: list[tuple[Quantity | None, int]] = []
    for match in _NUMBER.finditer(text):
        bracketed = bool(match["open"] and match["close"])
        quantity = None if _is_negated(text, match.start()) else _quantity(match, negative=bracketed and not found)
        restated = bracketed and bool(found) and _same(found[-1][0], quantity)
        if not restated:
            found.append((quantity, match.end()))
    return found


def _quantity(match: re.Match[str], negative: bool) -> Quantity | None:
    digits = match["digits"].rstrip(".,")
    if not _WELL_FORMED.fullmatch(digits):
        return None
    value = float(digits.replace(",", ""))
    if not math.isfinite(value):
        return None
    signs = (match["sign"] or "") + (match["inner"] or "")
    scale = _SCALES[match["scale"].lower()] if match["scale"] else 1.0
    return Quantity(-value if negative or "-" in signs else value, bool(match["percent"]), scale)


def _same(first: Quantity | None, second: Quantity | None) -> bool:
    """Does a number in brackets repeat the one before it: its size, or the same share written the other way?"""
    if first is None or second is None:
        return False
    shares = [quantity.value / 100 if quantity.percent else quantity.value for quantity in (first, second)]
    tolerance = 5e-3 if first.percent != second.percent else 0.0
    return math.isclose(abs(shares[0]), abs(shares[1]), rel_tol=tolerance)


def _only(found: list[tuple[Quantity | None, int]]) -> Quantity | None:
    distinct = {quantity for quantity, _ in found}
    return distinct.pop() if len(distinct) == 1 else None
