"""The report as one self-contained HTML page: images and style inside, every text escaped, no outside request."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from fintune.reporting.tables import Table


@dataclass(frozen=True)
class Picture:
    """A figure with the words that stand for it."""

    path: Path
    alt: str

    @property
    def data_uri(self) -> str:
        """The PNG as text that an ``img`` element can hold."""
        return "data:image/png;base64," + base64.b64encode(self.path.read_bytes()).decode("ascii")


@dataclass(frozen=True)
class Section:
    """A heading with what belongs under it, in the order pictures, tables, paragraphs, code."""

    title: str
    anchor: str
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    paragraphs: Sequence[str] = ()
    code: str = ""

    @property
    def empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.pictures or self.tables or self.paragraphs or self.code)


def render_html(*, title: str, subtitle: str, verdict: Sequence[str], sections: Sequence[Section], footer: str) -> str:
    """The whole page as text."""
    return _template().render(title=title, subtitle=subtitle, verdict=verdict, sections=sections, footer=footer)


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("fintune.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")
