"""The movement of a price that a text commits itself to: its direction and its size in percent points.

Enters: a prediction ("Up by 1-2%"), or prose with forecasts in it. Leaves: ``Movement``, with a reason where the text
commits itself to none. Words of direction that are denied, or stand in a clause on causes or on the past, do not count.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fintune.metrics.return_bins import LABELS, WIDEST, middle_of, sign_of


@dataclass(frozen=True)
class Movement:
    """Direction (1, -1, or 0 for no change) and signed size in percent points; without a direction, why not."""

    direction: int | None = None
    magnitude: float | None = None
    missing: str = ""


@dataclass(frozen=True)
class _Figure:
    """A percentage at ``start`` to ``end``: its size, and its own sign (0 where none is written)."""

    size: float
    sign: int
    start: int
    end: int


def stated_movement(text: str) -> Movement:
    """The movement of a text that is a prediction as a whole.

    A bin's name ("U3") is that. Else directions that stand with a percentage are taken if there are any, otherwise all.
    They must agree. The size is a range's middle (2-4% is 3), a bound's half a point further ("more than 5%" is 5.5, as
    the open bin counts), half of an upper bound ("up to 3%" is 1.5), else the figure; of several, the last.
    """
    plain = _plain(text)
    label = _bare_label(plain)
    if label is not None:
        return Movement(sign_of(label), round(100 * middle_of(label), 9))
    for shown in (_without_asides(plain), plain):
        movement = _agreed([_claims(clause) for clause in _clauses(shown)])
        if movement.direction is not None or movement.missing != _NOTHING:
            return movement
    return movement


def prose_movement(text: str, *, with_figure: bool = False) -> Movement:
    """The movement that the forecasts in a text agree on.

    A sentence is a forecast if it speaks of the price, the stock or its movement and of what is to come. Those with a
    percentage beside a direction decide; failing these the others, unless ``with_figure`` asks for a percentage.
    """
    sentences = [s for s in _SENTENCE_END.split(_plain(text)) if _AHEAD.search(s) and _SUBJECT.search(s)]
    claims = [_claims(clause) for s in sentences for clause in _clauses(_without_asides(s))]
    if with_figure:
        claims = [found for found in claims if any(size is not None for _, size in found.said)]
    return _agreed(claims)


@dataclass(frozen=True)
class _Said:
    """What one clause says: directions with sizes where they have one, and whether it denies any."""

    said: tuple[tuple[int, float | None], ...] = ()
    denied: bool = False


_NOTHING = "no direction"


def _agreed(claims: list[_Said]) -> Movement:
    said = [one for found in claims for one in found.said]
    said = [one for one in said if one[1] is not None] or said
    directions = {direction for direction, _ in said}
    if len(directions) > 1:
        return Movement(missing="contradictory directions")
    if not said:
        return Movement(missing="only a denied movement" if any(found.denied for found in claims) else _NOTHING)
    direction, size = said[-1]
    if direction == 0:
        return Movement(0, 0.0)
    return Movement(direction, None if size is None else direction * size)


def _claims(clause: str) -> _Said:
    """Directions of a clause. Each figure goes with the nearest word of direction, or with its own sign."""
    figures = [found for found in map(_figure, _FIGURE.finditer(clause)) if not _is_about_else(clause, found)]
    if any(figure.size < 0 for figure in figures):  # a range from a fall to a rise
        return _Said(((1, 0.0), (-1, 0.0)))
    words = [(match, _sign(match)) for match in _DIRECTION.finditer(clause)]
    kept = [(match, sign) for match, sign in words if not _is_denied(clause, match)]
    denied = len(kept) < len(words)
    said: list[tuple[int, float | None]] = []
    for figure in figures:
        if figure.sign and not any(sign == -figure.sign for _, sign in kept):
            said.append((figure.sign, figure.size))
        elif moved := [(match, sign) for match, sign in kept if sign]:
            said.append((min(moved, key=lambda one: _distance(one[0], figure))[1], figure.size))
    together = {sign for _, sign in kept} | {sign for sign, _ in said}
    if said and not _other_way(kept, said):
        return _Said(tuple(said), denied)
    return _Said(tuple((sign, None) for sign in sorted(together)), denied)


def _other_way(kept: list[tuple[re.Match[str], int]], said: list[tuple[int, float | None]]) -> bool:
    """Whether a clause offers both ways at once: "up or down by 1%"."""
    signs = {sign for sign, _ in said}
    return len(signs) == 1 and any(
        first[1] * second[1] == -1 and _OR.fullmatch(first[0].string, first[0].end(), second[0].start())
        for first, second in zip(kept, kept[1:], strict=False)
    )


def _distance(word: re.Match[str], figure: _Figure) -> tuple[int, int]:
    """Words between a direction and a figure; of equals, the one before the figure is nearer."""
    if word.end() <= figure.start:
        return len(word.string[word.end() : figure.start].split()), 0
    return len(word.string[figure.end : word.start()].split()), 1


def _is_denied(clause: str, word: re.Match[str]) -> bool:
    before = clause[: word.start()]
    return _DENIED_BEFORE.search(before) is not None or _DENIED_AFTER.match(clause, word.end()) is not None


def _is_about_else(clause: str, figure: _Figure) -> bool:
    """Whether a percentage is a probability, a margin or the like."""
    before = re.split(r"[)%,]", clause[: figure.start])[-1]
    after = re.split(r"[(\d,]", clause[figure.end :])[0]
    return _ELSE.search(" ".join([*before.split()[-3:], "|", *after.split()[:3]])) is not None


def _figure(match: re.Match[str]) -> _Figure:
    """A negative size marks a range that reaches from a fall to a rise."""
    low, high = float(match["low"]), match["high"]
    signs = {-1 if sign == "-" else 1 for sign in (match["sign"], match["other"]) if sign}
    sign = signs.pop() if len(signs) == 1 else 0
    if signs:
        return _Figure(-1.0, 0, match.start(), match.end())
    if high is not None:
        size = (low + float(high)) / 2
    elif match["over"] or match["plus"] or match["after"]:
        size = low + 0.5
    else:
        size = low / 2 if match["under"] else low
    return _Figure(size, sign, match.start(), match.end())


def _sign(match: re.Match[str]) -> int:
    return 1 if match["up"] else -1 if match["down"] else 0


def _bare_label(text: str) -> str | None:
    """The bin that a text names, if it names no other: "U3", "Prediction: D5+"."""
    named = {name for name in _LABEL.findall(text) if name in LABELS}
    return named.pop() if len(named) == 1 and len(text.split()) <= WIDEST else None


def _plain(text: str) -> str:
    """One kind of dash, apostrophe and space, no emphasis, and number words before a percent sign as digits."""
    plain = text.translate(_PLAIN)
    plain = re.sub(r"[*_`]+", "", plain)
    return _NUMBER_WORD.sub(lambda match: _NUMBER_WORDS[match[0].lower()], plain)


def _clauses(text: str) -> list[str]:
    return [clause for clause in _CLAUSE_END.split(text) if clause.strip()]


def _without_asides(text: str) -> str:
    """Without what is said of causes, concessions and the past: "after falling 3%", "despite the decline, ..."."""
    return _ASIDE.sub(" ", _LEADING_ASIDE.sub(" ", text))


_UP = r"""(?<!-)\bup(?!-|\s+to\b)(?<!make\ up)(?<!made\ up)(?<!set\ up)(?<!back\ up)(?<!end\ up)(?<!ends\ up)\b(?!-)
  |upwards?|upside|upticks?|upturn|upswing|upmove|uptrend|rises?|rising|increas(?:es?|ing)|gains?|gaining|climb(?:s|ing)?
  |grow(?:s|ing|th)?|appreciat(?:es?|ing|ion)|advanc(?:es?|ing)|rall(?:y|ies|ying)|rebound(?:s|ing)?|bullish|higher
  |positive(?=\s+(?:movement|return|momentum|price|trend|week|direction|performance|territory)|\W*$)|surg(?:es?|ing)
  |jump(?:s|ing)?|soar(?:s|ing)?|bounce(?:s)?|recover(?:s|y)?"""
_DOWN = r"""(?<!-)\bdown(?!-)(?<!slow\ down)(?<!break\ down)\b|downwards?|downside|downticks?|downturn|downswing
  |downtrend|decreas(?:es?|ing)|declin(?:es?|ing)|drop(?:s|ping)?|falls?|falling|los(?:es?|ing|s|ses)|dips?|dipping
  |slip(?:s|ping)?|slid(?:es?|ing)|depreciat(?:es?|ing|ion)|lower|bearish|plung(?:es?|ing)|retreat(?:s|ing)?|pullback
  |negative(?=\s+(?:movement|return|momentum|price|trend|week|direction|performance|territory)|\W*$)|sell-?off
  |(?<!upward\ )correction|weaken(?:s|ing)?|shed(?:s|ding)?|tumbl(?:es?|ing)|reduction|contraction"""
_FLAT = r"""unchanged|flat|sideways|neutral|stable|steady|range-?bound|little\ changed
  |no\ (?:significant\ |major\ |material\ )?(?:change|movement)"""
_DIRECTION = re.compile(rf"\b(?:(?P<up>{_UP})|(?P<down>{_DOWN})|(?P<flat>{_FLAT}))(?!\w)", re.IGNORECASE | re.VERBOSE)
_FIGURE = re.compile(
    r"""(?P<over>(?:more|greater|higher|larger)\ than\s+|over\s+|above\s+|at\ least\s+|exceed(?:s|ing)?\s+|beyond\s+
      |upwards?\ of\s+|>=?\s*|≥\s*)?
    (?P<under>(?:less|lower|smaller)\ than\s+|up\ to\s+|under\s+|below\s+|at\ most\s+|<=?\s*|≤\s*)?
    (?<![\w.])(?P<sign>[-+])?(?P<low>\d{1,3}(?:\.\d{1,9})?)\s*(?:%|percent|per\ cent)?
    (?:\s*(?:-|~|\bto\b|\band\b)\s*(?P<other>[-+])?(?P<high>\d{1,3}(?:\.\d{1,9})?))?
    \s*(?P<plus>\+)?\s*(?:%|percent\b|per\ cent\b|pct\b)(?P<after>\+)?""",
    re.IGNORECASE | re.VERBOSE,
)
_ELSE = re.compile(
    r"\b(?:confiden\w*|probab\w*|chances?|likelihood|odds|certain\w*|revenues?|sales|earnings|eps|margins?|yields?"
    r"|dividends?|market share|stake|ownership|interest|tariffs?|inflation|payout|ratio)\b",
    re.IGNORECASE,
)
_DENIAL = (
    r"(?:not|never|neither|nor|cannot|can't|won't|hardly|unlikely|without|isn't|don't|doesn't|limited|capped"
    r"|fails? to|no)"
)
_DENIED_BEFORE = re.compile(rf"\b{_DENIAL}\b(?:\s+(?!but\b|rather\b)[\w'-]+){{0,5}}\s*$", re.IGNORECASE)
_DENIED_AFTER = re.compile(
    r"\s+(?:(?:is|seems|looks|appears|remains)\s+)?(?:unlikely|limited|capped|not\b)", re.IGNORECASE
)
_OR = re.compile(r"\s*(?:or|/|and)\s*(?:\w+\s+)?", re.IGNORECASE)
_CLAUSE_END = re.compile(
    r"[;!?\n]|\.(?!\d)|,?\s\b(?:but|however|rather|instead|whereas)\b|,\s(?=not\b)|(?<=\w),\s(?!\d)", re.IGNORECASE
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_ASIDE_WORDS = (
    r"despite|in spite of|although|even though|though|notwithstanding|after|following|due to|because|owing to"
    r"|thanks to|driven by|supported by|fuell?ed by|amid(?:st)?|given|as(?! (?:much|high|low) as)|since|while"
    r"|compared (?:with|to)|relative to|from (?:last|the previous)|reflecting|on (?:the back|account) of|with(?=\s)"
)
_LEADING_ASIDE = re.compile(rf"(?:^|(?<=[.!?]\s))\s*(?:{_ASIDE_WORDS}|based on|considering)\b[^,.;\n]*,", re.IGNORECASE)
_ASIDE = re.compile(rf"\b(?:{_ASIDE_WORDS})\b(?:[^.;\n]|\.\d)*", re.IGNORECASE)
_AHEAD = re.compile(
    r"\b(?:predict\w*|expect\w*|forecast\w*|anticipat\w*|project(?:ed|ion|s)?|likely|plausible|will|could|may|might"
    r"|should|would|estimat\w*|outlook|foresee\w*|poised|set to|going to|next week|upcoming week|coming week)\b",
    re.IGNORECASE,
)
_SUBJECT = re.compile(
    r"\b(?:stocks?|shares?|prices?|ticker|movement|it|equity|upcoming week|coming week)\b", re.IGNORECASE
)
_LABEL = re.compile(r"(?<!\w)[UD][1-5]\+?(?![\w+])")
_PLAIN = str.maketrans(
    dict.fromkeys("\u2212\u2013\u2014\u2012\u2010\u2011\ufe63\uff0d", "-")
    | dict.fromkeys("\u00a0\u2009\u202f", " ")
    | {"\uff05": "%", "\u2019": "'", "\uff0b": "+"}
)
_DIGITS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBER_WORDS = {word: str(number) for number, word in enumerate(_DIGITS, start=1)} | {"half a": "0.5", "zero": "0"}
_NUMBER_WORD = re.compile(
    rf"\b(?:{'|'.join(_NUMBER_WORDS)})(?=(?:\s*(?:-|to)\s*\w+)?\s*(?:%|percent|per cent))", re.IGNORECASE
)
