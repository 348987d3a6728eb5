"""The figures of run directories: which there are, what they show, that they read without colour, and how it fails."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from PIL import Image
from tests.reporting.conftest import scored_results, simulated_records

import fintune
from fintune.cli import main
from fintune.reporting.captions import not_drawn, picture_captions
from fintune.reporting.curves import curves_of_runs, training_curves
from fintune.reporting.efficiency import efficiency_comparison, efficiency_table
from fintune.reporting.figures import confusion_matrices, performance_comparison, reliability_diagram
from fintune.reporting.gallery import write_figures
from fintune.reporting.hardware import gpu_utilization, gpus_of_runs
from fintune.reporting.report import write_report
from fintune.reporting.run_data import RunData, read_run, together
from fintune.reporting.stages import curriculum_comparison, tasks_beyond_shares
from fintune.reporting.styles import BARS, SPARE_BARS, bar_style, line_style, save, styled
from fintune.schema.errors import RecipeError, RunError
from fintune.schema.results import Estimate, TimeCost
from fintune.schema.run_directory import RunDirectory, write_json, write_records

ALWAYS = {"training_curves", "performance_comparison", "efficiency_comparison", "confusion_tfns", "calibration_tfns"}
FACTS = {
    "device": "cpu", "quantization": "nf4", "peak_bytes": 3 * 2**30, "training_seconds": 120.0, "sample_tokens": 6000,
    "weight_bytes": 100 * 2**20, "trainable_parameters": 2_000_000, "all_parameters": 140_000_000,
}  # fmt: skip


def make_run(folder, history, *, shares=(0.35, 0.8), n=60, seed=0, stages=(), gpu=False, facts=FACTS):
    """A run directory as ``fintune train`` leaves it, with stages by their share of right answers."""
    run = RunDirectory(folder)
    folder.mkdir(parents=True)
    rows = [row | ({"gpu_utilization_percent": 90.0, "gpu_power_w": 300.0} if gpu else {}) for row in history]
    if stages:
        half = max(row["step"] for row in rows) / 2
        rows = [row | {"stage": f"{1 + (row['step'] > half)}-{stages[row['step'] > half][0]}"} for row in rows]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    by = {
        (system, "tfns"): simulated_records(system, share, n, seed=seed if system == "tuned" else 0)
        for system, share in zip(("base", "tuned"), shares, strict=True)
    }
    costs = tuple(TimeCost(system=s, task="tfns", n=10, elapsed_s=t) for s, t in (("base", 0.5), ("tuned", 0.7)))
    run.results.write_text(scored_results(by, time_costs=costs).model_dump_json())
    write_records(run.predictions, [record for found in by.values() for record in found])
    write_json(run.facts, facts)
    run.adapter.mkdir()
    (run.adapter / "adapter_model.safetensors").write_bytes(bytes(5 * 2**20))
    for number, (name, share) in enumerate(stages, start=1):
        place = RunDirectory(folder / "stages" / f"{number}-{name}")
        place.path.mkdir(parents=True)
        if share is not None:
            found = {("tuned", "tfns"): simulated_records("tuned", share, n)}
            place.results.write_text(scored_results(found).model_dump_json())
    return run


@pytest.fixture(autouse=True)
def style():
    with styled():
        yield


@pytest.fixture(scope="module")
def plain(tmp_path_factory, history):
    return make_run(tmp_path_factory.mktemp("runs") / "plain", history)


@pytest.fixture(scope="module")
def staged(tmp_path_factory, history):
    """The second stage's own results lie in the run, and its base scores like that of ``plain``."""
    folder = tmp_path_factory.mktemp("runs") / "staged"
    return make_run(folder, history[:40], shares=(0.35, 0.6), seed=4, stages=(("hard", 0.5), ("easy", None)), gpu=True)


@pytest.fixture(scope="module")
def both(plain, staged):
    return [read_run(plain, "plain"), read_run(staged, "staged")]


