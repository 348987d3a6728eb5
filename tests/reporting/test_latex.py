"""LaTeX that a LaTeX compiles: every letter there is, cells that look like options, and the files of a run."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from fintune.reporting.latex import document, latex_file, results_tables
from fintune.reporting.markup import latex_text
from fintune.reporting.tables import Table

PDFLATEX = shutil.which("pdflatex")
needs_latex = pytest.mark.skipif(PDFLATEX is None, reason="there is no pdflatex on this machine")
LETTERS = [
    *map(chr, range(0x21, 0x7F)), *map(chr, range(0xA0, 0x180)), *"‘’‚“”„‹›–—…•†‡‰€™−≥≤→Δαж中文日本語🚀ﬁ₂½", "e\u0301",
    "\u200b\u202e", "\u2028", "\x85", "\x00", "[t]", "*", "\\\\[2cm]", "% cut", "\\end{table}", "$x$", "a_b^c~d",
]  # fmt: skip


def compiled(folder, name):
    """Runs pdflatex as a user would; returns what it says, after its success."""
    ended = subprocess.run(
        [PDFLATEX, "-interaction=nonstopmode", "-halt-on-error", name],
        cwd=folder, capture_output=True, text=True, errors="replace", timeout=120,
    )  # fmt: skip
    assert ended.returncode == 0, "\n".join(re.findall(r"^(?:!|l\.).*", ended.stdout, re.MULTILINE)) or ended.stdout
    return ended.stdout


def _table(start, cells):
    letters, rows = "".join(LETTERS[start : start + 40]), tuple(cells[start : start + 40])
    return Table(
        f"t{start}", f"Caption {letters}", ("A & B", "%"), rows,
        text_columns=2, note=letters, emphasised=frozenset({1}), ruled=frozenset({0, 2}),
    )  # fmt: skip


def has_outlines():
    found = subprocess.run(["kpsewhich", "lmodern.sty"], capture_output=True, text=True) if PDFLATEX else None
    return found is not None and found.returncode == 0


T1 = pytest.param("T1", marks=pytest.mark.skipif(not has_outlines(), reason="no outlines of the fonts of T1 are there"))


@needs_latex
@pytest.mark.parametrize("encoding", ["OT1", T1])
def test_whatever_the_cells_hold_it_compiles(tmp_path, encoding):
    cells = [(letter, f"x{letter}{letter}x") for letter in LETTERS]
    tables = [_table(start, cells) for start in range(0, len(cells), 40)]
    (tmp_path / "tables.tex").write_text(latex_file(tables, "Heading\nof\ntwo lines 中"), encoding="utf-8")
    text = document("All of it: 中 & 100%", "tables.tex", {})
    fonts = re.compile(r"^\\IfFileExists.*$", re.MULTILINE)
    text = fonts.sub(lambda _: rf"\usepackage[{encoding}]{{fontenc}}", text)
    (tmp_path / "figures.tex").write_text(text, encoding="utf-8")
    said = compiled(tmp_path, "figures.tex")
    assert "Output written" in said and "Missing character" not in said


@needs_latex
def test_the_tables_of_a_run_compile_and_say_what_was_measured(tmp_path, results):
    tables = results_tables(results)
    (tmp_path / "tables.tex").write_text(latex_file(tables, "Run"), encoding="utf-8")
    (tmp_path / "figures.tex").write_text(document("Run", "tables.tex", {}), encoding="utf-8")
    compiled(tmp_path, "figures.tex")
    listed = re.findall(r"\\newlabel\{tab:([^}]+)\}", (tmp_path / "figures.aux").read_text())
    assert listed == [re.sub(r"[^A-Za-z0-9]+", "-", table.name).strip("-") for table in tables] and len(listed) >= 4
    if text_of := shutil.which("pdftotext"):
        shown = subprocess.run([text_of, "-layout", "figures.pdf", "-"], cwd=tmp_path, capture_output=True, text=True)
        tuned = results.find("tfns", "tuned").metrics["macro_f1"]
        assert f"{tuned.value:.3f}" in shown.stdout and "Tuned model" in shown.stdout


def test_a_letter_that_an_engine_lacks_has_a_stand_in():
    assert latex_text("é中") == r"é\fintuneletter{中}{[U+4E2D]}"
    assert latex_text("Đà „x“") == r"\fintuneaccent{Đ}{D}à \fintuneaccent{„}{,,}x“"
    assert latex_text("H₂ e\u0301\x00") == r"H\fintuneletter{₂}{2} e" + "\\fintuneletter{\u0301}{}"
    plain = latex_file([Table("t", "plain", ("a",), (("é",),))], "plain")
    assert "fintune" not in plain and plain.count(r"\def") == 0
    once = latex_file([Table("t", "中", ("中",), (("đ",),))] * 2, "both")
    assert once.count(r"\def\fintuneletter#1#2{#1}") == once.count(r"\def\fintuneaccent#1#2{#2}") == 1


def test_a_row_cannot_begin_with_an_option():
    text = latex_file([Table("t", "c", ("a", "b"), (("[t]", "1"), ("*", "2"), ("x", "3")))], "h")
    assert "{}[t] & 1" in text and "{}* & 2" in text and "    x & 3" in text
