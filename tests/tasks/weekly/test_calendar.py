"""Sessions and cut-offs against facts about the exchange."""

from datetime import UTC, date, datetime

import pytest

from fintune.schema.errors import DataError
from fintune.tasks.weekly.calendar import cutoff, cutoff_day, end_of_day, forecast_dates, period_of, sessions


@pytest.mark.parametrize(
    "day",
    [
        "2012-10-29",  # hurricane Sandy
        "2012-10-30",
        "2018-12-05",  # mourning for G. H. W. Bush
        "2015-04-03",  # Good Friday
        "2015-07-03",  # Independence Day, observed
        "2022-06-20",  # Juneteenth, observed since 2022
        "2015-10-03",  # a Saturday
    ],
)
def test_days_without_a_session(day):
    assert not sessions().is_session(day)


@pytest.mark.parametrize("day", ["2015-10-01", "2021-06-18", "2018-12-06", "2012-10-31"])
def test_days_with_a_session(day):
    assert sessions().is_session(day)


@pytest.mark.parametrize(
    ("day", "close"),
    [
        (date(2015, 10, 4), datetime(2015, 10, 2, 20, tzinfo=UTC)),  # a Sunday in summer time: Friday 16:00 New York
        (date(2015, 1, 11), datetime(2015, 1, 9, 21, tzinfo=UTC)),  # in winter time
        (date(2015, 11, 29), datetime(2015, 11, 27, 18, tzinfo=UTC)),  # the day after Thanksgiving closes at 13:00
        (date(2015, 4, 5), datetime(2015, 4, 2, 20, tzinfo=UTC)),  # Easter: Thursday
        (date(2015, 10, 2), datetime(2015, 10, 2, 20, tzinfo=UTC)),  # a session itself
    ],
)
def test_a_forecast_looks_up_to_the_last_close(day, close):
    assert cutoff(day) == close and cutoff_day(day) == str(close.date())


def test_forecast_dates_are_the_published_sets_sundays():
    dates = forecast_dates(date(2024, 2, 20), date(2024, 5, 1))
    assert [str(day) for day in dates[:2]] == ["2024-02-25", "2024-03-03"] and str(dates[-1]) == "2024-04-28"
    assert period_of(dates[0]) == "2024-02-25 to 2024-03-03"
    assert forecast_dates(date(2024, 2, 25), date(2024, 2, 25)) == (date(2024, 2, 25),)
    assert forecast_dates(date(2024, 2, 26), date(2024, 2, 25)) == ()


def test_a_day_without_a_time_ends_after_its_session():
    friday = date(2015, 10, 2)
    assert end_of_day(friday) == datetime(2015, 10, 3, 3, 59, 59, tzinfo=UTC) > cutoff(date(2015, 10, 4))


def test_dates_outside_the_calendar_are_refused():
    with pytest.raises(DataError, match="outside the exchange's calendar"):
        cutoff(date(1901, 1, 1))
