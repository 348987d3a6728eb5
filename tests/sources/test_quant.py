"""A day as tokens and as a line: nothing of the future in it, and both are read back."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.forecasting.quant.made_up import all_moves, bar_frame
from tests.public_data import public_data

from fintune.schema.errors import DataError
from fintune.sources.quant.bars import bars_of
from fintune.sources.quant.codec import BINS, CALENDAR, FIELDS, Codec
from fintune.sources.quant.lines import DayLine, day_lines, parse_day_line
from fintune.sources.quant.moves import WARM_UP, moves_of

NUMBERS = ["Open", "High", "Low", "Close", "Adj Close", "Volume"]


@pytest.fixture(scope="module")
def frame():
    return bar_frame()


@pytest.fixture(scope="module")
def codec():
    """Bins of other days: an edge that is one of the days' own numbers would hang on rounding."""
    return Codec.fitted(list(all_moves(bar_frame(seed=9)).values()))


def test_nothing_after_a_day_changes_its_tokens(frame, codec):
    """Later rows with other prices, missing ones, and a dividend that a vendor works into all earlier adjustments."""
    last = frame["Date"].iloc[250]
    later = frame["Date"] > last
    changed = frame.copy()
    changed.loc[later, NUMBERS] *= np.random.default_rng(1).uniform(0.5, 2, (later.sum(), 1))
    changed.loc[~later, "Adj Close"] *= 0.97
    changed = changed.drop(changed.index[later][::7])
    before, after = all_moves(frame), all_moves(changed)
    for ticker, moves in before.items():
        known = moves.only(moves.dates <= np.datetime64(last))
        again = after[ticker].only(after[ticker].dates <= np.datetime64(last))
        np.testing.assert_array_equal(codec.encode(known), codec.encode(again))
        np.testing.assert_allclose(known.volatility, again.volatility, rtol=1e-9)
        ends = [codec.encode(one)[len(known) :] for one in (moves, after[ticker])]
        assert len(ends[0]) != len(ends[1]) and len(ends[1])  # the change did reach the days after


def test_a_day_does_not_scale_itself(frame):
    """The volatility of a day is the same whatever that day brings."""
    ticker = frame[frame["Symbol"] == "AA"].reset_index(drop=True)
    shocked = ticker.copy()
    shocked.loc[ticker.index[-1], ["High", "Close", "Adj Close"]] *= 1.3
    (calm,), (wild,) = (list(all_moves(one).values()) for one in (ticker, shocked))
    assert calm.volatility[-1] == wild.volatility[-1]
    assert wild.change[-1] == pytest.approx(calm.change[-1] + np.log(1.3))


def test_what_a_day_is_made_of():
    days = pd.bdate_range("2024-01-01", periods=WARM_UP + 3)
    rows = pd.DataFrame({"ticker": "X", "date": days, "open": 10.0, "high": 11.0, "low": 9.0, "close": 10.0})
    rows = rows.assign(volume=100.0, adj_close=10.0)
    rows.loc[rows.index[-1], ["open", "high", "low", "close", "adj_close", "volume"]] = [11, 12, 10, 11.5, 11.5, 200]
    table = bars_of(rows)
    moves = moves_of(table.bars["X"], table.sessions)
    assert len(moves) == 2
    assert moves.change[-1] == pytest.approx(np.log(1.15)) and moves.overnight[-1] == pytest.approx(np.log(1.1))
    assert moves.spread[-1] == pytest.approx(np.log(1.2)) and moves.position[-1] == pytest.approx(0.75)
    assert moves.turnover[-1] == pytest.approx(np.log(200 * 11.5 / 1000))
    assert moves.volatility[-1] == pytest.approx(1e-4), "nothing moved before"


def test_gaps_rests_and_adjustments_have_words(frame, codec):
    """One session dropped from BB; a holiday on which nobody traded; AA's dividend and a split of CC."""
    dates = frame["Date"].unique()
    gone = (frame["Symbol"] == "BB") & (frame["Date"] == dates[150])
    holiday = frame["Date"] == dates[151]
    changed = frame.copy()
    changed.loc[(frame["Symbol"] == "CC") & (frame["Date"] < dates[200]), "Adj Close"] *= 0.5
    moves = all_moves(changed[~gone & ~holiday])
    words = {name: codec.words[0] for name in moves}
    calendar = {name: [words[name][code] for code in codec.encode(one)[:, 0].tolist()] for name, one in moves.items()}
    place = {name: int(np.searchsorted(one.dates, np.datetime64(dates[152]))) for name, one in moves.items()}
    assert [calendar[name][place[name]].split(".")[1] for name in ("AA", "BB", "CC")] == ["rest", "gap1", "rest"]
    assert sum("gap" in word for word in calendar["AA"]) == 0
    event = {name: one.event.tolist() for name, one in moves.items()}
    assert (event["AA"].count(1), event["AA"].count(2), event["CC"].count(2)) == (1, 0, 1)
    assert set(calendar["AA"]) <= set(CALENDAR)


