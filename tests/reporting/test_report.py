import base64
import json
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from fintune.reporting import write_report
from fintune.reporting.curves import curves_caption, smoothed, training_curves
from fintune.reporting.documents import documents_of
from fintune.reporting.scores import comparisons_tables, systems_tables
from fintune.reporting.tables import counts_table, facts_table
from fintune.schema.results import EvaluationResults

NASTY = '<script>alert("x")</script> {{ 7 * 7 }} | $\\frac$ & 100% _up_ #1'


class Page(HTMLParser):
    """Collects tags, attributes and visible text, and checks that tags nest."""

    VOID = frozenset({"meta", "img", "br", "link", "input"})

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def run(tmp_path_factory, recipe, results, records, history, model_facts):
    folder = tmp_path_factory.mktemp("run")
    page = write_report(
        folder, recipe=recipe, results=results, records=iter(records), history=history, model_facts=model_facts
    )
    assert page == folder / "report.html"
    return folder


def test_the_page_stands_alone(run):
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    names = [tag for tag, _ in page.tags]
    assert names.count("script") == 2 and "link" not in names  # the documents, and what shows them
    images = [a for tag, a in page.tags if tag == "img"]
    assert len(images) == 4 and all(a["alt"] for a in images)
    for attributes in images:
        kind, data = attributes["src"].split(",", 1)
        assert kind == "data:image/png;base64" and base64.b64decode(data).startswith(b"\x89PNG")
    links = [a["href"] for tag, a in page.tags if tag == "a"]
    anchors = {a["id"] for tag, a in page.tags if "id" in a}
    assert links and all(link[1:] in anchors for link in links)


def test_every_section_is_there(run):
    text = Page((run / "report.html").read_text(encoding="utf-8")).text
    for words in (
        "the tuned model beats the base model",
        "exact McNemar p < 0.001",
        "Tuned model − TF-IDF + logistic regression",
        "10.0%",  # the lexicon's missing rate
        "Confusion matrices",
        "calibration error (15 bins, lower is better)",
        "zeroshot/twitter-financial-news-sentiment",
        "Removed from training",
        "most confident wrong answers of the tuned model",
        "trainable params: 4,884,480",
        "torch 2.13.0",
        "Shortened documents",
        "base: smollm2-135m",
        "not investment advice",
    ):
        assert words in text, words


def test_the_numbers_shown_are_the_numbers_measured(run, results):
    tuned = results.find("tfns", "tuned").metrics["macro_f1"]
    shown = f"{tuned.value:.3f} ({tuned.low:.3f} to {tuned.high:.3f})"
    for name in ("report.html", "report.md", "tables.tex"):
        assert shown in (run / name).read_text(encoding="utf-8"), name


def test_worst_errors_come_by_confidence(run, records):
    text = Page((run / "report.html").read_text(encoding="utf-8")).text
    wrong = [r for r in records if r.system == "tuned" and not r.correct]
    surest = max(wrong, key=lambda r: max(r.probabilities))
    section = text.split("most confident wrong answers")[1]
    first = section.split("Shares of ")[1]
    number = surest.example_id.split("-")[1]
    assert first.startswith(f"company {number} rose") and f"{max(surest.probabilities):.3f}" in first
    assert f"{min(25, len(wrong))} of {len(wrong)} wrong answers." in section


def test_figures_have_300_dpi(run):
    figures = sorted(p.stem for p in (run / "figures").iterdir())
    assert figures == ["calibration_tfns", "confusion_tfns", "performance_comparison", "training_curves"]
    for path in (run / "figures").iterdir():
        with Image.open(path) as image:
            assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
            assert image.convert("L").getextrema()[0] < 100  # something was drawn


