"""LaTeX files: the tables of results, and a document around them that ``pdflatex`` compiles as it is.

Enters: tables, names of figures. Leaves: text. A letter that pdflatex has no glyph for is declared, so that it is set
as its code point there and as itself by lualatex and xelatex.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping

from fintune.reporting.beside import published_tables
from fintune.reporting.markup import LATEX_LETTERS, latex_table, latex_text
from fintune.reporting.scores import comparisons_tables, per_class_table, rules_table, score_tables
from fintune.reporting.tables import Table, overlap_table
from fintune.reporting.wording import tasks_of
from fintune.schema.results import EvaluationResults

PACKAGES = r"\usepackage[T1]{fontenc}" + "\n" + r"\usepackage{textcomp,booktabs,longtable,graphicx}"
# What the T1 and TS1 encodings of LaTeX have: Latin-1, Latin Extended-A, and these.
_KNOWN = frozenset("‘’‚“”„‹›«»–—…•†‡‰€™−¡¿") | frozenset(LATEX_LETTERS)


def results_tables(results: EvaluationResults) -> list[Table]:
    """The tables of an evaluation that a paper needs."""
    tasks = tasks_of(results)
    found = [
        *score_tables(results),
        *(rules_table(results, task) for task in tasks),
        *comparisons_tables(results, "flare_strict"),
        *published_tables(results, tasks),
        *(per_class_table(results, task) for task in tasks),
        overlap_table(results),
    ]
    return [table for table in found if table is not None]


def latex_file(tables: Iterable[Table], heading: str) -> str:
    """Tables one after the other, for another document to read in."""
    comment = " ".join(heading.split())
    body = [latex_table(table) for table in tables]
    packages = r"\usepackage[T1]{fontenc}, \usepackage{textcomp,booktabs,longtable,graphicx}"
    head = f"% {comment}\n% Needs {packages}."
    declared = declarations("".join(body))
    return "\n\n".join([head, *([declared] if declared else []), *body]) + "\n"


def document(heading: str, tables_file: str | None, figures: Mapping[str, str]) -> str:
    """A whole document: the tables, then every figure by file name with its caption."""
    title = latex_text(heading)
    parts = [
        "% Compile with: pdflatex, lualatex or xelatex",
        r"\documentclass[a4paper,10pt]{article}",
        r"\usepackage[margin=2.2cm]{geometry}",
        PACKAGES,
        declarations(title + "".join(figures.values())),
        rf"\title{{{title}}}",
        r"\date{}",
        r"\begin{document}",
        r"\maketitle",
        *([rf"\input{{{tables_file}}}", r"\clearpage"] if tables_file is not None else []),
        *map(_figure, figures, figures.values()),
        r"\end{document}",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def declarations(text: str) -> str:
    """Declares the letters of ``text`` that pdflatex does not know; nothing for an engine that reads Unicode itself."""
    unknown = sorted({letter for letter in text if not _has_glyph(letter)})
    if not unknown:
        return ""
    lines = [rf"  \DeclareUnicodeCharacter{{{ord(letter):04X}}}{{{_stand_in(letter)}}}" for letter in unknown]
    return "\n".join([r"\ifdefined\DeclareUnicodeCharacter", *lines, r"\fi"])


def _has_glyph(letter: str) -> bool:
    return letter.isascii() or "\u00a0" <= letter <= "\u017f" or letter in _KNOWN


def _stand_in(letter: str) -> str:
    if unicodedata.category(letter) in ("Mn", "Me", "Cf"):
        return ""  # combines with the letter before it, or is not seen at all
    plain = unicodedata.normalize("NFKD", letter)
    plain = "".join(part for part in plain if not unicodedata.combining(part))
    if plain != letter and plain.isascii() and plain.isprintable():
        return latex_text(plain) or " "
    return f"[U+{ord(letter):04X}]"


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
