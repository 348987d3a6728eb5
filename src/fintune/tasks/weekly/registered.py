"""The weekly tasks by name: each data set as up or down, as twelve ranges (``_bins``) and in words (``_forecast``)."""

from __future__ import annotations

from datetime import date
from typing import Any

from fintune.metrics.return_bins import LABELS
from fintune.tasks.registry import register
from fintune.tasks.splits import LATEST
from fintune.tasks.weekly.collected import collected_histories
from fintune.tasks.weekly.headlines import headline_histories
from fintune.tasks.weekly.prompts import Form, WeeklyPrompt
from fintune.tasks.weekly.published import HUB_ID, complete_published, read_published
from fintune.tasks.weekly.stocknet import stocknet_histories
from fintune.tasks.weekly.tables import SplitDays, weekly_builder
from fintune.tasks.weekly.task import PUBLISHED, TEACHER, WeeklyTask, choices_of, prompts_of
from fintune.tasks.weekly.weeks import WeekOptions

FORMS: tuple[tuple[Form, str, str], ...] = (
    ("sign", "", "up or down"),
    ("bins", "_bins", f"one of {len(LABELS)} ranges"),
    ("forecast", "_forecast", "a forecast in words"),
)
TARGETS = ("extractive", "label", TEACHER)
_POINT_IN_TIME = (
    "Forecasts are made on Sundays from what was published by the close of the last session of the New York Stock "
    "Exchange; the outcome is the total return until the next Sunday's. Between two splits a week is left out."
)
ACL18_DAYS = SplitDays(
    date(2014, 1, 26),
    {"train": date(2015, 7, 31), "validation": date(2015, 9, 30), "test": date(2015, 12, 31)},
)
SP500_DAYS = SplitDays(
    date(2018, 1, 14),
    {"train": date(2018, 12, 31), "validation": date(2019, 2, 28), "test": date(2020, 1, 10)},
)


def _register(name: str, *, prompts: dict[str, WeeklyPrompt] | None = None, split_note: str, **fields: Any) -> None:
    """One data set in its three forms."""
    description, published = fields.pop("description"), fields.pop("published", False)
    build, hub_id = fields.pop("build", None), fields.pop("hub_id", None)
    for form, suffix, asked in FORMS:
        configs = (((PUBLISHED,) if published else ()) + TARGETS) if form == "forecast" else ()
        keys = configs or ("",)
        register(
            WeeklyTask(
                name=f"{name}{suffix}",
                version="1",
                form=form,
                description=f"{description}, as {asked}.",
                prompts=prompts_of(form) | (prompts or {} if form == "forecast" else {}),
                default_prompt="fingpt",
                choices=choices_of(form),
                configs=configs,
                builders=dict.fromkeys(keys, build) if build is not None else {},
                hub_ids=dict.fromkeys(keys, hub_id) if hub_id is not None else {},
                split_rule=dict.fromkeys(keys, LATEST) if published else {},
                split_notes=dict.fromkeys(keys, split_note),
                protocols=("robust", "flare_strict") if form == "forecast" else ("robust",),
                max_answer_tokens=512 if form == "forecast" else 16,
                **fields,
            )
        )


_register(
    "weekly_acl18",
    description="The next week of 88 stocks from tweets and prices, 2014 and 2015",
    build=weekly_builder(stocknet_histories, ACL18_DAYS, WeekOptions(least_news=1)),
    folder="stock_acl18",
    licence="MIT",
    citation="Xu and Cohen, 'Stock Movement Prediction from Tweets and Historical Prices', ACL 2018; made into weeks "
    "after Yang, Liu and Wang, 'FinGPT', arXiv 2306.06031.",
    split_note=f"The corpus's dates: train until 2015-07-31, validation until 2015-09-30, test until 2015-12-31. "
    f"{_POINT_IN_TIME} Weeks without a tweet in sight are left out.",
)
_register(
    "weekly_sp500",
    description="The next week of companies of the S&P 500 from prices and dated headlines, 2018 and 2019",
    build=weekly_builder(headline_histories, SP500_DAYS, WeekOptions(least_news=1)),
    folder="ohlcv_sp500_2015_2020",
    licence="not stated",
    citation="Prices of Yahoo Finance; headlines of CNBC, the Guardian and Reuters (Kaggle, 'Financial News Headlines "
    "Data').",
    split_note=f"By time: train is 2018, validation until 2019-02-28, test until 2020-01-10. {_POINT_IN_TIME} "
    "A headline without a time counts as published at the end of its day. Stocks are those of a list of today's "
    "members (survivors), and a headline is about a company when it has its name.",
)
_register(
    "weekly",
    description="The next week of the stocks in a folder that you collected",
    build=weekly_builder(collected_histories, None, WeekOptions()),
    folder="collected",
    licence="not known: that of the sources you collected from",
    citation="Your own collection; after Yang, Liu and Wang, 'FinGPT', arXiv 2306.06031.",
    split_note=f"By time: the last fifth of the days is test, the tenth before it validation. {_POINT_IN_TIME}",
)
_VERBATIM = WeeklyPrompt(
    "published",
    "",
    "\n\nBased on all the information before <start>, ... the <ticker> cryptocurrency price movement ...",
    source="FinGPT-Forecaster, word for word with its faults",
    verbatim=True,
)
_register(
    "dow30",
    description="FinGPT-Forecaster's published set: the next week of the Dow 30, May 2023 to May 2024",
    prompts={"published": _VERBATIM},
    published=True,
    hub_id=HUB_ID,
    folder="forecaster_dow30",
    licence="not stated",
    citation="Yang, Liu and Wang, 'FinGPT: Open-Source Financial Large Language Models', arXiv 2306.06031.",
    split_note="The published split; validation is the latest tenth of the training weeks. Training weeks that "
    "reach into the test weeks are left out. Scored is the real return, read from the prices of later prompts; of the "
    "last week, which no later prompt shows, it is the published label.",
    read_row=read_published,
    complete=complete_published,
)
