"""LaTeX files: the tables of results, and a document around them that ``pdflatex`` compiles as it is.

Enters: tables, names of figures. Leaves: text. A letter that pdflatex has no glyph for is set as its code point there,
and as itself by lualatex and xelatex.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fintune.reporting.beside import published_tables
from fintune.reporting.between import published_beside_each
from fintune.reporting.markup import NO_GLYPH, NOT_IN_OT1, latex_table, latex_text
from fintune.reporting.scores import comparisons_tables, per_class_table, rules_table, score_tables
from fintune.reporting.tables import Table, overlap_table
from fintune.reporting.wording import tasks_of
from fintune.schema.results import EvaluationResults

# With Latin Modern every European letter has an outline; without it the fonts of any LaTeX are there, with fewer.
_FONTS = r"\IfFileExists{lmodern.sty}{\usepackage[T1]{fontenc}\usepackage{lmodern}}{}"
_NEEDED = r"\usepackage{textcomp,booktabs,graphicx}"
# The first engine's letters are bytes that it looks up; the encoding is compared once it is spelt out.
_TESTS = {
    NO_GLYPH: r"\ifdefined\DeclareUnicodeCharacter",
    NOT_IN_OT1: r"\def\fintuneot{OT1}\edef\fintuneused{\encodingdefault}\ifx\fintuneused\fintuneot",
}


def results_tables(results: EvaluationResults, *, across: bool = False) -> list[Table]:
    """The tables of an evaluation that a paper needs; published figures beside each system ``across`` runs."""
    tasks = tasks_of(results)
    published = [table for task in tasks for table in published_beside_each(results, task)] if across else None
    found = [
        *score_tables(results),
        *(rules_table(results, task) for task in tasks),
        *comparisons_tables(results, "flare_strict"),
        *(published_tables(results, tasks) if published is None else published),
        *(per_class_table(results, task) for task in tasks),
        overlap_table(results),
    ]
    return [table for table in found if table is not None]


def latex_file(tables: Iterable[Table], heading: str) -> str:
    """Tables one after the other, for another document to read in."""
    comment = " ".join(heading.split())
    body = [latex_table(table) for table in tables]
    head = f"% {comment}\n% Needs {_NEEDED}"
    return "\n\n".join([head, *_macros("".join(body)), *body]) + "\n"


def document(heading: str, tables_file: str | None, figures: Mapping[str, str]) -> str:
    """A whole document: the tables, then every figure by file name with its caption."""
    title, captions = latex_text(heading), [_figure(name, caption) for name, caption in figures.items()]
    parts = [
        "% Compile with: pdflatex, lualatex or xelatex",
        r"\documentclass[a4paper,10pt]{article}",
        r"\usepackage[margin=2.2cm]{geometry}",
        _FONTS,
        _NEEDED,
        *_macros("".join([title, *captions])),
        rf"\title{{{title}}}",
        r"\date{}",
        r"\begin{document}",
        r"\maketitle",
        *([rf"\input{{{tables_file}}}", r"\clearpage"] if tables_file is not None else []),
        *captions,
        r"\end{document}",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _macros(text: str) -> list[str]:
    """Definitions of the macros that ``latex_text`` used in ``text``."""
    return [
        rf"{test}\def{macro}#1#2{{#2}}\else\def{macro}#1#2{{#1}}\fi"
        for macro, test in _TESTS.items()
        if macro + "{" in text
    ]


def _figure(name: str, caption: str) -> str:
    label = "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in name)
    return "\n".join(
        [
            r"\begin{figure}[htbp]",
            r"  \centering",
            rf"  \includegraphics[width=\linewidth,height=0.42\textheight,keepaspectratio]{{{name}}}",
            rf"  \caption{{{latex_text(caption)}}}",
            rf"  \label{{fig:{label}}}",
            r"\end{figure}",
        ]
    )
