"""The figure of what GPUs did, from lines of metrics.jsonl."""

from __future__ import annotations

import json

import pytest
from matplotlib.colors import to_rgb

import fintune.reporting.hardware as hardware
from fintune.reporting.gallery import write_figures
from fintune.reporting.hardware import gpu_utilization
from fintune.reporting.run_data import read_run
from fintune.schema.run_directory import RunDirectory


def rows(rank=0, **changes):
    return [
        {
            "step": step,
            "loss": 1.0,
            "tokens_per_s": 100.0 + step,
            "gpu_utilization_percent": 80.0 + rank,
            "gpu_memory_bytes": 3 * 2**30,
            "gpu_power_w": 300.0 + step,
            "gpu_temperature_c": 60.0,
            "mfu": 0.4,
        }
        | changes
        for step in range(1, 6)
    ]


def drawn(figure):
    return {axes.get_title(loc="left") or axes.get_title(): axes for axes in figure.axes if axes.get_visible()}


def test_panels_have_their_values_in_their_units():
    panels = drawn(gpu_utilization(rows()))
    assert len(panels) == 6
    (memory,) = panels["GPU memory in use, GiB"].get_lines()
    assert list(memory.get_xdata()) == [1, 2, 3, 4, 5] and list(memory.get_ydata()) == [3.0] * 5
    (share,) = panels["Model FLOP utilisation, %"].get_lines()
    assert share.get_ydata() == pytest.approx([40.0] * 5)


def test_what_is_not_known_is_not_drawn():
    panels = drawn(gpu_utilization(rows(mfu=None, gpu_power_w=None)))
    assert set(panels) == {
        "GPU utilisation, %", "GPU memory in use, GiB", "Temperature, °C", "Tokens of samples a second"
    }  # fmt: skip
    on_cpu = [{"step": 1, "loss": 1.0, "tokens_per_s": 5.0, "mfu": None}]
    assert gpu_utilization(on_cpu) is None and gpu_utilization([]) is None


def test_processes_differ_without_colour():
    figure = gpu_utilization(rows(), {1: rows(1), 2: rows(2), 3: rows(3)})
    lines = drawn(figure)["GPU utilisation, %"].get_lines()
    assert len({line.get_linestyle() for line in lines}) == 4
    for line in lines:
        red, green, blue = to_rgb(line.get_color())
        assert red == green == blue  # grey already
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["rank 0", "rank 1", "rank 2", "rank 3"]


def test_it_is_written_from_a_run_directory_at_300_dpi(tmp_path):
    from PIL import Image

    place = RunDirectory(tmp_path)
    place.metrics_of(1).parent.mkdir()
    for rank in (0, 1):
        place.metrics_of(rank).write_text("".join(json.dumps(row) + "\n" for row in rows(rank)))
    found = write_figures(tmp_path / "figures", [read_run(place)]).first
    assert {"gpu_utilization", "training_curves"} <= set(found)
    with Image.open(found["gpu_utilization"]) as image:
        assert [round(dots) for dots in image.info["dpi"]] == [300, 300]
        assert image.size[0] > 2000
    assert hardware.HARDWARE_CAPTION.endswith(".")