def test_one_command_draws_a_run_and_says_what_it_lacks(plain, tmp_path, capsys):
    (tmp_path / "gpu_utilization.png").write_bytes(b"of another run, which would stand for this one")
    assert main(["figures", str(plain.path), "-o", str(tmp_path), "--format", "svg", "--format", "png", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert set(said["files"]) == ALWAYS
    assert said["left_out"] == {
        "gpu_utilization": "no line of metrics.jsonl has figures of a GPU",
        "curriculum_comparison": "no run has several stages",
    }
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {f"{name}.{kind}" for name in ALWAYS for kind in ("png", "svg")} | {"tables.tex", "figures.tex"}
    for name in ALWAYS:
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
    text = (tmp_path / "figures.tex").read_text()
    assert all(f"{{{name}}}" in text for name in ALWAYS) and r"\input{tables.tex}" in text


def test_several_runs_are_one_figure_each(plain, staged, tmp_path):
    runs = {"first": plain.path, "second": staged.path}
    drawn = fintune.figures(runs, output_dir=tmp_path / "a", formats=["pdf"])
    assert set(drawn.files) == ALWAYS | {"curriculum_comparison", "gpu_utilization"}
    assert dict(drawn.left_out) == {"first in gpu_utilization": "no line of metrics.jsonl has figures of a GPU"}
    assert all(files[0].read_bytes().startswith(b"%PDF") for files in drawn.files.values())
    assert "What training took" in drawn.tables.read_text()


def test_the_same_figure_is_the_same_bytes(both, tmp_path):
    def written(name):
        with styled():
            return save(efficiency_comparison(both), tmp_path / name, ["png", "pdf", "svg"])

    for first, second in zip(written("a"), written("b"), strict=True):
        assert first.read_bytes() == second.read_bytes(), first
        assert str(tmp_path).encode() not in first.read_bytes()


def test_what_is_wrong_is_said(plain, staged, tmp_path, history):
    with pytest.raises(RunError, match="There is no run .*nowhere"):
        fintune.figures(tmp_path / "nowhere", output_dir=tmp_path)
    with pytest.raises(RecipeError, match="bmp is not a format of figures"):
        fintune.figures(plain.path, output_dir=tmp_path, formats=["png", "bmp"])
    with pytest.raises(RecipeError, match="Figures of several runs need a folder"):
        fintune.figures([plain.path, staged.path])
    (tmp_path / "x" / "plain").mkdir(parents=True)
    with pytest.raises(RunError, match="Two runs are called plain"):
        fintune.figures([plain.path, tmp_path / "x" / "plain"], output_dir=tmp_path)
    with pytest.raises(RunError, match="There is nothing to draw in .*plain"):
        fintune.figures(tmp_path / "x" / "plain")
    assert main(["figures", f"a={plain.path}", f"a={staged.path}", "-o", str(tmp_path)]) == 2


def test_a_base_that_scored_alike_is_there_once(both, tmp_path, history):
    results, records, left_out = together(both)
    assert [r.system for r in results.results] == ["base", "plain", "staged"] and left_out == {}
    assert {r.system for r in records} == {"base", "plain", "staged"} and len(records) == 180
    other = read_run(make_run(tmp_path / "other", history, shares=(0.5, 0.8)), "other")
    assert [r.system for r in together([both[0], other])[0].results] == ["base", "base (other)", "plain", "other"]


def test_a_task_that_was_scored_otherwise_is_left_out(both, tmp_path, history):
    shorter = read_run(make_run(tmp_path / "short", history, n=40), "short")
    results, records, left_out = together([both[0], shorter])
    assert (results.results, records) == ((), [])
    assert left_out == {"tfns": "n is 60 in plain and 40 in short"}
    assert not_drawn({"a": "why", "b": "else", "c": "why"}) == ["Not drawn: a, c (why); b (else)."]


def test_the_curriculum_shows_each_stage_and_where_it_ends(both):
    figure = curriculum_comparison(both)
    losses, scores = figure.axes
    assert [line.get_xdata()[0] for line in losses.get_lines() if len(set(line.get_xdata())) == 1] == [20]
    names = [label.get_text() for label in scores.get_yticklabels()]
    assert names == ["base", "plain", "staged 1-hard", "staged 2-easy"]
    points = [line.get_xdata()[0] for line in scores.get_lines() if line.get_linestyle() == "None"]
    found = [both[0].results.find("tfns", "base"), both[0].results.find("tfns", "tuned")]
    found += [both[1].stages["1-hard"].find("tfns", "tuned"), both[1].results.find("tfns", "tuned")]
    assert points == [one.metrics["accuracy"].value for one in found]
    assert curriculum_comparison(both[:1]) is None
    assert len(curriculum_comparison(both, {"tfns"}).axes) == 1


def test_a_perplexity_has_no_place_among_shares(both, tmp_path):
    """It gets an axis of its own beside other scores, and is named where there is only one axis."""
    run = both[1]
    tasks = {"fpb": 0.5, "news": 12.0}
    scored = tuple(
        one.model_copy(update={"task": task, "metrics": {"accuracy": Estimate(value=value)}})
        for task, value in tasks.items() for one in run.results.results
    )  # fmt: skip
    odd = replace(run, results=run.results.model_copy(update={"results": scored}))
    assert tasks_beyond_shares([odd]) == ["news"]
    drawn = write_figures(tmp_path, [replace(odd, history=(), records=(), facts={}, adapter_bytes=None)])
    assert drawn.left_out["news in curriculum_comparison"] == "its score is not between 0 and 1"
    limits = [axes.get_ylim()[1] for axes in performance_comparison(odd.results).axes]
    assert limits[0] == 1.08 and limits[1] > 12
    assert "fpb" in str([text.get_text() for text in curriculum_comparison([odd]).axes[1].texts])


def test_efficiency_has_the_values_of_the_runs(both):
    panels = {axes.get_title(loc="left"): axes for axes in efficiency_comparison(both).axes if axes.get_visible()}
    widths = {title: [bar.get_width() for bar in axes.patches] for title, axes in panels.items()}
    assert widths["Peak memory, GiB"] == [3.0, 3.0] and widths["Training time, minutes"] == [2.0, 2.0]
    assert widths["Tokens of samples a second"] == [50.0, 50.0] and widths["Adapter on disk, MiB"] == [5.0, 5.0]
    assert widths["Answering, ms a document"] == pytest.approx([70.0, 70.0])
    alone = {axes.get_title(loc="left"): axes for axes in efficiency_comparison(both[:1]).axes}
    assert [bar.get_width() for bar in alone["Memory and storage, MiB"].patches] == [100.0, 3072.0, 5.0]
    table = efficiency_table(both)
    assert table.columns == ("Quantity", "plain", "staged") and ("Peak memory, GiB", "3", "3") in table.rows
    assert efficiency_comparison([RunData()]) is None and efficiency_table([RunData()]) is None


def luminance(colour):
    red, green, blue = to_rgb(colour)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def alike(one, other):
    """Whether two looks, a grey and what else tells them apart, are one in a photocopy."""
    return one[1:] == other[1:] and abs(one[0] - other[0]) < 0.12


def looks(axes):
    """The look of each labelled series of a panel, and of each bar beside others."""
    lines = [
        (luminance(line.get_color()), line.get_linestyle(), str(line.get_marker()), line.get_linewidth())
        for line in axes.get_lines()
        if not line.get_label().startswith("_")
    ]
    bars = {
        (round(luminance(bar.get_facecolor()[:3]), 4), bar.get_hatch()) for box in axes.containers
        for bar in getattr(box, "patches", ())
    }  # fmt: skip
    return [lines, list(bars)]


def test_what_stands_side_by_side_differs_in_greyscale(both, results, records, history, staged):
    many = {f"run {number}": history for number in range(8)}
    gpus = read_run(staged).history
    tasks = [r.system for r in results.results]
    figures = [
        training_curves(history), curves_of_runs(many), performance_comparison(results), curriculum_comparison(both),
        efficiency_comparison(both), gpu_utilization(gpus, {1: gpus, 2: gpus}), gpus_of_runs({"a": gpus, "b": gpus}),
        reliability_diagram(records, "tfns"), performance_comparison(together(both)[0]),
    ]  # fmt: skip
    compared = 0
    for figure in figures:
        for axes in figure.axes:
            for kind in looks(axes):
                for one, other in itertools.combinations(kind, 2):
                    compared += 1
                    assert not alike(one, other), (figure.axes[0].get_title(loc="left"), one, other)
    assert compared > 100 and len(tasks) == 5
    for one, other in itertools.combinations([*BARS.values(), *SPARE_BARS[1:]], 2):
        assert not alike((luminance(one[0]), one[1]), (luminance(other[0]), other[1])), (one, other)


def test_looks_do_not_run_out():
    names = [f"run {number}" for number in range(8)]
    assert len({bar_style(name, names) for name in names}) == 8
    assert bar_style("run 0", ["tuned", *names]) != BARS["tuned"] and bar_style("tuned", names) == BARS["tuned"]
    assert len({(line_style(i).dash, line_style(i).marker) for i in range(8)}) == 8


def test_bars_differ_as_pixels_of_a_grey_copy(results):
    """Each bar as printed in grey: its mean or its texture differs from that of every other bar of the panel."""
    with styled():
        figure = performance_comparison(results)
        canvas = FigureCanvasAgg(figure)
        figure.set_dpi(200)
        canvas.draw()
    grey = np.asarray(Image.fromarray(np.asarray(canvas.buffer_rgba())[:, :, :3]).convert("L"), dtype=float)
    bars = [bar for box in figure.axes[0].containers for bar in getattr(box, "patches", ())]
    seen = []
    for bar in bars:
        box = bar.get_window_extent()
        # The left part below a tenth of the axis: without the edge and the interval's line in the middle.
        x0, x1 = int(box.x0 + 4), int(box.x0 + 0.4 * box.width)
        y0, y1 = int(box.y0 + 4), int(box.y0 + min(box.height, 60) - 4)
        part = grey[grey.shape[0] - y1 : grey.shape[0] - y0, x0:x1]
        seen.append((part.mean(), part.std()))
    assert len(seen) == 5
    for (mean, spread), (other_mean, other_spread) in itertools.combinations(seen, 2):
        assert abs(mean - other_mean) > 15 or abs(spread - other_spread) > 15, seen


def test_confusion_and_calibration_of_several_runs(both):
    results, records, _ = together(both)
    systems = ["base", "plain", "staged"]
    assert [axes.get_title(loc="left") for axes in confusion_matrices(results, "tfns", systems).axes] == [
        "Base model", "plain", "staged",
    ]  # fmt: skip
    names = [text.get_text() for text in reliability_diagram(records, "tfns", systems).legends[0].get_texts()]
    assert names == ["perfect", "Base model", "plain", "staged"]
    assert set(picture_captions(both, results)) >= ALWAYS


@pytest.mark.parametrize(
    ("file", "damage", "reason"),
    [
        ("metrics.jsonl", {"loss": "x"}, r"Line 4 of .*metrics\.jsonl says 'x' of loss, which is no number\. Remove"),
        ("metrics.jsonl", {"step": [1]}, r"Line 4 of .*metrics\.jsonl says \[1\] of step, which is no number"),
        ("metrics.jsonl", [1], r"Line 4 of .*metrics\.jsonl is no JSON object"),
        ("metrics.jsonl", b"\xff", r"Line 4 of .*metrics\.jsonl is not JSON"),
        ("logs/rank-1.jsonl", {"gpu_power_w": {}}, r"Line 4 of .*rank-1\.jsonl says \{\} of gpu_power_w"),
        ("facts.json", {"training_seconds": "x"}, r"facts\.json says 'x' of training_seconds, which is no number"),
        ("facts.json", [1], r"facts\.json is no JSON object"),
        ("facts.json", b"{", r"facts\.json is not JSON"),
    ],
)
def test_a_damaged_line_is_named(history, tmp_path, file, damage, reason):
    run = make_run(tmp_path / "run", history[:6], gpu=True)
    (run.path / "logs").mkdir()
    (run.path / "logs" / "rank-1.jsonl").write_bytes(run.metrics.read_bytes())
    lines = (run.path / file).read_bytes().splitlines() if file.endswith("l") else [(run.path / file).read_bytes()]
    at = min(3, len(lines) - 1)
    if isinstance(damage, dict):
        damage = json.loads(lines[at]) | damage
    lines[at] = damage if isinstance(damage, bytes) else json.dumps(damage).encode()
    (run.path / file).write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(RunError, match=reason):
        fintune.figures(run.path)


def test_what_is_not_known_is_not_drawn(history, tmp_path):
    """A step that is null, and figures that are no finite number, which other programs write."""
    row = {**history[0], "gpu_power_w": 300.0}
    nan, inf = float("nan"), float("inf")
    odd = [{"step": None}, {"step": nan}, {"loss": nan, "gpu_power_w": nan}, {"gpu_power_w": inf}]
    rows = [row | change for change in odd] + [row]
    figure = gpu_utilization(rows)
    assert [list(line.get_xdata()) for line in figure.axes[0].lines] == [[row["step"]]]
    assert training_curves(rows) is not None
    unknown = RunData(facts={"training_seconds": nan, "sample_tokens": 5, "peak_bytes": inf, "weight_bytes": None})
    assert efficiency_comparison([unknown]) is None


def test_tasks_that_share_a_name_in_files_do_not_share_a_file(tmp_path):
    tasks = ["a/b", "a b", "A-b", "a-b-2"]
    by = {(s, task): simulated_records(s, 0.6, 30, task) for s in ("base", "tuned") for task in tasks}
    results, records = scored_results(by), [record for found in by.values() for record in found]
    write_report(tmp_path, recipe=None, results=results, records=records, history=[], model_facts={})
    expected = {f"{kind}_{n}" for kind in ("confusion", "calibration") for n in ("a-b", "a-b-2", "A-b-3", "a-b-2-2")}
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == expected | {"performance_comparison"}
    markdown = (tmp_path / "report.md").read_text()
    assert all(f"{name}.png" in markdown for name in expected)
    captions = picture_captions([RunData(results=results)], results)
    assert captions["confusion_a-b-2"] == "Targets by answers on a b." and expected <= set(captions)