def test_before_and_after_differ_in_greyscale(run):
    """Base and tuned are told apart without colour: their fills differ by far more than two printed greys."""
    from matplotlib.colors import to_rgb

    from fintune.reporting.styles import BARS

    def luminance(system):
        r, g, b = to_rgb(BARS[system][0])
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    assert abs(luminance("base") - luminance("tuned")) > 0.25
    assert len({hatch for _, hatch in BARS.values()}) >= 4


def test_markdown_links_its_figures_and_tables_are_even(run):
    text = (run / "report.md").read_text(encoding="utf-8")
    linked = re.findall(r"\]\((figures/[^)]+)\)", text)
    assert len(linked) == 4 and all((run / link).is_file() for link in linked)
    widths = []
    for line in text.splitlines():
        if line.startswith("|"):
            widths.append(len(re.findall(r"(?<!\\)\|", line)))
        elif widths:
            assert len(set(widths)) == 1
            widths = []


def test_text_stays_text_in_every_output(tmp_path, recipe, model_facts, make_records, make_results):
    labels = ("$\\frac$", "<b>up</b>", "down|\\x")
    by = {(s, "odd/task"): make_records(s, 0.6, 40, "odd/task", 1, labels, NASTY.replace("{", "{{").replace("}", "}}"))
          for s in ("base", "tuned")}  # fmt: skip
    results = make_results(by, labels)
    page = write_report(
        tmp_path,
        recipe=recipe,
        results=results,
        records=[r for found in by.values() for r in found],
        history=[],
        model_facts={**model_facts, "note": NASTY},
        title=NASTY,
    )
    parsed = Page(page.read_text(encoding="utf-8"))
    names = [tag for tag, _ in parsed.tags]
    assert names.count("script") == 2 and "b" not in names
    assert parsed.text.count(NASTY) >= 3
    assert "{{ 7 * 7 }}" in parsed.text and "{{ 49 }}" not in parsed.text
    assert (tmp_path / "figures" / "confusion_odd-task.png").is_file()
    assert "<script>" not in (tmp_path / "report.md").read_text(encoding="utf-8")


def columns_of(results):
    first, second = systems_tables(results, "tfns")
    return first, second, comparisons_tables(results)[0]


def test_what_decides_stands_first(results):
    first, second, compared = columns_of(results)
    assert first.columns == ("System", "Accuracy", "Macro F1", "MCC", "n", "Groups", "Missing")
    assert second.columns == ("System", "Weighted F1", "Calibration error")
    assert compared.columns[2:4] == ("Only tuned right : only other right", "McNemar p")
    assert "Sign-flip p" not in compared.columns
    c = results.comparisons[0]
    assert compared.rows[0][2] == f"{c.only_system_correct} : {c.only_reference_correct}"
    for words in ("VADER is a general-purpose", "±0.05", "cross-validation on the training", "not the natural mix."):
        assert words in first.note
    assert "15 equal-width bins" in second.note and "reverse-percentile bootstrap" in second.note


def test_groups_are_tested_by_sign_flip_alone(measured):
    grouped = measured({"base": 0.35, "tuned": 0.9}, per_group=6)
    first, second, compared = columns_of(grouped)
    assert "Sign-flip p" in compared.columns and "McNemar p" not in compared.columns
    assert "Student's t" in first.note and "Student's t" in second.note and "VADER" not in first.note
    apart = measured({"base": 0.35, "tuned": 0.9}).comparisons
    both, further = comparisons_tables(grouped.model_copy(update={"comparisons": (*grouped.comparisons, *apart)}))
    assert further.columns == ("Task", "Difference", "Weighted F1", "MCC") and len(further.rows) == 2
    assert both.columns[3:5] == ("McNemar p", "Sign-flip p")
    assert [row[3:5].count("–") for row in both.rows] == [1, 1]


def test_facts_and_counts_are_worded():
    facts = facts_table({"best_step": None, "peak_bytes": 3 * 2**29, "whole_run_s": 12.5})
    assert facts.rows == (("Peak (GiB)", "1.50"), ("Whole run (s)", "12.5"))
    counts = counts_table({"tfns": {"read": {"train": 9}, "dropped": {}, "kept": {"train": 9}}, "dropped_rows": 0})
    assert counts.rows == (("tfns", "read train 9; dropped none; kept train 9"), ("Dropped rows", "0"))


