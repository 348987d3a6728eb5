"""One text made plain: damaged letters, HTML, hard line ends, blanks.

Enters: a text. Leaves: the text and which steps changed it. Every step leaves a clean text as it is.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

import ftfy

if TYPE_CHECKING:
    from selectolax.lexbor import LexborNode

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u200b\u200e\u200f\u2028\u2029\ufeff\u00ad]")
_NAMES = (
    "p|div|br|span|a|b|i|em|strong|ul|ol|li|table|tr|td|th|h[1-6]|img|html|body|script|style|font|blockquote|article"
    "|section|figure|iframe|pre|sup|sub|nav|header|footer"
)
# A closing tag, one with an attribute, or one in lower case: <P> and <EM> alone are tickers of old newswires.
_TAG = re.compile(
    rf"</(?i:{_NAMES})\s*>|<(?i:{_NAMES})\s[^<>]{{0,2000}}=[^<>]{{0,2000}}>|<(?:{_NAMES})\s*/?>|<(?i:br|hr)\s*/>"
)
_BLOCKS = "p,div,br,li,ul,ol,tr,table,h1,h2,h3,h4,h5,h6,blockquote,article,section,pre,figure,dd,dt"
_OF_THE_PAGE = ("header", "footer")  # of an article they are words of it
_REMOVED = (
    *("script", "style", "noscript", "nav", *_OF_THE_PAGE, "aside", "iframe", "svg", "template"),
    *("input", "select", "button", "textarea"),  # of a form; old pages lie in one as a whole
)
_BREAK, _CELL = "\ue000", "\ue001"
_BREAKS, _CELLS = re.compile(rf"[ {_CELL}]*{_BREAK}[ {_CELL}{_BREAK}]*"), re.compile(rf"[ {_CELL}]*{_CELL}[ {_CELL}]*")
_EMPTY_LINES = re.compile(r"\n{3,}")
_WRAPPED_FROM, _WRAPPED_TO = 45, 90
_LIST_ITEM = re.compile(r"[-*+•>|]\s|\d{1,3}[.)]\s")


def repair(text: str, *, html: bool, unwrap: bool) -> tuple[str, tuple[str, ...]]:
    """The text after every step, and the names of the steps that changed it: repair, html, unwrap.

    Args:
        text: as it came.
        html: take the text out of HTML.
        unwrap: join lines that were wrapped at a fixed width.
    """
    changed = []
    whole = _repaired(text)
    if whole != text:
        changed.append("repair")
    if html and _TAG.search(whole):
        whole = text_of_html(whole)
        changed.append("html")
    if unwrap and (joined := unwrapped(whole)) != whole:
        whole = joined
        changed.append("unwrap")
    return _tidy(whole), tuple(changed)


def text_of_html(markup: str) -> str:
    """The words of HTML, a line for each block, cells of a table between bars.

    Scripts, menus, fields of forms, and headers and footers of the page, not of an article, go.
    """
    from selectolax.lexbor import LexborHTMLParser

    body = LexborHTMLParser(markup).body
    if body is None:
        return ""
    for node in [node for node in body.css(",".join(_REMOVED)) if not _is_of_article(node)]:
        if node.parent is not None:
            node.decompose()
    blocks = body.css(_BLOCKS)
    if not blocks:  # text with a few tags in its lines
        return body.text().strip()
    for block in blocks:
        block.insert_before(_BREAK)
        block.insert_after(_BREAK)
    for cell in body.css("td,th"):
        cell.insert_before(_CELL)
    words = re.sub(r"\s+", " ", body.text()).strip(f" {_BREAK}{_CELL}")
    return _CELLS.sub(" | ", _BREAKS.sub("\n", words))


def _is_of_article(node: LexborNode) -> bool:
    above = node.parent if node.tag in _OF_THE_PAGE else None
    while above is not None and above.tag not in ("article", "main"):
        above = above.parent
    return above is not None


def unwrapped(text: str) -> str:
    """Lines that were cut at a width of some 45 to 90 characters joined; an indented line begins a paragraph.

    A text counts as wrapped where most of its lines are that long and go on in the middle of a sentence. There a
    shorter line is joined too, unless a sentence ends with it: newswires cut a dateline off the first.
    """
    lines = text.split("\n")
    pairs = [(line, following) for line, following in zip(lines, lines[1:], strict=False) if line.strip()]
    cut = [after for line, after in pairs if _goes_on(line, after, _WRAPPED_FROM) and not _ends(line)]
    in_sentence = sum(not after[0].isupper() for after in cut)  # a list of headlines has none
    if not in_sentence or 2 * in_sentence < len(cut) or 2 * len(cut) < sum(len(line) > _WRAPPED_FROM for line in lines):
        return text
    whole = [lines[0]]
    for before, line in zip(lines, lines[1:], strict=False):
        if _goes_on(before, line, _WRAPPED_FROM if _ends(before) else 1):
            whole[-1] = f"{whole[-1].rstrip()} {line.lstrip()}"
        else:
            whole.append(line)
    return "\n".join(whole)


def _goes_on(line: str, following: str, least: int) -> bool:
    starts = following[:1]
    return (
        least <= len(line.rstrip()) <= _WRAPPED_TO
        and bool(starts)
        and not starts.isspace()
        and not _LIST_ITEM.match(following)
    )


def _ends(line: str) -> bool:
    return line.rstrip()[-1:] in tuple(".!?:;\"'")


def _repaired(text: str) -> str:
    """Mojibake, control characters and line ends; ASCII without entities has nothing to repair but those."""
    if not text.isascii() or "&" in text:
        text = unicodedata.normalize("NFC", ftfy.fix_text(text))
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _CONTROL.sub("", text)


def _tidy(text: str) -> str:
    """Single blanks, none at line ends, at most one empty line; no step of its own, for every text has some."""
    lines = [" ".join(line.split()) for line in text.split("\n")]
    return _EMPTY_LINES.sub("\n\n", "\n".join(lines)).strip()
