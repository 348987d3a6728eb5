"""The backtest's arithmetic by hand and in closed form, and what must hold whatever the prices."""

from dataclasses import replace
from datetime import date, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fintune.forecasting.assessment import EQUAL, HOLD, Settings, assess
from fintune.forecasting.backtest import Costs, forecast_weights, make_plan, run, weights_of
from fintune.forecasting.performance import NOT_DISTINGUISHABLE, difference_p, judged, performance
from fintune.forecasting.prices import prices_of
from fintune.forecasting.signals import Signal
from fintune.metrics.sharpe import MIN_PERIODS
from fintune.schema.errors import DataError
from tests.forecasting.prices import random_prices, random_table, table

FREE = Costs(0, 0)
TEN = Costs(5, 5)
SUNDAY = date(2024, 1, 7)  # business days from Monday, 2024-01-01 on: the first week is seen, the next is traded


def signal(symbol, direction, made=SUNDAY, magnitude=None, weeks=1):
    return Signal(symbol, made, made + timedelta(weeks=weeks), direction, magnitude)


def weekly(choose, n_weeks, symbols=("A", "B", "C")):
    return [
        signal(symbol, choose(symbol, week), SUNDAY + timedelta(weeks=week))
        for week in range(n_weeks)
        for symbol in symbols
    ]


def traded(signals, prices, costs=FREE, rule="sign", **options):
    plan = make_plan(signals, prices)
    return run(plan, prices, forecast_weights(signals, prices, rule, **options), costs)


def test_five_days_by_hand():
    """Half of the money long at 100, sold at 110; half short at 50, bought back at 45: (10% + 10%) / 2."""
    opens = {
        "A": [1, 1, 1, 1, 1, 100, 101, 102, 103, 104, 110.0],
        "B": [1, 1, 1, 1, 1, 50, 50, 49, 47, 46, 45.0],
    }
    closes = {"A": [1.0] * 5 + [100, 90, 101, 102, 103, 99], "B": [1.0] * 5 + [50, 50, 50, 50, 50, 50]}
    prices, signals = prices_of(table(opens, closes)), [signal("A", 1), signal("B", -1)]
    (week,) = traded(signals, prices).periods
    assert (week.entry, week.exit) == (date(2024, 1, 8), date(2024, 1, 15))
    assert week.net == week.gross == pytest.approx(0.10)
    # Bought: 1. Sold: 0.5 * 1.1 and 0.5 * 0.9, out of an equity of 1.1. Ten basis points of each.
    (week,) = traded(signals, prices, TEN).periods
    assert week.turnover == pytest.approx(1 + (0.55 + 0.45) / 1.1)
    assert week.net == pytest.approx((1 - 0.001) * 1.1 * (1 - 0.001 / 1.1) - 1)
    # On its second day A closes at 90: half of -10%, the deepest fall.
    equity = [value for _, value in traded(signals, prices).curve]
    assert equity == pytest.approx([1, 1, 0.95, 1.005, 1.01, 1.015, 1.10])
    assert performance("x", traded(signals, prices)).max_drawdown == pytest.approx(0.05)


def test_what_stays_in_the_portfolio_is_free():
    prices = prices_of(table({"A": [100.0] * 5 + [100] * 5 + [110] * 5 + [121] * 5}))
    signals = [signal("A", 1, SUNDAY + timedelta(weeks=week)) for week in range(2)]
    first, second = traded(signals, prices, TEN).periods
    assert (first.turnover, second.turnover) == (1, 1)  # bought in the first week, sold after the second
    assert first.net == pytest.approx(1.1 * 0.999 - 1)
    turned = traded([signals[0], replace(signals[1], direction=-1)], prices, TEN).periods
    # Turned round: 2. The short position of 1 has grown to 1.1 when it is closed, out of an equity of 0.9.
    assert [one.turnover for one in turned] == pytest.approx([1, 2 + 1.1 / 0.9])


def test_weeks_that_do_not_touch_are_closed():
    prices = prices_of(table({"A": [100.0] * 30}))
    signals = [signal("A", 1), signal("A", 1, SUNDAY + timedelta(weeks=2))]
    assert [one.turnover for one in traded(signals, prices, TEN).periods] == [2, 2]


def test_compounding_in_closed_form():
    """One stock that gains 1% at each Monday's open: buy-and-hold and always-up earn 1.01 to the power of the weeks."""
    opens = np.repeat(100 * 1.01 ** np.arange(12), 5)
    prices = prices_of(table({"A": opens}))
    found = assess({"up": weekly(lambda *_: 1, 8, ("A",))}, prices, Settings(costs=FREE))
    by_name = {one.name: one for one in (*found.strategies, *found.benchmarks)}
    for name in ("up", HOLD, EQUAL):
        assert by_name[name].total_return == pytest.approx(1.01**8 - 1)
        assert by_name[name].annual_return == pytest.approx(1.01 ** (365.25 / 7) - 1)
        assert by_name[name].hit_rate == 1 and by_name[name].sharpe is None
    assert by_name["up"].p_zero == pytest.approx(2 / 2**8 * 2)  # exact over 8 weeks, doubled by Holm's correction
    assert by_name["up"].p_hold == 1


