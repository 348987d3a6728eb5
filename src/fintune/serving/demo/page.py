"""The page itself: three tabs laid out with Gradio, and the server that shows them on this machine.

Enters: loaded models and data. Leaves: a page that opens no connection but to this server. A mistake is one sentence
in the tab's status line.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from fintune.schema.errors import DependencyError, FintuneError, RunError
from fintune.serving.demo.chart import price_figure
from fintune.serving.demo.compare import both, compare_forecasts, compare_labels
from fintune.serving.demo.forecast import (
    MOST_WEEKS,
    Asked,
    ForecastData,
    find_week,
    label_line,
    outcome_line,
    read_prompt,
    write_forecast,
)
from fintune.serving.demo.models import DemoModels
from fintune.serving.demo.sentiment import label_task, label_text

if TYPE_CHECKING:
    import gradio as gr

log = logging.getLogger(__name__)
Shown = tuple[Any, ...]
HEADLINE = "Sample Pumps raises its forecast for the year after a strong quarter"
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
SENTIMENT, FORECAST = "Sentiment of a text", "Forecast of the first tab"


def require_gradio() -> None:
    """Raises DependencyError where Gradio is not installed."""
    if find_spec("gradio") is None:
        raise DependencyError("The demo page needs gradio, which is not installed.", "pip install 'fintune[demo]'")


def open_page(
    models: DemoModels, data: ForecastData, *, host: str, port: int | None, open_browser: bool
) -> tuple[gr.Blocks, str]:
    """Shows the page while other code goes on; returns it with its address. ``block_thread`` waits for its end.

    Raises:
        DependencyError: Gradio is not installed.
        RunError: the port is taken.
    """
    require_gradio()
    import gradio as gr

    # Fonts of the system: named ones would be fetched from elsewhere.
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    page = make_page(models, data)
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            inbrowser=open_browser,
            prevent_thread_lock=True,
            quiet=True,
            theme=theme,
            share=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            footer_links=[],
            show_error=False,
        )
    except OSError as error:
        raise RunError(f"The page cannot be shown at {host}:{port or 7860}.", "Give another --port.") from error
    return page, address


def make_page(models: DemoModels, data: ForecastData) -> gr.Blocks:
    """The page with its tabs."""
    import gradio as gr

    with gr.Blocks(title="fintune demo", analytics_enabled=False) as page:
        gr.Markdown(f"# fintune demo\n\n{introduction(models, data)}")
        with gr.Tab("Forecast"):
            question = _forecast_tab(models, data)
        with gr.Tab("Sentiment"):
            _sentiment_tab(models)
        with gr.Tab("Base and adapter"):
            _compare_tab(models, data, question)
    return page


def introduction(models: DemoModels, data: ForecastData) -> str:
    """What is asked and from what, in sentences."""
    said = [f"Model: `{models.name}`. Data: {data.source} ({', '.join(list(data.histories)[:10])})."]
    if data.made_up:
        said.append("**These companies, their news and prices are made up**; the prices are a random walk.")
    if data.left_out:
        said.append(f"Left out of the data: {'; '.join(data.left_out)}.")
    return " ".join([*said, "Nothing here is investment advice."])


def _forecast_tab(models: DemoModels, data: ForecastData) -> list[Any]:
    import gradio as gr

    ticker, day = data.first_question()
    with gr.Row():
        question: list[Any] = [
            gr.Textbox(ticker, label="Ticker", elem_id="ticker"),
            gr.Textbox(day, label="Forecast from (date)", elem_id="date"),
            gr.Slider(1, MOST_WEEKS, 3, step=1, label="Past weeks", elem_id="weeks"),
            gr.Slider(16, 512, 160, step=16, label="Longest answer (tokens)", elem_id="tokens"),
            gr.Checkbox(True, label="Financials", elem_id="financials"),
        ]
    button = gr.Button("Forecast", variant="primary", elem_id="forecast-button")
    status = gr.Markdown(elem_id="forecast-status")
    with gr.Row():
        with gr.Column():
            prompt = gr.Textbox(label="Prompt, as the model reads it", lines=12, max_lines=24, elem_id="prompt")
        with gr.Column():
            answer = gr.Textbox(label="Forecast", lines=8, max_lines=18, elem_id="answer")
            label = gr.Textbox(label="Label read in it", elem_id="label")
            outcome = gr.Markdown(elem_id="outcome")
    chart = gr.Plot(label="Prices", elem_id="chart")
    shown = [status, prompt, answer, label, outcome, chart]
    button.click(_said(len(shown), forecast_steps, models, data), question, shown, **ONE_AT_A_TIME)
    return question


def forecast_steps(
    models: DemoModels, data: ForecastData, ticker: str, day: str, weeks: float, tokens: float, financials: bool
) -> Iterator[Shown]:
    """Status, prompt, answer, label, outcome and chart, again with each new token."""
    history, week = find_week(data, Asked(ticker, day, int(weeks), financials))
    prompt = read_prompt(models.main, week, financials=financials)
    figure, notes, answer = price_figure(history, week), " ".join(prompt.notes), ""
    yield f"{notes} Writing …", prompt.text, "", "", "", figure
    for answer in write_forecast(models.main, prompt.tokens, max_new_tokens=int(tokens)):
        yield f"{notes} Writing …", _unchanged(), answer, "", "", _unchanged()
    yield f"{notes} Done.", _unchanged(), answer, label_line(answer), outcome_line(week), _unchanged()


def _sentiment_tab(models: DemoModels) -> None:
    import gradio as gr

    gr.Markdown(f"Labels of the task `{label_task(models.main)}`, with their probabilities.")
    text = gr.Textbox(HEADLINE, label="Text", lines=3, elem_id="sentiment-text")
    button = gr.Button("Label", variant="primary", elem_id="sentiment-button")
    status = gr.Markdown(elem_id="sentiment-status")
    label = gr.Label(label="Sentiment", elem_id="sentiment")
    button.click(_said(2, sentiment_steps, models), [text], [status, label], **ONE_AT_A_TIME)


def sentiment_steps(models: DemoModels, text: str) -> Iterator[Shown]:
    """Status, and the probability of each label."""
    found = label_text(models.main, text)
    yield "The text was shortened to fit." if found.shortened else "", found.probabilities


def _compare_tab(models: DemoModels, data: ForecastData, question: list[Any]) -> None:
    import gradio as gr

    gr.Markdown(
        "The same words go to the base model and to the model with its adapter."
        if models.base is not None
        else f"`{models.name}` has no adapter that could be switched off. Start `fintune demo` with a LoRA run."
    )
    kind = gr.Radio([SENTIMENT, FORECAST], value=SENTIMENT, label="Question", elem_id="compare-kind")
    text = gr.Textbox(HEADLINE, label="Text", lines=3, elem_id="compare-text")
    button = gr.Button("Ask both", variant="primary", elem_id="compare-button")
    status = gr.Markdown(elem_id="compare-status")
    with gr.Row():
        base = gr.Textbox(label="Base", lines=6, max_lines=24, elem_id="base-answer")
        main = gr.Textbox(label="With adapter", lines=6, max_lines=24, elem_id="adapter-answer")
    steps = _said(3, compare_steps, models, data)
    button.click(steps, [kind, text, *question], [status, base, main], **ONE_AT_A_TIME)


def compare_steps(
    models: DemoModels,
    data: ForecastData,
    kind: str,
    text: str,
    ticker: str,
    day: str,
    weeks: float,
    tokens: float,
    financials: bool,
) -> Iterator[Shown]:
    """Status, and the answers of base and adapter."""
    _, main = both(models)
    if kind == SENTIMENT:
        yield "", *compare_labels(models, text)
        return
    _, week = find_week(data, Asked(ticker, day, int(weeks), financials))
    prompt = read_prompt(main, week, financials=financials)
    said = f"{week.ticker}, {week.date}."
    for pair in compare_forecasts(models, prompt.tokens, max_new_tokens=int(tokens)):
        yield f"{said} Writing …", *pair
    yield f"{said} Done.", _unchanged(), _unchanged()


def _said(
    n_shown: int,
    steps: Callable[..., Iterator[Shown]],
    *fixed: Any,
) -> Callable[..., Iterator[Shown]]:
    """The steps on what a visitor gave; a mistake becomes the status line, and what was shown before goes."""

    def handler(*given: Any) -> Iterator[Shown]:
        try:
            yield from steps(*fixed, *given)
        except FintuneError as error:
            yield f"⚠ {error}", *[None] * (n_shown - 1)
        except Exception as error:  # a page shows no traceback; the log has it
            log.exception("The demo page failed.")
            yield f"⚠ fintune failed unexpectedly ({type(error).__name__}).", *[None] * (n_shown - 1)

    return handler


def _unchanged() -> Any:
    import gradio as gr

    return gr.skip()
