"""Price tables made for tests."""

from datetime import date

import numpy as np
import pandas as pd

from fintune.forecasting.prices import prices_of

MONDAY = date(2024, 1, 1)


def table(opens, closes=None, start="2024-01-01", **further):
    """Prices on business days from ``start``: lists of opens and closes by symbol; closes are the opens where None."""
    closes = closes or opens
    days = pd.bdate_range(start, periods=len(next(iter(opens.values()))))
    return pd.concat(
        [
            pd.DataFrame({"symbol": symbol, "date": days, "open": opens[symbol], "close": closes[symbol], **further})
            for symbol in opens
        ]
    )


def random_table(n_days=120, symbols=("A", "B", "C"), seed=0):
    generator = np.random.default_rng(seed)
    closes = {one: 100 * np.exp(np.cumsum(generator.normal(0, 0.02, n_days))) for one in symbols}
    opens = {one: values * np.exp(generator.normal(0, 0.01, n_days)) for one, values in closes.items()}
    return table(opens, closes)


def random_prices(n_days=120, symbols=("A", "B", "C"), seed=0):
    return prices_of(random_table(n_days, symbols, seed))