def test_buy_and_hold_is_the_mean_of_the_stocks():
    prices = random_prices()
    signals = weekly(lambda *_: 1, 15)
    found = assess({"x": signals}, prices, Settings(costs=TEN))
    plan = make_plan(signals, prices)
    first, last = (prices.opens.iloc[at] for at in (plan.slots[0].entry, plan.slots[-1].exit))
    hold = next(one for one in found.benchmarks if one.name == HOLD)
    assert hold.total_return == pytest.approx(0.999**2 * float((last / first).mean()) - 1)


def test_weights():
    signals = [signal("A", 1, magnitude=3.0), signal("B", -1, magnitude=-1.0), signal("C", None)]
    assert weights_of(signals, "sign") == {"A": pytest.approx(1 / 3), "B": pytest.approx(-1 / 3)}
    assert weights_of(signals, "magnitude") == {"A": 0.75, "B": -0.25}
    assert weights_of(signals, "sign", long_only=True) == {"A": pytest.approx(1 / 3), "B": 0.0}
    assert weights_of([signal("A", 0, magnitude=0.0)], "magnitude") == {}


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.floats(0, 50), st.floats(0, 50))
def test_costs_never_help(seed, low, more):
    generator = np.random.default_rng(seed)
    signals = weekly(lambda *_: int(generator.integers(-1, 2)), 6)
    prices = random_prices(60, seed=seed)
    cheap, dear = (traded(signals, prices, Costs(cost, 0)) for cost in (low, low + more))
    assert all(a.net >= b.net - 1e-12 for a, b in zip(cheap.periods, dear.periods, strict=True))
    assert all(one.net <= one.gross + 1e-12 for one in dear.periods)


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_no_position_earns_nothing(seed):
    backtest = traded(weekly(lambda *_: None, 6), random_prices(60, seed=seed), TEN)
    assert [one.net for one in backtest.periods] == [0] * 6 == [one.turnover for one in backtest.periods]
    assert {value for _, value in backtest.curve} == {1.0}


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_short_mirrors_long_before_costs(seed):
    prices = random_prices(60, seed=seed)
    long, short = (traded(weekly(lambda *_, sign=sign: sign, 6), prices) for sign in (1, -1))
    assert [one.gross for one in long.periods] == pytest.approx([-one.gross for one in short.periods])


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.integers(0, 5))
def test_positions_never_depend_on_later_prices(seed, week):
    """Whatever happens after a week's entry changes neither its positions nor any earlier return."""
    frame = random_table(60, seed=seed)
    signals = weekly(lambda symbol, number: (-1) ** (number + ord(symbol)), 6)
    prices = prices_of(frame)
    plan = make_plan(signals, prices)
    entry = prices.sessions[plan.slots[week].entry]
    later = frame.assign(
        open=frame["open"].where(frame["date"] <= entry, frame["open"] * 1.7),
        close=frame["close"].where(frame["date"] < entry, frame["close"] * 0.6),
    )
    other = prices_of(later)
    positions = [forecast_weights(signals, one, "sign")(plan.slots[week]) for one in (prices, other)]
    assert positions[0] == positions[1]
    before, after = (run(plan, one, forecast_weights(signals, one, "sign"), TEN).periods for one in (prices, other))
    assert before[:week] == after[:week]


def foresight(prices, n_weeks, shift=0):
    """The sign of the return that the week ``shift`` weeks earlier brought, from entry to exit."""
    plan = make_plan(weekly(lambda *_: 1, n_weeks), prices)

    def direction(symbol, week):
        slot = plan.slots[week - shift]
        opens = prices.opens[symbol]
        return int(np.sign(opens.iloc[slot.exit] - opens.iloc[slot.entry])) if week >= shift else 0

    return weekly(direction, n_weeks)


def test_planted_foresight_wins_and_a_week_late_it_does_not():
    prices = random_prices(540, seed=5)
    settings_ = Settings(costs=FREE, n_trials=2)
    found = assess({"knows": foresight(prices, 104), "late": foresight(prices, 104, shift=1)}, prices, settings_)
    knows, late = found.strategies
    assert knows.hit_rate == 1 and knows.p_zero < 0.001 and knows.p_hold < 0.001
    assert NOT_DISTINGUISHABLE not in knows.sentence and "ahead" in knows.sentence
    assert late.p_zero > 0.05 and NOT_DISTINGUISHABLE in late.sentence
    assert knows.deflated_sharpe > 0.99 > late.deflated_sharpe


def test_trading_at_the_forecast_close_would_be_look_ahead():
    """A jump between the close that a forecast sees and the next open is not earned."""
    opens = {"A": [100.0] * 5 + [150.0] * 10}
    assert traded([signal("A", 1)], prices_of(table(opens))).periods[0].net == 0


