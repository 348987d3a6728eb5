"""What a model is asked about a stock's next week: FinGPT-Forecaster's prompt, a question over market information, and
a short form for small models.

Enters: a row of ``tables.py`` or of the published set. Leaves: chat messages, for each model's own template. The
wording of headings, price sentences and instruction is that of FinGPT/fingpt-forecaster-dow30-202305-202405; its
introductions state market values of the day of collection and are not repeated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from fintune.schema.example import Message
from fintune.tasks.base import Prompt

Form = Literal["sign", "bins", "forecast"]
"""What is asked for: up or down; one of twelve ranges; or a forecast in words."""
SECTIONS = ("[Positive Developments]:", "[Potential Concerns]:", "[Prediction & Analysis]")
SECTIONS_SYSTEM = (
    "You are a seasoned stock market analyst. Your task is to list the positive developments and potential concerns "
    "for companies based on relevant news and basic financials from the past weeks, then provide an analysis and "
    "prediction for the companies' stock price movement for the upcoming week. Your answer format should be as "
    "follows:\n\n[Positive Developments]:\n1. ...\n\n[Potential Concerns]:\n1. ...\n\n[Prediction & Analysis]\n"
    "Prediction: ...\nAnalysis: ..."
)
"""The published set's, as it is."""
PLAIN_SYSTEM = (
    "You are a seasoned stock market analyst. From relevant news and basic financials of the past weeks you predict "
    "the stock price movement of companies for the upcoming week."
)
INSTRUCTION = (
    "Based on all the information before <start>, let's first analyze the positive developments and potential concerns "
    "for <ticker>. Come up with 2-4 most important factors respectively and keep them concise. Most factors should be "
    "inferred from company related news. Then make your prediction of the <ticker> stock price movement for next week "
    "(<start> to <end>). Provide a summary analysis to support your prediction."
)
"""The published set's, with stock where it has cryptocurrency."""
_LLAMA_2 = re.compile(r"\A(?:<s>)?\s*\[INST\]\s*(?:<<SYS>>)?|\A\s*<<SYS>>|\[/INST\]\s*\Z")
_PREDICT = "predict the <ticker> stock price movement for next week (<start> to <end>)"
_ANSWERS: Mapping[Form, str] = {
    "sign": "Answer with Up or Down alone.",
    "bins": "Answer with direction and range of the price change alone, such as Up by 1-2% or Down by more than 5%.",
    "forecast": "Answer with one line: Prediction: Up or Down by a range in percent.",
}


@dataclass(frozen=True)
class WeeklyPrompt(Prompt):
    """A wording of the weekly question; ``<ticker>``, ``<start>`` and ``<end>`` in ``after`` are filled in.

    Attributes:
        system: the system's message; '' for none.
        layout: sections as FinGPT has them, market information in sentences, or as few tokens as possible.
        verbatim: ask as the published row does, where it is one.
    """

    system: str = ""
    layout: Literal["fingpt", "market", "short"] = "fingpt"
    verbatim: bool = False

    def messages(self, body: str, row: Mapping[str, Any]) -> tuple[Message, ...]:
        """System and user turns around the body, which alone may be shortened."""
        if self.verbatim:
            return published_messages(row["prompt"])
        start, _, end = str(row["period"]).partition(" to ")
        after = self.after.replace("<ticker>", row["ticker"]).replace("<start>", start).replace("<end>", end)
        user = Message.around("user", self.before, body, after)
        return (Message("system", self.system), user) if self.system else (user,)


def weekly_prompts(form: Form, words: Sequence[str] = ()) -> dict[str, WeeklyPrompt]:
    """The named wordings for a form of answer; ``words`` are the labels as answers say them."""
    said = tuple(words)
    based = f"\n\nBased on all the information before <start>, {_PREDICT}. {_ANSWERS[form]}"
    why = "Give your reasons first. " if form == "forecast" else ""
    source = "fintune, after FinGPT-Forecaster's prompt"
    one_line = WeeklyPrompt("fingpt", "", based, said, source=source, system=PLAIN_SYSTEM)
    prompts = [
        one_line,
        WeeklyPrompt(
            "market",
            "Market information: ",
            f"\n\nQuestion: Will the price of <ticker> rise or fall from <start> to <end>? {why}{_ANSWERS[form]}",
            said,
            source="fintune",
            layout="market",
        ),
        WeeklyPrompt("short", "", f"\nNext week? {_ANSWERS[form]}", said, source="fintune", layout="short"),
    ]
    if form == "forecast":
        whole = "FinGPT-Forecaster; a stock's price, not a cryptocurrency's"
        prompts[0] = WeeklyPrompt("fingpt", "", f"\n\n{INSTRUCTION}", source=whole, system=SECTIONS_SYSTEM)
        prompts.append(replace(one_line, name="line"))
    return {prompt.name: prompt for prompt in prompts}


