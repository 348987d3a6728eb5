"""The demo page as a visitor has it: the real command, a real Chromium, a tiny random model."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="the demo page needs gradio")
playwright = pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright")

pytestmark = pytest.mark.slow
PATIENCE_MS = 120_000


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def address(run_dir, tmp_path_factory):
    """``fintune demo`` in a process of its own, with proxies and the network out of play."""
    port, log = free_port(), tmp_path_factory.mktemp("demo") / "log.txt"
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    command = [sys.executable, "-m", "tests.serving.slow_demo", "demo", str(run_dir), "--port", str(port), "--offline"]
    with log.open("w") as stream:
        server = subprocess.Popen(
            [*command, "--no-browser"],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment | {"NO_PROXY": "*"},
            cwd=Path(__file__).parents[2],
        )
        try:
            until = time.monotonic() + 240
            while "page" not in log.read_text():
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(30)
    assert "Traceback" not in log.read_text()


@pytest.fixture(scope="module")
def run_dir(base, tmp_path_factory):
    """A base model with an adapter that changes its answers."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(3)  # before the adapter is made: its A is drawn there
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft reads a name that transformers calls outdated
        tuned = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    folder = tmp_path_factory.mktemp("adapter")
    tuned.save_pretrained(folder)
    return folder


@pytest.fixture
def page(browser, address):
    """The page, with every address that the browser asks for and every error of its scripts."""
    tab = browser.new_page(viewport={"width": 1280, "height": 1100})
    asked, failed = [], []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("pageerror", lambda error: failed.append(str(error)))
    tab.set_default_timeout(PATIENCE_MS)
    tab.goto(address)
    yield tab
    tab.close()
    strange = [url for url in asked if not url.startswith((f"{address}/", "data:", "blob:"))]
    assert (strange, failed) == ([], [])


def field(page, name: str):
    return page.locator(f"#{name} textarea, #{name} input").first


def ask(page, **typed: str) -> None:
    for name, value in typed.items():
        field(page, name).fill(value)
    page.click("#forecast-button")


def status(page, name: str, wanted: str) -> str:
    found = page.locator(f"#{name}")
    playwright.expect(found).to_contain_text(wanted, timeout=PATIENCE_MS)
    return found.inner_text()


def test_a_forecast_is_typed_clicked_read_and_seen(page, tmp_path):
    page.evaluate(
        """() => { window.seen = new Set(); const box = () => document.querySelector('#answer textarea');
        setInterval(() => { if (box()) window.seen.add(box().value.length) }, 5) }"""
    )
    ask(page, ticker="xtoys", date="2024-04-14", tokens="96")
    assert re.search(r"[\d,]+ tokens", status(page, "forecast-status", "Done."))
    prompt = field(page, "prompt").input_value()
    assert "XTOYS" in prompt and "From 2024-04-07 to 2024-04-14" in prompt and "<|im_start|>user" in prompt
    assert "eps:" in prompt  # a financial figure
    assert field(page, "answer").input_value()
    assert len(page.evaluate("() => [...window.seen]")) > 3, "the answer came at once, not as a stream"
    assert field(page, "label").input_value().startswith(("No label could be read: ", "U", "D", "No change"))
    assert "The model was not shown that." in page.locator("#outcome").inner_text()
    picture = page.locator("#chart img")
    playwright.expect(picture).to_be_visible()
    assert picture.evaluate("image => image.naturalWidth") > 300
    page.screenshot(path=tmp_path / "forecast.png", full_page=True)
    assert (tmp_path / "forecast.png").stat().st_size > 10_000


def test_financials_can_be_left_out_and_weeks_chosen(page):
    page.uncheck("#financials input")
    ask(page, ticker="XTOYS", date="2024-04-14", weeks="1", tokens="16")
    status(page, "forecast-status", "Done.")
    prompt = field(page, "prompt").input_value()
    assert "No basic financial reported." in prompt and "eps:" not in prompt
    assert prompt.count("stock price") - prompt.count("stock price movement") == 1


@pytest.mark.parametrize(
    ("ticker", "day", "said"),
    [
        ("NOPE", "2024-04-14", "There are no data of the ticker NOPE. Known are XDEMO, XTOYS."),
        ("XDEMO", "2031-01-05", "XDEMO lacks prices for the 3 weeks before 2031-01-05."),
        ("XDEMO", "next week", "next week is not a date."),
    ],
)
def test_a_mistake_is_one_sentence_in_the_page(page, ticker, day, said):
    ask(page, ticker=ticker, date=day)
    told = status(page, "forecast-status", said)
    assert "Traceback" not in page.content() and "\n" not in told.strip()


def test_the_sentiment_tab_labels_a_text(page, tmp_path):
    page.get_by_role("tab", name="Sentiment").click()
    field(page, "sentiment-text").fill("Shares fell 8% after the profit warning")
    page.click("#sentiment-button")
    found = page.locator("#sentiment")
    for label in ("negative", "neutral", "positive"):
        playwright.expect(found).to_contain_text(label, ignore_case=True)
    page.screenshot(path=tmp_path / "sentiment.png")
    field(page, "sentiment-text").fill("  ")
    page.click("#sentiment-button")
    status(page, "sentiment-status", "There is no text.")


def test_base_and_adapter_answer_side_by_side(page):
    page.get_by_role("tab", name="Base and adapter").click()
    page.click("#compare-button")
    playwright.expect(field(page, "adapter-answer")).to_have_value(re.compile("positive"))
    assert field(page, "base-answer").input_value() != field(page, "adapter-answer").input_value()
    page.get_by_label("Forecast of the first tab").check()
    page.get_by_role("tab", name="Forecast", exact=True).click()
    field(page, "tokens").fill("16")
    page.get_by_role("tab", name="Base and adapter").click()
    page.click("#compare-button")
    status(page, "compare-status", "Done.")
    base, adapter = (field(page, name).input_value() for name in ("base-answer", "adapter-answer"))
    assert base != adapter
    assert "(No label" in base or "(U" in base or "(D" in base


def test_a_taken_port_is_one_sentence(base, address):
    port = address.rpartition(":")[2]
    command = [sys.executable, "-m", "fintune.cli", "demo", "--model", str(base), "--port", port, "--no-browser"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert f"error: The page cannot be shown at 127.0.0.1:{port}." in ended.stderr
    assert "Traceback" not in ended.stderr
