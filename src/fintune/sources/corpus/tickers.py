"""Tickers that a text names: ``$AAPL``, ``(NYSE: IBM)``, ``<GM>``, and ``(MSFT)`` where the ticker is known.

``<S>`` and other names of HTML's and EDGAR's tags are no tickers unless they are known ones.
Enters: a text and known tickers. Leaves: tickers in the form ``BRK.B``, each once, in the order of the text.
"""

from __future__ import annotations

import re
from collections.abc import Collection

_SYMBOL = r"[A-Z][A-Z0-9]{0,4}(?:[.\-][A-Z]{1,2})?"
_CASHTAG = re.compile(rf"(?<![\w$])\$({_SYMBOL})(?![\w])")
_EXCHANGES = ("NYSE", "NASDAQ", "Nasdaq", "AMEX", "CBOE", "OTC", "TSX", "LSE", "ASX")
_LISTED = re.compile(
    r"\b(?:NYSE(?: (?:American|Arca|MKT))?|NASDAQ(?:GS|GM|CM)?|Nasdaq(?:GS|GM|CM)?|AMEX|CBOE"
    r"|OTC(?:QX|QB|MKTS|BB)?|TSXV?|LSE|ASX)"
    rf" ?: ?\$?({_SYMBOL})(?!\w)"
)
_WIRED = re.compile(rf"<({_SYMBOL})>")  # how newswires wrote them
_TAG = re.compile(
    "A|B|I|P|Q|S|U|BR|HR|EM|TT|TD|TH|TR|LI|OL|UL|DL|DT|DD|H[1-6]|DIV|SPAN|FONT|PRE|IMG|SUB|SUP|BIG|SMALL|CODE|HTML|HEAD"
    "|BODY|TITLE|META|LINK|FORM|BASE|AREA|MAP|NOBR|THEAD|TBODY|TFOOT|COL|TABLE|STYLE"
    "|C|FN|F[1-9]|PAGE|TEXT|TYPE"  # of EDGAR's tables
)
_BRACKETED = re.compile(rf"\(({_SYMBOL})(?:\.[A-Z]{{1,2}})?\)")
_CLASS = re.compile(r"([A-Z0-9]+)-([A-Z])")


def tickers_in(text: str, known: Collection[str] = ()) -> list[str]:
    """Tickers in the order of the text.

    Args:
        text: the document.
        known: tickers that count in brackets alone, and in angle brackets where they are names of tags, too.
    """
    found: list[tuple[int, str]] = []
    if "$" in text:
        found += [(match.start(1), _with_dot(match[1])) for match in _CASHTAG.finditer(text)]
    if ":" in text and any(exchange in text for exchange in _EXCHANGES):
        found += [(match.start(1), _with_dot(match[1])) for match in _LISTED.finditer(text)]
    if "<" in text:
        wired = ((match.start(1), _with_dot(match[1])) for match in _WIRED.finditer(text))
        found += [(place, ticker) for place, ticker in wired if ticker in known or not _TAG.fullmatch(ticker)]
    if known:
        bracketed = ((match.start(1), _with_dot(match[1])) for match in _BRACKETED.finditer(text))
        found += [(place, ticker) for place, ticker in bracketed if ticker in known]
    return list(dict.fromkeys(ticker for _, ticker in sorted(found)))


def _with_dot(ticker: str) -> str:
    return _CLASS.sub(r"\1.\2", ticker)
