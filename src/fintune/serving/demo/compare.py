"""The comparison tab without its page: one question to the base and to its adapter, in the same words.

Enters: a text, or a week's prompt. Leaves: both answers; the base's comes first and stays while the adapter's grows.
"""

from __future__ import annotations

from collections.abc import Iterator

from fintune.schema.errors import AdapterError
from fintune.serving.demo.forecast import label_line, write_forecast
from fintune.serving.demo.models import DemoModels
from fintune.serving.demo.sentiment import label_text, prediction_lines
from fintune.serving.predictor import Predictor
from fintune.trees.prefix_tree import IntArray

Pair = tuple[str, str]


def both(models: DemoModels) -> tuple[Predictor, Predictor]:
    """The base and what was trained on it.

    Raises:
        AdapterError: there is no adapter that could be switched off.
    """
    if models.base is None:
        raise AdapterError(
            f"{models.name} has no adapter that could be switched off.", "Start `fintune demo` with a LoRA run."
        )
    return models.base, models.main


def compare_labels(models: DemoModels, text: str) -> Pair:
    """What base and adapter say of a text."""
    base, main = both(models)
    return prediction_lines(label_text(base, text)), prediction_lines(label_text(main, text))


def compare_forecasts(models: DemoModels, prompt: IntArray, *, max_new_tokens: int) -> Iterator[Pair]:
    """What base and adapter forecast, as it is written, each with its label at the end."""
    base, main = both(models)
    first = ""
    for first in _with_label(base, prompt, max_new_tokens):
        yield first, ""
    for second in _with_label(main, prompt, max_new_tokens):
        yield first, second


def _with_label(predictor: Predictor, prompt: IntArray, max_new_tokens: int) -> Iterator[str]:
    answer = ""
    for answer in write_forecast(predictor, prompt, max_new_tokens=max_new_tokens):
        yield answer
    yield f"{answer}\n\n({label_line(answer)})"