def test_the_caption_names_the_panels_drawn(history):
    bare = [{"step": row["step"], "loss": row["loss"], "learning_rate": 1.0, "grad_norm": 1.0} for row in history[:30]]
    assert curves_caption(bare).startswith("Loss, learning rate and gradient norm by optimiser step. The dark line")
    assert curves_caption(bare[:5]) == "Loss, learning rate and gradient norm by optimiser step."
    assert curves_caption([{"step": 1, "loss": 2.0}]) == "Loss by optimiser step."
    for rows, panels in ((bare, 3), (history, 4), ([{"step": 1, "loss": 2.0}], 1)):
        figure = training_curves(rows)
        assert len(figure.axes) == panels and all(axes.get_visible() for axes in figure.axes)


def test_smoothing_does_not_lag_or_follow_spikes():
    ramp = [float(i) for i in range(40)]
    assert smoothed(ramp) == ramp
    spiked = [1.0] * 40
    spiked[20] = 100.0
    assert smoothed(spiked) == [1.0] * 40


def test_an_empty_run_still_gets_a_page(tmp_path, recipe):
    page = write_report(
        tmp_path / "new",
        recipe=recipe,
        results=EvaluationResults(model="m", adapter=None, results=()),
        records=[],
        history=[],
        model_facts={},
    )
    text = Page(page.read_text(encoding="utf-8")).text
    assert "Nothing was measured" in text and "No training history" in text
    assert list((tmp_path / "new" / "figures").iterdir()) == []


def test_only_a_base_and_gappy_history(tmp_path, recipe, make_records, make_results):
    by = {("base", "tfns"): make_records("base", 0.5, 40)}
    history = [
        {"step": 1, "loss": 2.0},
        {"step": 2, "loss": float("nan")},
        {"step": 3, "loss": None, "learning_rate": 0.1},
        {"loss": 1.0},
    ]
    page = write_report(
        tmp_path, recipe=recipe, results=make_results(by), records=by["base", "tfns"], history=history, model_facts={}
    )
    text = Page(page.read_text(encoding="utf-8")).text
    assert "there is no tuned model beside it" in text
    assert (tmp_path / "figures" / "training_curves.png").is_file()


def test_half_a_character_and_unknown_probabilities_are_shown_as_what_they_are(tmp_path, make_records, make_results):
    """Both come from files of other programs: an emoji that was cut in two, and NaN for a probability."""
    half, labels = "\ud83d", ("up", "down \ud83d")
    records = make_records("tuned", 0.6, 20, labels=labels, text=f"Cut {{}} {half}")
    results = make_results({("tuned", "tfns"): make_records("tuned", 0.6, 20, labels=("up", "down"))}, ("up", "down"))
    wrong = next(n for n, record in enumerate(records) if not record.correct)
    for shares in ((float("nan"), 0.5), (float("inf"), 0.0)):
        records[wrong] = records[wrong].model_copy(update={"probabilities": shares, "output": f"I say {half}"})
        page = write_report(tmp_path, recipe=None, results=results, records=records, history=[], model_facts={})
        assert "\ufffd" in page.read_text(encoding="utf-8") and "NaN" not in page.read_text(encoding="utf-8")
    data = json.loads(documents_of(records).data)
    assert data["text"][0] == "Cut company 0 \ufffd" and data["choices"] == [["up", "down \ufffd"]]
    (tuned,) = data["systems"]
    assert (tuned["sure"][wrong], tuned["shares"][wrong], tuned["written"][str(wrong)]) == (-1, 0, "I say \ufffd")
    assert min(share for n, share in enumerate(tuned["sure"]) if n != wrong) > 0