def published_messages(prompt: str) -> tuple[Message, ...]:
    """System and user turns of a prompt that was written for Llama 2 (``[INST]<<SYS>>``), word for word."""
    bare = _LLAMA_2.sub("", prompt).strip()
    system, _, user = bare.partition("<</SYS>>")
    facts, mark, asked = user.strip().rpartition("\n\nBased on all the information")
    turn = Message.around("user", "", facts, f"{mark}{asked}") if facts else Message("user", user.strip())
    return Message("system", system.strip()), turn


def body_of(row: Mapping[str, Any], layout: str) -> str:
    """The facts of a row, as a layout has them."""
    return {"fingpt": _sections, "market": _sentences, "short": _brief}[layout](row)


def _sections(row: Mapping[str, Any]) -> str:
    parts = ["[Company Introduction]:", introduction(row)]
    for week in row["weeks"]:
        parts.append(f"{price_sentence(row['ticker'], week)} News during this period are listed below:")
        parts += [_told(one) for one in week["news"]] or ["No relative news reported."]
    parts += _financials(row)
    return "\n\n".join(parts)


def introduction(row: Mapping[str, Any]) -> str:
    """The company in a sentence, from what does not change from week to week."""
    profile = row["profile"]
    name, sector, exchange = profile.get("name") or row["ticker"], profile.get("sector"), profile.get("exchange")
    said = (
        f"{name} is a company{f' in the {sector} sector' if sector else ''}, trading under the ticker {row['ticker']}"
    )
    said += f" on the {exchange}." if exchange else "."
    note = (
        " Prices below are an index, adjusted for splits and dividends, that starts at 100." if row["rebased"] else ""
    )
    return said + note


def price_sentence(ticker: str, week: Mapping[str, Any]) -> str:
    """How the price went from the start of a week to its end."""
    way = "increased" if week["last"] > week["first"] else "decreased" if week["last"] < week["first"] else "stayed"
    return (
        f"From {week['start']} to {week['end']}, {ticker}'s stock price {way} from {week['first']:.2f} to "
        f"{week['last']:.2f}."
    )


def _told(one: Mapping[str, str]) -> str:
    summary = f"\n[Summary]: {one['summary']}" if one.get("summary") else ""
    return f"[Headline]: {one['headline']}{summary}"


def _financials(row: Mapping[str, Any]) -> list[str]:
    if not row["financials"]:
        return ["[Basic Financials]:", "No basic financial reported."]
    told = "\n".join(f"{name}: {value}" for name, value in row["financials"].items())
    intro = f"Some recent basic financials of {row['ticker']}, reported at {row['reported']}, are presented below:"
    return [intro, "[Basic Financials]:", told]


def _sentences(row: Mapping[str, Any]) -> str:
    moves = " ".join(price_sentence(row["ticker"], week) for week in row["weeks"])
    news = [f"- {week['end']}: {one['headline']}" for week in row["weeks"] for one in week["news"]]
    figures = "; ".join(f"{name} {value}" for name, value in row["financials"].items())
    return "\n".join(
        [
            f"{introduction(row)} {moves}",
            *(["News:", *news] if news else ["There is no news."]),
            *([f"Financials reported at {row['reported']}: {figures}."] if figures else []),
        ]
    )


def _brief(row: Mapping[str, Any]) -> str:
    """Weekly moves and the headlines of all weeks, the latest first, which a limit of length cuts last."""
    moves = " ".join(f"{100 * (week['last'] / week['first'] - 1):+.1f}" for week in row["weeks"])
    news = [one["headline"] for week in reversed(row["weeks"]) for one in reversed(week["news"])]
    return f"${row['ticker'].lower()} weekly moves in percent: {moves}\nNews: {' | '.join(news) if news else 'none'}"
