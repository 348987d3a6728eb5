"""Tables as Markdown and LaTeX, with every cell escaped: labels and documents are text, never markup."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from fintune.reporting.tables import Table

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "^": r"\textasciicircum{}",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "%": r"\%",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "−": r"\ensuremath{-}",
    "–": "--",
    "…": r"\ldots{}",
    "†": r"\textdagger{}",
    "±": r"\ensuremath{\pm}",
}
# Letters of Latin-1 and Latin Extended-A that LaTeX's first encoding, OT1, lacks, and what is set instead.
_OT1_LACKS = {
    "«": "<<", "»": ">>", "Ð": "D", "ð": "d", "Þ": "Th", "þ": "th", "Đ": "D", "đ": "d", "Ŋ": "Ng", "ŋ": "ng",
    "Ą": "A", "ą": "a", "Ę": "E", "ę": "e", "Į": "I", "į": "i", "Ų": "U", "ų": "u",
    "‹": "<", "›": ">", "‚": ",", "„": ",,",
}  # fmt: skip
_NO_ENCODING_HAS = frozenset("ĦħĸĿŀŉŦŧſ")  # of these two blocks
_FURTHER_GLYPHS = frozenset("‘’“”–—…•†‡€™−")
NO_GLYPH, NOT_IN_OT1 = r"\fintuneletter", r"\fintuneaccent"
"""Macros with a letter and its stand-in, which ``latex`` defines by what the engine can set."""
_PAGE_CHARACTERS = 80
_MARKDOWN = re.compile(r"([\\`*_\[\]<>|#~$!&])")


def markdown_text(text: str) -> str:
    """Text that Markdown shows literally, on one line."""
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))


def latex_text(text: str) -> str:
    """Text that LaTeX sets literally, on one line; what an engine cannot set gets a stand-in."""
    return "".join(map(_latex_letter, " ".join(text.split())))


def _latex_letter(letter: str) -> str:
    if unicodedata.category(letter) in ("Cc", "Cs"):
        return ""
    if letter in _LATEX:
        return _LATEX[letter]
    if letter in _OT1_LACKS:
        return rf"{NOT_IN_OT1}{{{letter}}}{{{latex_text(_OT1_LACKS[letter])}}}"
    latin = "\u00a0" <= letter <= "\u017f" and letter not in _NO_ENCODING_HAS
    if letter.isascii() or latin or letter in _FURTHER_GLYPHS:
        return letter
    return rf"{NO_GLYPH}{{{letter}}}{{{_stand_in(letter)}}}"


def _stand_in(letter: str) -> str:
    """The letter without its accents, if that is plain; nothing for what is not seen; else its code point."""
    if unicodedata.category(letter) in ("Mn", "Me", "Cf"):
        return ""
    plain = "".join(part for part in unicodedata.normalize("NFKD", letter) if not unicodedata.combining(part))
    if plain != letter and plain.isascii() and plain.isprintable():
        return latex_text(plain)
    return f"[U+{ord(letter):04X}]"


def markdown_table(table: Table) -> str:
    """A pipe table; the caption and the note are the caller's."""
    rule = ["---" if i < table.text_columns else "---:" for i in range(len(table.columns))]
    lines = [_pipes(markdown_text(c) for c in table.columns), _pipes(rule)]
    for index, row in enumerate(table.rows):
        cells = [markdown_text(cell) for cell in row]
        lines.append(_pipes(f"**{c}**" if c and index in table.emphasised else c for c in cells))
    return "\n".join(lines)


def latex_table(table: Table) -> str:
    """A ``table`` environment in booktabs style; a table wider than the page is scaled to it."""
    alignment = "l" * table.text_columns + "r" * (len(table.columns) - table.text_columns)
    body = []
    for index, row in enumerate(table.rows):
        if index in table.ruled:
            body.append(r"\midrule")
        cells = [latex_text(cell) for cell in row]
        body.append(_ampersands(rf"\textbf{{{c}}}" if index in table.emphasised else c for c in cells))
    wide = sum(max(map(len, column)) for column in zip(table.columns, *table.rows, strict=True)) > _PAGE_CHARACTERS
    lines = [
        r"\begin{table}[t]",
        r"  \centering",
        rf"  \caption{{{latex_text(table.caption)}}}",
        rf"  \label{{tab:{re.sub(r'[^A-Za-z0-9]+', '-', table.name).strip('-')}}}",
        r"  \small",
        *([r"  \resizebox{\linewidth}{!}{%"] if wide else []),
        rf"  \begin{{tabular}}{{@{{}}{alignment}@{{}}}}",
        r"    \toprule",
        "    " + _ampersands(latex_text(c) for c in table.columns),
        r"    \midrule",
        *("    " + row for row in body),
        r"    \bottomrule",
        r"  \end{tabular}" + ("}" if wide else ""),
        *([rf"  \par\smallskip\footnotesize {latex_text(table.note)}"] if table.note else []),
        r"\end{table}",
    ]
    return "\n".join(lines)


def _pipes(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _ampersands(cells: Iterable[str]) -> str:
    row = " & ".join(cells) + r" \\"
    # After the end of a row, LaTeX would take a bracket or a star for an option of that end.
    return "{}" + row if row.startswith(("[", "*")) else row