@pytest.mark.parametrize("level", [3, 20, 150])
def test_rounding_to_cents_is_no_event(level):
    """A dividend of 2 % and a split among adjusted prices in cents; nothing else happened."""
    n_days = 500
    close = np.round(level * np.exp(np.cumsum(np.random.default_rng(0).normal(0, 0.01, n_days))), 2)
    factor = np.where(np.arange(n_days) < 200, 0.45, np.where(np.arange(n_days) < 300, 0.9, 0.918))
    rows = pd.DataFrame({"ticker": "X", "date": pd.bdate_range("2015-01-01", periods=n_days), "open": close})
    rows = rows.assign(
        high=close * 1.01, low=close * 0.99, close=close, volume=9, adj_close=np.round(close * factor, 2)
    )
    (moves,) = all_moves(rows).values()
    events = {int(place) + WARM_UP + 1: int(moves.event[place]) for place in np.flatnonzero(moves.event)}
    assert events == {200: 2, 300: 1}


def test_rows_that_cannot_be_used_are_counted(frame):
    spoilt = frame.copy()
    spoilt.loc[3, "Close"] = 0
    spoilt.loc[4, "Volume"] = 0
    spoilt.loc[5, "Open"] = spoilt.loc[5, "High"] * 1.1
    found = bars_of(pd.concat([spoilt, spoilt.iloc[[9]]]))
    assert found.dropped == {
        "without a price above 0": 1,
        "without volume": 1,
        "open or close outside of low and high": 1,
        "repeats a day of its ticker": 1,
    }
    assert sum(len(one.dates) for one in found.bars.values()) == len(frame) - 3
    with pytest.raises(DataError, match="no column high"):
        bars_of(frame.drop(columns="High"))


CODEC = Codec.fitted(list(all_moves(bar_frame(120, ("AA",))).values()))


@given(st.data())
def test_tokens_are_read_back(data):
    codec = CODEC
    day = st.tuples(*(st.integers(0, size - 1) for size in codec.sizes))
    codes = np.array(data.draw(st.lists(day, min_size=1, max_size=5)))
    np.testing.assert_array_equal(codec.parse(codec.text(codes)), codes)
    np.testing.assert_array_equal(codec.recode(codec.decode(codes), codes), codes)
    again = Codec.from_json(codec.to_json())
    np.testing.assert_array_equal(again.recode(again.decode(codes), codes), codes)


def test_bins_hold_the_shares_they_should_and_decode_near_the_truth(frame):
    moves = list(all_moves(frame).values())
    codec = Codec.fitted(moves)
    codes = np.concatenate([codec.encode(one) for one in moves])
    shares = np.bincount(codes[:, FIELDS.index("overnight")]) / len(codes)
    assert shares == pytest.approx(np.full(BINS["overnight"], 1 / BINS["overnight"]), abs=0.01)
    true = np.concatenate([one.change / one.volatility for one in moves])
    decoded = codec.decode(codes)["change"]
    inner = np.abs(true) < 3
    assert np.sqrt(np.mean((decoded - true)[inner] ** 2) / np.mean(true[inner] ** 2)) < 0.12


@pytest.mark.parametrize(
    ("text", "said"), [("x1", "Word 1 .x1."), ("mon.next r3", "Word 2 .r3."), ("mon.next s0", "2 of 8")]
)
def test_words_out_of_place_are_named(codec, text, said):
    with pytest.raises(DataError, match=said):
        codec.parse(text)


def test_lines_are_read_back(frame):
    for moves in all_moves(frame).values():
        lines = day_lines(moves)
        assert [parse_day_line(str(line)) for line in lines] == lines
        closed = np.array([line.closed for line in lines])
        np.testing.assert_allclose(closed, 100 * np.expm1(moves.change), atol=0.0051)
    line = DayLine(lines[0].day, "BRK.B", -0.0, 1.5, 2.0, 42, 1.1, "split", 2)
    assert str(line).endswith("opened +0.00%, closed +1.50%, range 2.00% (ended at 42%), volume 1.10x, split, "
                              "2 sessions missed before")  # fmt: skip
    blank = replace(line, ticker="BRK B opened")
    assert parse_day_line(str(blank)) == blank
    with pytest.raises(DataError, match="no line of a day"):
        parse_day_line(str(line).replace("range", "spread"))


def test_real_prices_are_read():
    """StockNet's 88 tickers, with their rows of nulls."""
    table = bars_of(pd.read_csv(public_data("stock_acl18/prices_raw.csv.gz")))
    assert len(table.bars) == 88 and table.adjusted
    assert table.dropped["without a price above 0"] == 3
    bars = table.bars["AAPL"]
    moves = moves_of(bars, table.sessions)
    assert int((moves.event == 1).sum()) == 20, "a dividend every quarter"
    np.testing.assert_array_equal(moves.event, (bars.factor[1:] / bars.factor[:-1] > 1.0001)[WARM_UP:])
    cents = replace(bars, factor=np.round(bars.factor * bars.close, 2) / bars.close)
    np.testing.assert_array_equal(moves_of(cents, table.sessions).event, moves.event)
