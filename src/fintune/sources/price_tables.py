"""Tables with a row for each stock and day, whatever their columns are called.

Enters: a Parquet file or any file that ``read_file`` takes, and the names a column may have. Leaves: a data frame with
our names and dates without times.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fintune.schema.errors import DataError
from fintune.sources.files import read_file

if TYPE_CHECKING:
    import pandas as pd


def read_price_frame(path: str | Path) -> pd.DataFrame:
    """The rows of a price table as they are in the file.

    Raises:
        DataError: the file cannot be read.
    """
    import pandas as pd

    file = Path(path)
    if file.suffix != ".parquet" or not file.is_file():
        return pd.DataFrame(list(read_file(file).rows))
    try:
        return pd.read_parquet(file)
    except (OSError, ValueError) as error:
        raise DataError(f"The price table {file} cannot be read.", "Check that it is a complete file.") from error


def price_columns(
    frame: pd.DataFrame, source: str, names: Mapping[str, Collection[str]], optional: Collection[str], needs: str
) -> pd.DataFrame:
    """The columns that are needed, under our names, with days in ``date``.

    Args:
        frame: a row for each stock and day.
        source: names the table in errors.
        names: for each of our names what the column may be called, in small letters without anything else.
        optional: our names of columns that may be absent.
        needs: a sentence on the columns that must be there.

    Raises:
        DataError: a column is missing, or a date cannot be read.
    """
    given = {"".join(filter(str.isalpha, str(name).lower())): name for name in frame.columns}
    found = {ours: next((given[name] for name in known if name in given), None) for ours, known in names.items()}
    missing = [ours for ours, column in found.items() if column is None and ours not in optional]
    if missing:
        raise DataError(f"The price table {source} has no column {missing[0]}.", needs)
    here = {ours: column for ours, column in found.items() if column is not None}
    table = frame[list(here.values())].set_axis(list(here), axis=1).copy()
    try:
        table["date"] = _days(table["date"])
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"The price table {source} has a date that cannot be read.", "Write dates as 2024-02-25."
        ) from error
    return table


def _days(dates: pd.Series[Any]) -> pd.Series[Any]:
    """Days as they are where the stock trades: written times may have offsets that change with summer time."""
    import pandas as pd

    if not pd.api.types.is_datetime64_any_dtype(dates):
        dates = pd.to_datetime(dates.astype(str).str[: len("2024-02-25")], format="ISO8601")
    days: pd.Series[Any] = dates.dt.tz_localize(None).dt.normalize()
    return days
