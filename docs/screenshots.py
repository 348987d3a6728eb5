"""Takes the pictures of pages in ``docs/images`` with Chromium: ``python docs/screenshots.py RUN``.

Enters: a LoRA run on a task of sentiment, with its report. Leaves: forecast.png of the untuned SmolLM2, sentiment.png
and compare.png of the run, all on the demo page, and documents.png of its report; ``RUN --report-only`` takes that one
alone. Needs ``pip install -e '.[dev]'`` and a Chromium.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from playwright.sync_api import Page, expect, sync_playwright

from fintune.serving.demo.forecast import read_data
from fintune.serving.demo.models import load_models
from fintune.serving.demo.page import open_page

IMAGES = Path(__file__).parent / "images"
PATIENCE_MS = 600_000


@contextmanager
def shown(model: str) -> Iterator[Page]:
    """The page of a model in a browser."""
    models = load_models(model, device=torch.device("cpu"))
    server, address = open_page(models, read_data(None), host="127.0.0.1", port=None, open_browser=False)
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = chromium.new_page(viewport={"width": 1180, "height": 600})
        tab.set_default_timeout(PATIENCE_MS)
        tab.goto(address)
        yield tab
        chromium.close()
    server.close(verbose=False)


def take(tab: Page, name: str) -> None:
    """A picture of the whole page, in a few colours."""
    tab.wait_for_timeout(500)
    save(tab, name, full_page=True)


def save(tab: Page, name: str, *, full_page: bool) -> None:
    """The picture in a few colours."""
    from PIL import Image

    file = IMAGES / f"{name}.png"
    tab.screenshot(path=file, full_page=full_page)
    with Image.open(file) as picture:
        small = picture.convert("RGB").quantize(64)
    small.save(file, optimize=True)


def take_documents(run: str) -> None:
    """The table of documents in the report of a run, with one that tuning made right open."""
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = chromium.new_page(viewport={"width": 1180, "height": 760})
        tab.goto((Path(run) / "report.html").resolve().as_uri())
        tab.select_option("[data-part=change]", label="now right")
        tab.locator(".open").nth(1).click()
        tab.evaluate("document.getElementById('documents').scrollIntoView()")
        save(tab, "documents", full_page=False)
        chromium.close()


def main(run: str) -> None:
    """Takes all pictures."""
    IMAGES.mkdir(exist_ok=True)
    take_documents(run)
    if "--report-only" in sys.argv:
        return
    with shown("smollm2-135m") as tab:  # the forecast of the untuned model
        tab.click("#forecast-button")
        expect(tab.locator("#forecast-status")).to_contain_text("Done.", timeout=PATIENCE_MS)
        take(tab, "forecast")
    with shown(run) as tab:
        tab.get_by_role("tab", name="Sentiment").click()
        tab.click("#sentiment-button")
        expect(tab.locator("#sentiment")).to_contain_text("%", timeout=PATIENCE_MS)
        take(tab, "sentiment")
        tab.get_by_role("tab", name="Base and adapter").click()
        tab.click("#compare-button")
        answer = tab.locator("#adapter-answer textarea")
        expect(answer).to_have_value(re.compile("."), timeout=PATIENCE_MS)
        take(tab, "compare")


if __name__ == "__main__":
    main(sys.argv[1])
