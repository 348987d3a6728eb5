"""What a week shows: adjusted prices, news in their week, outcomes; and that none of it knows its future."""

from collections import Counter
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.tasks.weekly.conftest import some_history, trading_days

from fintune.schema.errors import DataError
from fintune.tasks.weekly import (
    History,
    News,
    PriceHistory,
    WeekOptions,
    build_week,
    build_weeks,
    cutoff,
    cutoff_day,
    find_lookahead,
    forecast_dates,
    require_no_lookahead,
    week_row,
)
from fintune.tasks.weekly.history import dated_news, known_path, session_prices
from fintune.tasks.weekly.prompts import body_of
from fintune.tasks.weekly.tables import SplitDays, weekly_tables
from fintune.tasks.weekly.weeks import next_return

OPTIONS = WeekOptions(past_weeks=2, news_per_week=3)
DATES = forecast_dates(date(2015, 1, 25), date(2015, 3, 15))


def prompt_bytes(week):
    row = week_row(week)
    return "\0".join(body_of(row, layout) for layout in ("fingpt", "market", "short")).encode()


def with_other_future(history, forecast_date, seed):
    """The history with everything after the cut-off replaced: prices, splits, dividends, news and reports."""
    day, moment = cutoff_day(forecast_date), cutoff(forecast_date)
    past, other = history.until(day, moment), some_history(seed)
    late = [i for i, one in enumerate(other.prices.days) if one > day]
    prices = PriceHistory(
        (*past.prices.days, *(other.prices.days[i] for i in late)),
        np.concatenate([past.prices.close_D, 7 * other.prices.close_D[late]]),
        np.concatenate([past.prices.splits_D, other.prices.splits_D[late]]),
        np.concatenate([past.prices.dividends_D, other.prices.dividends_D[late]]),
        history.prices.rebased,
    )
    news = tuple(one for one in other.news if one.published > moment)
    reports = tuple(one for one in other.reports if one.known > moment)
    return replace(history, prices=prices, news=past.news + news, reports=past.reports + reports)


@given(
    seed=st.integers(0, 10**6), other=st.integers(0, 10**6), which=st.integers(0, len(DATES) - 1), rebased=st.booleans()
)
def test_a_prompt_is_the_same_bytes_when_the_future_is_deleted_or_replaced(seed, other, which, rebased):
    history, forecast_date = some_history(seed, rebased=rebased), DATES[which]
    whole = build_week(history, forecast_date, OPTIONS)
    deleted = build_week(history.until(cutoff_day(forecast_date), cutoff(forecast_date)), forecast_date, OPTIONS)
    replaced = build_week(with_other_future(history, forecast_date, other), forecast_date, OPTIONS)
    assert prompt_bytes(whole) == prompt_bytes(deleted) == prompt_bytes(replaced)
    assert whole.change is not None and deleted.change is None
    assert not find_lookahead([whole], history, lambda past, day: build_week(past, day, OPTIONS))
    # The past, in contrast, is to be seen.
    prices = replace(history.prices, close_D=history.prices.close_D * np.linspace(1, 2, len(history.prices.days)))
    assert prompt_bytes(build_week(replace(history, prices=prices), forecast_date, OPTIONS)) != prompt_bytes(whole)


# --- planted look-ahead --------------------------------------------------------------------------------------------


def peeks_at_prices(history, forecast_date):
    """Shows the price of the session after the cut-off as the last one."""
    week = build_week(history, forecast_date, OPTIONS)
    later = [i for i, day in enumerate(history.prices.days) if day > cutoff_day(forecast_date)]
    if not later:
        return week
    last = replace(week.weeks[-1], last=float(history.prices.close_D[later[0]]))
    return replace(week, weeks=(*week.weeks[:-1], last))


def adjusts_for_every_split(history, forecast_date):
    """Shows the path as a vendor would adjust it today."""
    week = build_week(history, forecast_date, OPTIONS)
    level = dict(zip(history.prices.days, known_path(history.prices), strict=True))
    weeks = [replace(one, first=float(level[one.first_day]), last=float(level[one.last_day])) for one in week.weeks]
    return replace(week, weeks=tuple(weeks))


def draws_by_all_news(history, forecast_date):
    """Draws headlines by a seed that depends on how many there will ever be."""
    week = build_week(history, forecast_date, OPTIONS)
    last = replace(week.weeks[-1], news=week.weeks[-1].news[: len(history.news) % 3])
    return replace(week, weeks=(*week.weeks[:-1], last))


