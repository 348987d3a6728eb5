"""The sections of a forecast, found by what their headings mean, in whatever markup.

Enters: an answer. Leaves: texts by name: positives, concerns, prediction, analysis. Known are ``[Positive
Developments]:``, ``## Risks``, ``**Forecast:** up``, ``2. Potential Concerns`` and their like.
"""

from __future__ import annotations

import re

_FILLER = (
    r"(?:(?:the|my|our|your|key|main|most|important|major|recent|potential|possible|final|overall|price|stock|market"
    r"|weekly|company|summary|short-term|expected|detailed|supporting|brief)\s+)*"
)
_NAMES = {
    "positives": r"positives?|positive (?:developments?|factors?|aspects?|news|points?|catalysts?)|strengths?"
    r"|bull case",
    "concerns": r"concerns?|negatives?|negative (?:developments?|factors?|aspects?|news|points?)|risks?|risk factors"
    r"|bear case|weaknesses",
    "both": r"(?:prediction|forecast|outlook)s? (?:&|&amp;|and|\+|/) (?:summary )?(?:analysis|rationale|reasoning)"
    r"|(?:analysis|rationale|reasoning) (?:&|&amp;|and|\+|/) (?:prediction|forecast|outlook)s?",
    "prediction": r"prediction|forecast|(?:price |stock )*(?:movement|direction) ?(?:prediction|forecast)?|outlook",
    "analysis": r"analysis|rationale|reasoning|explanation|justification|summary",
}
_LOOSER = {
    "positives": r"opportunities|tailwinds|bullish factors|growth drivers|catalysts|pros|upsides?",
    "concerns": r"challenges|headwinds|bearish factors|threats|cons|downsides?",
}
_TAIL = r"(?:\s+(?:for|of|on|in)\s+.{1,60})?(?:\s*\([^()]{1,60}\))?"
"""What may follow a heading's name: "for the coming week", "(2024-03-03 to 2024-03-10)"."""
_HEADINGS = {name: re.compile(_FILLER + f"(?:{words})" + _TAIL, re.IGNORECASE) for name, words in _NAMES.items()}
_LOOSE = {name: re.compile(_FILLER + f"(?:{words})", re.IGNORECASE) for name, words in _LOOSER.items()}
_MARKUP = " \t#>*_[]【】`•:"
_LISTED = re.compile(r"\s*(?:[-*+•]\s+|\(?\d{1,2}[.)]\s*)")
_MAX_HEADING = 120


def sections_of(text: str) -> dict[str, str]:
    """The sections' texts, without surrounding white space; none by a name that no heading means.

    The text under a joint heading ("Prediction & Analysis") is analysis, apart from what has a heading of its own in
    it. A prediction ends with its paragraph; what follows is analysis. A section that occurs twice is joined.
    """
    found: dict[str, list[str]] = {}
    current = ""
    for line in text.splitlines():
        name, rest = _heading(line)
        if name is not None:
            current = "analysis" if name == "both" else name
        elif current == "prediction" and not line.strip() and "".join(found[current]).strip():
            current = "analysis"
        if current:
            found.setdefault(current, []).append(rest)
    return {name: "\n".join(lines).strip() for name, lines in found.items()}


def _heading(line: str) -> tuple[str | None, str]:
    """The section that a line opens and what follows on it; no section and the line itself where it opens none."""
    listed = _LISTED.match(line)
    body = line[listed.end() :] if listed else line
    head, colon, rest = body.replace("：", ":").partition(":")
    head = head if colon else body
    if len(head) > _MAX_HEADING or (not colon and listed is None and _is_sentence(body)):
        return None, line
    name = _meaning(head.strip(_MARKUP), is_listed=listed is not None)
    return (name, rest.lstrip(_MARKUP)) if name is not None else (None, line)


def _meaning(head: str, *, is_listed: bool) -> str | None:
    """What a heading means. Points of a list are called by such words too ("1. Opportunities: ..."), so a listed
    heading must be one of the format's own, of two words at least.
    """
    if is_listed:
        words = re.fullmatch(r"(?:positive developments|potential concerns|.*(?:prediction|forecast).*)", head, re.I)
        return _first(_HEADINGS, head) if words else None
    return _first(_HEADINGS, head) or _first(_LOOSE, head)


def _first(patterns: dict[str, re.Pattern[str]], head: str) -> str | None:
    return next((name for name, pattern in patterns.items() if pattern.fullmatch(head)), None)


def _is_sentence(line: str) -> bool:
    return line.rstrip(" *_").endswith((".", "!", "?", ",", ";"))