def test_a_forecast_made_on_a_trading_day_waits_for_the_next_one():
    """Made after Friday's close: not bought at Friday's open, nor sold at that of the Friday a week later."""
    friday = date(2024, 1, 5)
    opens = {"A": [1.0] * 4 + [10.0] + [20.0] * 4 + [40.0] + [30.0] * 5}
    (week,) = traded([signal("A", 1, friday)], prices_of(table(opens))).periods
    assert (week.entry, week.exit) == (date(2024, 1, 8), date(2024, 1, 15))
    assert week.net == pytest.approx(30 / 20 - 1)


def test_returns_without_foresight_are_called_chance():
    """Over many worlds of luck the sentence is wrong about as rarely as the level promises."""
    generator = np.random.default_rng(11)
    p = [difference_p(generator.normal(0, 0.02, 12)) for _ in range(400)]
    assert 0.02 < np.mean(np.array(p) < 0.05) < 0.09


def test_sharpe_has_an_interval_from_100_weeks_on():
    prices = random_prices(560, seed=2)
    few, many = (
        assess({"x": weekly(lambda symbol, week: (-1) ** week, n)}, prices) for n in (MIN_PERIODS - 1, MIN_PERIODS)
    )
    assert few.strategies[0].sharpe.low is None and "fewer than 100" in few.notes[0]
    assert many.strategies[0].sharpe.low < many.strategies[0].sharpe.value < many.strategies[0].sharpe.high
    assert not any("fewer than" in note for note in many.notes)


def test_more_trials_deflate():
    prices, signals = random_prices(300, seed=3), weekly(lambda symbol, week: (-1) ** week, 40)
    few, many = (assess({"x": signals}, prices, Settings(n_trials=n)).strategies[0] for n in (1, 50))
    assert few.deflated_sharpe > many.deflated_sharpe
    assert few.sharpe == many.sharpe
    twice = assess({"x": signals, "y": signals}, prices, Settings(n_trials=50)).strategies
    assert [one.deflated_sharpe for one in twice] == [many.deflated_sharpe] * 2, "that two agree is no evidence"


def test_what_cannot_be_traded_is_counted():
    frame = random_table(40)
    signals = [*weekly(lambda *_: 1, 12), signal("NONE", 1)]
    found = assess({"x": signals}, prices_of(frame))
    assert found.counts["weeks traded"] == 6
    assert found.counts["forecast dates that the prices do not cover"] == 6
    assert found.counts["of these without a price at the entry"] == 1
    assert found.scores["x"].n == 3 * 6 + 3  # the seventh week ends with the table's last close, before any later open
    assert found.counts["of these without a known return"] == len(signals) - found.scores["x"].n


def test_a_stock_that_stops_trading_is_left_at_its_last_close():
    frame = table({"A": [100.0] * 5 + [100.0, 80.0] + [80.0] * 4, "B": [50.0] * 11})
    frame = frame[(frame["symbol"] == "B") | (frame["date"] <= "2024-01-09")]
    backtest = traded([signal("A", 1), signal("B", 1)], prices_of(frame))
    assert backtest.periods[0].net == pytest.approx(-0.1)


def test_overlapping_weeks_are_refused():
    signals = [signal("A", 1), signal("A", 1, SUNDAY + timedelta(days=3))]
    with pytest.raises(DataError, match="begin before"):
        make_plan(signals, random_prices())
    with pytest.raises(DataError, match="end on different days"):
        make_plan([signal("A", 1), signal("B", 1, weeks=2)], random_prices())
    with pytest.raises(DataError, match="cover no forecast week"):
        make_plan([signal("A", 1, date(2030, 1, 1))], random_prices())
    with pytest.raises(DataError, match="twice"):
        assess({"x": [signal("A", 1), signal("A", -1)]}, random_prices())


def test_baselines_learn_from_weeks_before_the_first_forecast():
    prices = random_prices(200)
    late = [
        replace(one, made=one.made + timedelta(weeks=20), until=one.until + timedelta(weeks=20))
        for one in weekly(lambda *_: 1, 10)
    ]
    found = assess({"x": late}, prices)
    # The Sundays before the first forecast (20 weeks after the 7th) that have a close: back to the 7th itself.
    assert found.counts["weeks that baselines learnt from"] == 20
    assert {"majority_sign", "last_sign", "zero_return", "linear"} < set(found.scores)
    assert {one.n for one in found.scores.values()} == {30}


def test_a_strategy_worse_than_holding_is_called_that():
    prices = prices_of(table({"A": np.repeat(100 * 1.01 ** np.arange(20), 5)}))
    signals = weekly(lambda *_: -1, 12, ("A",))
    hold = traded(weekly(lambda *_: 1, 12, ("A",)), prices)
    (found,) = judged({"short": traded(signals, prices)}, hold, n_trials=1)
    assert found.sentence.startswith("short: behind earning nothing (p") and "and buy-and-hold (p" in found.sentence
