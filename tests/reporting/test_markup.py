import re

from hypothesis import given, settings
from hypothesis import strategies as st

from fintune.reporting.markup import latex_table, latex_text, markdown_table, markdown_text
from fintune.reporting.tables import Table
from fintune.reporting.wording import fact, fact_name, interval, p_phrase, p_value, shortened
from fintune.schema.results import Estimate

COMMANDS = re.compile(
    r"\\(?:textbackslash|textasciicircum|textasciitilde|textless|textgreater|textbar|textdagger|ldots)\{\}|\\ensuremath\{(?:-|\\pm)\}|\\[{}$&#_%]"
)

# A letter that is not ASCII with its stand-in, which is set as one of the two.
STAND_IN = re.compile(r"\\fintune(?:letter|accent)\{[^\x00-\x7f]\}\{((?:[^{}]|\{\})*)\}")


@settings(deadline=None)
@given(st.text())
def test_latex_holds_no_live_special_character(text):
    assert not set("\\{}$&#^_~%") & set(COMMANDS.sub("", STAND_IN.sub(r"\1", latex_text(text))))


@settings(deadline=None)
@given(st.text(alphabet=st.characters(codec="ascii", exclude_categories=["Cc"])))
def test_markdown_is_read_back_as_the_text(text):
    """An independent Markdown reader shows the very characters, as one paragraph of plain text."""
    from markdown_it import MarkdownIt

    line = " ".join(("x " + text + " x").split())
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown_text(line))
    inline = tokens[1]
    assert [t.type for t in tokens] == ["paragraph_open", "inline", "paragraph_close"]
    assert {t.type for t in inline.children} <= {"text", "text_special"}
    assert "".join(t.content for t in inline.children) == line


def test_tables_keep_their_shape_whatever_the_cells():
    table = Table("t|1", "a & b", ("x|y", "n"), (("p|q\nr", "1"), ("", "2")), emphasised=frozenset({0}))
    lines = markdown_table(table).splitlines()
    assert lines == [r"| x\|y | n |", "| --- | ---: |", r"| **p\|q r** | **1** |", "|  | 2 |"]
    tex = latex_table(table)
    assert r"\caption{a \& b}" in tex and r"\label{tab:t-1}" in tex and r"\begin{tabular}{@{}lr@{}}" in tex
    assert tex.count(r"\\") == 3 and [tex.count(r) for r in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]
    assert r"\resizebox" not in tex
    wide = Table("w", "w", tuple("abcdef"), (("x" * 20,) * 6,))
    assert latex_table(wide).count("{") == latex_table(wide).count("}") and r"\resizebox" in latex_table(wide)


def test_numbers_are_worded():
    assert interval(Estimate(value=0.5)) == "0.500"
    assert interval(Estimate(value=-0.05, low=-0.1, high=0.02), signed=True) == "−0.050 (−0.100 to +0.020)"
    assert (p_value(0.0004), p_value(0.0421), p_value(None), p_value(1.0)) == ("< 0.001", "0.042", "–", "1.000")
    assert (p_phrase(0.0001), p_phrase(0.25)) == ("p < 0.001", "p = 0.250")
    assert [fact(x) for x in (None, True, 1234567, 0.00012, 12345.6, [1, "a"], {"torch": "2.13"})] == [
        "not recorded", "yes", "1,234,567", "0.00012", "12,346", "1, a", "torch 2.13"
    ]  # fmt: skip
    assert (fact_name("elapsed_s"), fact_name("peak_bytes"), fact_name("dtype")) == (
        "Elapsed (s)",
        "Peak (GiB)",
        "Dtype",
    )
    assert shortened("a  b\nc") == "a b c" and len(shortened("x" * 999, 10)) == 10
