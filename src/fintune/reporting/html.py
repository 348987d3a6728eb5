"""The report as one self-contained HTML page: images, style and script inside, every text escaped, no outside request.

Its content security policy lets in nothing but these: style and script by their hashes, images as data.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fintune.reporting.documents import Documents
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
    """A heading with what belongs under it, in the order pictures, tables, paragraphs, documents, code."""

    title: str
    anchor: str
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    paragraphs: Sequence[str] = ()
    code: str = ""
    documents: Documents | None = None

    @property
    def empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.pictures or self.tables or self.paragraphs or self.code or self.documents)


def render_html(*, title: str, subtitle: str, verdict: Sequence[str], sections: Sequence[Section], footer: str) -> str:
    """The whole page as text."""
    style = _part("report.css")
    script = _part("documents.js") if any(section.documents for section in sections) else Markup("")
    allowed = {"img-src": "data:", "style-src": _hash(style), **({"script-src": _hash(script)} if script else {})}
    rules = ["default-src 'none'", *(f"{kind} {what}" for kind, what in allowed.items())]
    policy = Markup("; ".join([*rules, "base-uri 'none'", "form-action 'none'"]))
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            title=title,
            subtitle=subtitle,
            verdict=verdict,
            sections=sections,
            footer=footer,
            style=style,
            script=script,
            policy=policy,
        )
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@cache
def _part(name: str) -> Markup:
    """A file of ours that goes into the page as it is."""
    loader, environment = PackageLoader("fintune.reporting"), _environment()
    return Markup(loader.get_source(environment, name)[0])


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("fintune.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