def forgets_the_close(history, forecast_date):
    """Takes news up to the end of the forecast date, Friday night and the weekend included."""
    moment = datetime.combine(forecast_date + timedelta(days=1), datetime.min.time(), UTC)
    week = build_week(history, forecast_date, OPTIONS)
    late = [one for one in history.news if week.cutoff < one.published <= moment]
    last = replace(week.weeks[-1], news=(*week.weeks[-1].news, *late))
    return replace(week, weeks=(*week.weeks[:-1], last))


@pytest.mark.parametrize("build", [peeks_at_prices, adjusts_for_every_split, draws_by_all_news, forgets_the_close])
def test_a_builder_that_peeks_is_caught(build):
    history = some_history(11, n_news=200)
    weeks = [build(history, day) for day in DATES]
    found = find_lookahead(weeks, history, build)
    assert found and {one.ticker for one in found} == {"ABC"}
    with pytest.raises(DataError, match=r"weekly prompts of ABC know their future; the first is ABC at 2015-"):
        require_no_lookahead(weeks, history, build)


def test_a_headline_or_price_or_report_from_after_the_cutoff_is_caught():
    history, forecast_date = some_history(5), DATES[3]
    week = build_week(history, forecast_date, OPTIONS)
    last = week.weeks[-1]
    after = News(week.cutoff + timedelta(minutes=1), "Tomorrow's news")
    monday = str(forecast_date + timedelta(days=1))
    planted = {
        "news of 2015-02-13": replace(week, weeks=(replace(last, news=(after,)),)),
        f"a price of {monday}": replace(week, weeks=(replace(last, last_day=monday),)),
        "financials that were made public": replace(week, reported_known=after.published),
    }
    for expected, one in planted.items():
        assert any(expected in str(breach) for breach in find_lookahead([one], history, lambda *_, week=one: week))
    assert not find_lookahead([week], history, lambda past, day: build_week(past, day, OPTIONS))


# --- prices --------------------------------------------------------------------------------------------------------


def wealth_of_a_share(prices):
    """What one share grows to when dividends buy shares at the close before the payment, less the payment."""
    shares, values = 1.0, []
    for number, close in enumerate(prices.close_D):
        if number:
            paid = prices.dividends_D[number]
            shares *= 1 + paid / (prices.close_D[number - 1] - paid)
            shares *= prices.splits_D[number]
        values.append(shares * close)
    return np.array(values)


@given(seed=st.integers(0, 10**6))
def test_adjusted_paths_grow_as_a_holders_wealth(seed):
    prices = some_history(seed).prices
    path, wealth = known_path(prices), wealth_of_a_share(prices)
    np.testing.assert_allclose(path / path[0], wealth / wealth[0])
    assert path[-1] == prices.close_D[-1], "the last close stands as it was traded"


def test_the_outcome_is_the_total_return_from_friday_to_friday():
    history = some_history(8)
    for forecast_date in DATES:
        start, end = cutoff_day(forecast_date), cutoff_day(forecast_date + timedelta(days=7))
        window = history.prices.between(start, end)
        wealth = wealth_of_a_share(window)
        assert next_return(history.prices, forecast_date) == pytest.approx(wealth[-1] / wealth[0] - 1)
    assert next_return(history.prices, date(2015, 6, 7)) is None


def test_a_split_halves_the_shown_past_but_not_the_return():
    days = trading_days(20)
    close = np.array([100.0] * 10 + [50.0] * 10)
    splits = np.ones(20)
    splits[10] = 2
    prices = PriceHistory(days, close, splits, np.zeros(20))
    before, after = (build_week(History("ABC", prices), day, WeekOptions(past_weeks=1)) for day in DATES[:2])
    assert days[10] == "2015-01-20" and str(DATES[0]) == "2015-01-25"
    assert (before.weeks[0].first, before.weeks[0].last, before.change) == (50.0, 50.0, 0.0)
    earlier = build_week(History("ABC", prices), date(2015, 1, 18), WeekOptions(past_weeks=1))
    assert (earlier.weeks[0].first, earlier.change) == (100.0, 0.0), "before the split nobody knew of it"
    assert after.weeks[0].first == 50.0


