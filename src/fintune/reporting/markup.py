"""Tables as Markdown and LaTeX, with every cell escaped: labels and documents are text, never markup."""

from __future__ import annotations

import re
from collections.abc import Iterable

from fintune.reporting.tables import Table

LATEX_LETTERS = {
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
_PAGE_CHARACTERS = 80
_MARKDOWN = re.compile(r"([\\`*_\[\]<>|#~$!&])")


def markdown_text(text: str) -> str:
    """Text that Markdown shows literally, on one line."""
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))


def latex_text(text: str) -> str:
    """Text that LaTeX sets literally, on one line."""
    return "".join(LATEX_LETTERS.get(character, character) for character in " ".join(text.split()))


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
    return " & ".join(cells) + r" \\"
