"""The forecast tab without its page: data by ticker, the prompt of one week, and the answer as it is written.

Enters: what a visitor typed. Leaves: the prompt as the model reads it, growing text, the label in it and, where later
prices are known, what the week brought. Every mistake is a ``DataError`` of one sentence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from importlib.resources import files
from pathlib import Path

from fintune.metrics.forecast_answers import ForecastAnswer, parse_robust
from fintune.metrics.return_bins import phrase_of
from fintune.schema.errors import DataError
from fintune.schema.example import Example
from fintune.serving.predictor import Predictor
from fintune.serving.streaming import stream_answer
from fintune.tasks.weekly import (
    History,
    Week,
    WeekOptions,
    build_week,
    collected_histories,
    forecast_dates,
    week_row,
)
from fintune.tasks.weekly.calendar import WEEK
from fintune.tasks.weekly.prompts import WeeklyPrompt, body_of
from fintune.tasks.weekly.task import prompts_of
from fintune.trees.prefix_tree import IntArray

MOST_WEEKS = 8
_TASK_END = "_forecast"


@dataclass(frozen=True)
class ForecastData:
    """What forecasts are made from.

    Attributes:
        histories: by ticker.
        source: where they come from, in words.
        left_out: what could not be used, each with its count.
        made_up: companies, news and prices are invented.
    """

    histories: Mapping[str, History]
    source: str
    left_out: tuple[str, ...] = ()
    made_up: bool = False

    def first_question(self) -> tuple[str, str]:
        """A ticker, and the last Sunday whose next week is known; to begin with."""
        ticker, history = next(iter(self.histories.items()))
        first, last = (date.fromisoformat(history.prices.days[at]) for at in (0, -1))
        sundays = forecast_dates(first, last - WEEK)
        return ticker, str(sundays[-1] if sundays else last)


@dataclass(frozen=True)
class Asked:
    """One question of the tab, as typed."""

    ticker: str
    day: str
    past_weeks: int = 3
    financials: bool = True


@dataclass(frozen=True)
class ReadPrompt:
    """A prompt as the model reads it: ``(L,)`` tokens, the same as text with its control tokens, and remarks."""

    tokens: IntArray
    text: str
    notes: tuple[str, ...] = ()


def sample_folder() -> Path:
    """The shipped sample: two invented companies."""
    return Path(str(files("fintune.serving.demo"))) / "sample"


def read_data(folder: Path | None) -> ForecastData:
    """The histories of a collected folder; of the shipped sample when None.

    Raises:
        DataError: it holds no collected prices and news, or they cannot be read.
    """
    dropped: Counter[str] = Counter()
    place = sample_folder() if folder is None else folder.expanduser()
    histories = collected_histories(place, dropped)
    priced = {one.ticker.upper(): one for one in histories or () if one.prices.days}
    if not priced:
        raise DataError(
            f"{place} holds no prices.csv with prices and no news.jsonl of a collection.",
            "Name a folder that `fintune collect` filled.",
        )
    source = str(folder) if folder is not None else "the shipped sample of invented companies"
    left_out = tuple(f"{count:,} {reason}" for reason, count in sorted(dropped.items()) if count)
    return ForecastData(priced, source, left_out, made_up=folder is None)


def find_week(data: ForecastData, asked: Asked) -> tuple[History, Week]:
    """The history that was asked for, and its week.

    Raises:
        DataError: the ticker is unknown, the date is none or outside of the prices, or there are no such weeks.
    """
    ticker = asked.ticker.strip().upper()
    if ticker not in data.histories:
        known = list(data.histories)
        more = f" and {len(known) - 10} more" if len(known) > 10 else ""
        said = f"There are no data of the ticker {ticker}." if ticker else "There is no ticker."
        raise DataError(said, f"Known are {', '.join(known[:10])}{more}.")
    try:
        day = date.fromisoformat(asked.day.strip())
    except ValueError as error:
        raise DataError(f"{asked.day.strip() or 'Nothing'} is not a date.", "Write it as 2024-03-31.") from error
    if not 1 <= asked.past_weeks <= MOST_WEEKS:
        raise DataError(f"A prompt shows 1 to {MOST_WEEKS} weeks.", "Choose fewer or more.")
    history = data.histories[ticker]
    week = build_week(history, day, WeekOptions(past_weeks=asked.past_weeks))
    if isinstance(week, str):
        first, last = history.prices.days[0], history.prices.days[-1]
        raise DataError(
            f"{ticker} lacks prices for the {asked.past_weeks} weeks before {day}.",
            f"Its prices run from {first} to {last}.",
        )
    return history, week


def read_prompt(predictor: Predictor, week: Week, *, financials: bool) -> ReadPrompt:
    """The week under the prompt the model was trained with, else FinGPT's.

    Raises:
        DataError: nothing of the week fits the model beside the question.
    """
    wording = forecast_wording(predictor)
    row = week_row(week)
    if not financials:
        row["financials"] = {}
    messages = wording.messages(body_of(row, wording.layout), row)
    chat = predictor.scorer.chat
    encoded = chat.encode(Example(str(row["id"]), "forecast", messages, ""))
    if encoded is None:
        raise DataError(f"The prompt does not fit into the model's {chat.max_length:,} tokens.", "Ask for fewer weeks.")
    notes = [f"Prompt `{wording.name}`, {len(encoded.prompt):,} tokens."]
    if encoded.truncated:
        notes.append(f"It was shortened to the {chat.max_length:,} tokens that the model reads.")
    if wording.layout == "short":
        notes.append("It never shows financials.")
    return ReadPrompt(encoded.prompt, chat.tokenizer.decode(encoded.prompt.tolist()), tuple(notes))


def forecast_wording(predictor: Predictor) -> WeeklyPrompt:
    """The wording of the run's first forecast in words, where it has one that any data can fill."""
    known = prompts_of("forecast")
    trained = (section.prompt for section in predictor.tasks if section.name.endswith(_TASK_END))
    return known[next((prompt for prompt in trained if prompt in known), None) or "fingpt"]


def write_forecast(predictor: Predictor, prompt: IntArray, *, max_new_tokens: int) -> Iterator[str]:
    """The answer as it grows, as far as the model's context goes.

    Raises:
        DataError: the prompt leaves no room for an answer.
    """
    context = getattr(predictor.scorer.model.model.config, "max_position_embeddings", None)
    room = max_new_tokens if context is None else min(max_new_tokens, int(context) - len(prompt))
    if room < 1:
        raise DataError(f"The prompt of {len(prompt):,} tokens leaves no room for an answer.", "Ask for fewer weeks.")
    yield from stream_answer(predictor, prompt, max_new_tokens=room)


def label_line(answer: str) -> str:
    """The label in an answer, as a sentence; why there is none where there is none."""
    return _label_of(parse_robust(answer))


def _label_of(found: ForecastAnswer) -> str:
    if found.direction is None:
        return f"No label could be read: {found.missing}."
    if found.bin is not None:
        return f"{found.bin}: {phrase_of(found.bin)}"
    return {1: "Up, by no stated range", -1: "Down, by no stated range", 0: "No change"}[found.direction]


def outcome_line(week: Week) -> str:
    """What the week brought, which the prompt does not hold."""
    if week.change is None or week.label is None:
        return "What the week brought is not known."
    return f"What the week brought: {week.label}, {week.change:+.2%}. The model was not shown that."