def test_rebased_paths_start_at_100_whatever_was_adjusted_later():
    history = some_history(4, rebased=True)
    half = replace(history, prices=replace(history.prices, close_D=history.prices.close_D / 2))
    one, other = (build_week(each, DATES[2], OPTIONS) for each in (history, half))
    assert one == other and one.weeks[0].first == 100.0


def test_prices_of_days_without_a_session_are_dropped_and_counted():
    dropped = Counter()
    prices = PriceHistory(
        ("2015-01-02", "2015-01-03", "2015-01-05", "2015-01-06"),
        np.array([1.0, 2.0, 0.0, np.nan]),
        np.ones(4),
        np.zeros(4),
    )
    assert session_prices(prices, dropped).days == ("2015-01-02",)
    assert dropped == {"prices of days without a session": 1, "prices that are missing or not above zero": 2}


def test_a_stock_that_is_not_traded_has_no_week():
    history, dropped = some_history(6), Counter()
    ended = replace(history, prices=history.prices.until(cutoff_day(DATES[2])))
    weeks = list(build_weeks(ended, DATES, OPTIONS, dropped))
    assert [week.date for week in weeks] == [str(day) for day in DATES[:2]]
    assert dropped["weeks whose next week has no price"] == 1
    assert dropped["weeks without a price at the end of each week in sight"] == len(DATES) - 3


# --- news ----------------------------------------------------------------------------------------------------------


def test_after_hours_news_belong_to_the_next_week():
    friday = datetime(2015, 2, 6, tzinfo=UTC)  # closes at 21:00 UTC
    news = tuple(
        News(friday + timedelta(hours=hours), name)
        for hours, name in ((20.9, "before the close"), (21.1, "after hours"), (40, "on Saturday"))
    )
    history = replace(some_history(1), news=news)
    of_week = {
        day: [one.headline for past in build_week(history, day, WeekOptions(past_weeks=1)).weeks for one in past.news]
        for day in (date(2015, 2, 8), date(2015, 2, 15))
    }
    assert of_week == {
        date(2015, 2, 8): ["before the close"],
        date(2015, 2, 15): ["after hours", "on Saturday"],
    }


def test_undated_and_repeated_news_are_dropped_and_counted():
    known, dropped = datetime(2015, 3, 1, tzinfo=UTC), Counter()
    rows = [
        (None, "undated", ""),
        (known, " ", "no headline"),
        (known, "kept", "with  blanks"),
        (known, "kept", "again"),
    ]
    assert dated_news(rows, dropped) == (News(known, "kept", "with blanks"),)
    assert sorted(dropped.values()) == [1, 1, 1] and sum("date" in reason for reason in dropped) == 1


def test_headlines_are_drawn_up_to_the_cap_in_order_and_retweets_count_once():
    history = some_history(9, n_news=300)
    week = build_week(history, DATES[4], WeekOptions(past_weeks=1, news_per_week=4))
    shown = week.weeks[0]
    assert len(shown.news) == 4 < shown.n_news
    assert [one.published for one in shown.news] == sorted(one.published for one in shown.news)
    moment = week.cutoff - timedelta(hours=3)
    tweets = tuple(News(moment + timedelta(seconds=i), "RT: Buy $ABC!" if i else "rt buy $abc") for i in range(9))
    (repeated,) = build_week(replace(history, news=tweets), DATES[4], WeekOptions(past_weeks=1)).weeks
    assert len(repeated.news) == 1 and repeated.n_news == 9


# --- splits --------------------------------------------------------------------------------------------------------


def test_splits_are_in_order_with_an_embargo_and_everything_is_counted():
    history, dropped = some_history(2), Counter()
    days = SplitDays(DATES[0], {"train": DATES[2], "validation": DATES[4], "test": DATES[-1] + timedelta(days=7)})
    tables = weekly_tables([history], days, OPTIONS, "made up", dropped)
    outcome_ends = {split: [row["period"][-10:] for row in table.rows] for split, table in tables.items()}
    starts = {split: [row["date"] for row in table.rows] for split, table in tables.items()}
    order = ("train", "validation", "test")
    for earlier, later in zip(order, order[1:], strict=False):
        gap = date.fromisoformat(min(starts[later])) - date.fromisoformat(max(outcome_ends[earlier]))
        assert gap >= timedelta(days=7)
    assert sum(map(len, starts.values())) + sum(dropped.values()) == len(
        forecast_dates(days.first, max(days.last.values()))
    )
    assert any("weeks between two splits" in note for note in tables["test"].notes)
