"""How figures look, and how they are written: colours, hatches, line styles, 300 dpi, PNG, PDF and SVG.

Whatever stands side by side differs without colour too: bars by hatch or grey, lines by dash and marker. Files carry no
date, so the same figure is the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Format = Literal["png", "pdf", "svg"]
DPI = 300
BLUE, ORANGE, GREEN, GREY, INK = "#0072B2", "#E69F00", "#009E73", "#8a8a8a", "#222222"
_PINK, _SKY, _YELLOW = "#CC79A7", "#56B4E9", "#F0E442"
# Fill and hatch: dark and light differ in greyscale too, and hatches tell the greys apart.
BARS = {
    "base": (ORANGE, "////"),
    "tuned": (BLUE, ""),
    "majority": ("#f2f2f2", ""),
    "lexicon": ("#dcdcdc", "...."),
    "tfidf": ("#b8b8b8", "xxxx"),
    "last_direction": ("#ffffff", "oooo"),
    "always_rise": ("#d0d0d0", "++++"),
    "base_5shot": (_YELLOW, "////"),
    "base_calibrated": ("#D55E00", "////"),
}
SPARE_BARS = (
    (BLUE, ""),
    (_SKY, "\\\\\\\\"),
    (_PINK, "||||"),
    ("#eeeeee", "----"),
    (GREEN, "...."),
    ("#ffffff", "xxxx"),
    (_YELLOW, "OO"),
    ("#c8c8c8", "**"),
)
_LINE_COLOURS = (BLUE, "#D55E00", INK, GREEN)
_DASHES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.labelcolor": INK,
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "legend.frameon": False,
    "hatch.linewidth": 0.5,
    # A label such as "$up$" is text; math parsing would change it or fail.
    "text.parse_math": False,
    # Journals want fonts as text, not as shapes of type 3.
    "pdf.fonttype": 42,
    "svg.hashsalt": "fintune",
}
_METADATA: dict[Format, dict[str, Any]] = {
    "png": {"Software": "fintune"},
    "pdf": {"Creator": "fintune", "Producer": "fintune", "CreationDate": None},
    "svg": {"Creator": "fintune", "Date": None},
}


@dataclass(frozen=True)
class LineStyle:
    """Colour, dash and marker of one line."""

    colour: str
    dash: str
    marker: str


def line_style(index: int) -> LineStyle:
    """The style of a line: dash and marker together repeat after eight, neighbours share neither."""
    return LineStyle(
        _LINE_COLOURS[index % len(_LINE_COLOURS)], _DASHES[index % len(_DASHES)], _MARKERS[index % len(_MARKERS)]
    )


def bar_style(system: str, systems: Sequence[str]) -> tuple[str, str]:
    """Fill and hatch of a system among ``systems``; one without a look of its own gets the next spare one."""
    if system in BARS:
        return BARS[system]
    unknown = [one for one in systems if one not in BARS]
    # Beside the tuned model, which has the first spare look, others start with the second.
    place = unknown.index(system) + ("tuned" in systems) if system in unknown else 0
    return SPARE_BARS[place % len(SPARE_BARS)]


def with_grid(axes: Axes, axis: Literal["x", "y"] = "y") -> None:
    """Faint lines behind the data."""
    axes.grid(axis=axis, color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)


def styled() -> Any:
    """A context in which figures are drawn and written in the style of all of them."""
    return mpl.rc_context(_STYLE)


def write_figure(draw: Callable[[], Figure], path: Path) -> Path:
    """Draws one figure in the style of all of them, as a PNG at ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with styled():
        return save(draw(), path.with_suffix(""))[0]


def save(figure: Figure, stem: Path, formats: Sequence[Format] = ("png",)) -> list[Path]:
    """Writes a figure once for each format; returns the files, in the order of ``formats``."""
    files = [stem.with_name(f"{stem.name}.{kind}") for kind in formats]
    for kind, file in zip(formats, files, strict=True):
        figure.savefig(file, dpi=DPI, facecolor="white", metadata=_METADATA[kind])
    return files
