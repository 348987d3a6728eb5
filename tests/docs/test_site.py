"""The documents as a site: built strictly, complete, and readable without a network."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import fintune
from tests.docs.blocks import ROOT


def _pages(entry: object) -> set[str]:
    """The pages in a part of mkdocs' navigation."""
    if isinstance(entry, str):
        return {entry}
    children = entry.values() if isinstance(entry, dict) else entry
    return {page for child in children for page in _pages(child)}  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr[-3000:]
    return folder


def test_every_page_is_in_the_navigation() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    there = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert _pages(nav) == there, "nav of mkdocs.yml and docs/*.md differ"


def test_reading_it_fetches_nothing(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(r"<(?:script|img|iframe)[^>]*\ssrc=\"?(https?:[^\s\">]+)", text)
        fetched += re.findall(r"<link[^>]*rel=\"?stylesheet\"?[^>]*href=\"?(https?:[^\s\">]+)", text)
        assert not fetched, f"{page.relative_to(site)} fetches {fetched}"


def test_everything_public_is_on_the_api_page(site: Path) -> None:
    page = (site / "api.html").read_text(encoding="utf-8")
    missing = [name for name in fintune.__all__ if not re.search(rf'id="[\w.]*\b{name}"', page)]
    # A module and a class without members have no entry of their own beyond their heading.
    assert missing in ([], ["adapters"]), missing
