"""Test and validation rows of a user's own table: by time, by group, or stratified by label.

By time, every test row is later than every validation row, and those later than every training row: a date is never
divided. By group, all rows of a ticker or document stay together. Splits depend on the rows alone, not on a seed.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from fintune.schema.errors import DataError
from fintune.schema.quality import QualityProblem
from fintune.sources.quality_problems import problem
from fintune.sources.text import group_key
from fintune.tasks.base import Row
from fintune.tasks.splits import TEST_FRACTION, VALIDATION_FRACTION, Splits, clean_rows, split_latest, split_off

Way = Literal["time", "group", "stratified"]
_ENOUGH_DATES = 0.9
_NEARLY_UNIQUE = 0.9
_TINY = 0.2  # of the rows that a split should have
_SPLIT_REMEDY = "Check the dates, name their column with --date and their format with --date-format, or set --split."
_MOST_OVERSHOOT = 1.3  # a group is passed over when it would make a split this many times too large


def split_own_rows(
    rows: Sequence[Row], wanted: Literal["auto", "time", "group", "stratified", "test"], unread: str = ""
) -> tuple[Splits, Counter[str], str, tuple[QualityProblem, ...]]:
    """Splits rows into train, validation and test.

    Args:
        rows: usable rows with their date and group, where they have one.
        wanted: auto takes time where nine in ten rows have a date and enough of them come before the last ones, else
            groups where there are three or more and they hold several rows each; test keeps every row for testing.
        unread: why a column that is named like dates was not used.

    Returns:
        The splits, what was dropped by reason, a sentence that says how the split was made, and what is odd about it.

    Raises:
        DataError: the wanted split is impossible with these rows.
    """
    if wanted == "test":
        return {"train": [], "validation": [], "test": list(rows)}, Counter(), "All rows are test rows (as asked).", ()
    _require_possible(rows, wanted)
    reasons = [unread] if unread else []
    problems = [problem("split", "warning", reason, _SPLIT_REMEDY) for reason in reasons]
    cleaned, dropped = clean_rows(rows)
    ways: tuple[Way, ...] = ("time", "group", "stratified") if wanted == "auto" else (wanted,)
    for way in ways:
        splits, undated = _cut(cleaned, way)
        against = _against(rows, way, splits) if wanted == "auto" else None
        if against is None:
            break
        if against:
            reasons.append(against)
            problems += [problem("split", "warning", against, _SPLIT_REMEDY)] if way == "time" else []
    dropped["row without a readable date"] += undated
    problems += _oddities(way, splits, undated)
    because = "".join(f" {reason}" for reason in reasons)
    return splits, +dropped, f"{_note(way, wanted, splits)}{because}", tuple(problems)


def keep_source_splits(
    rows: Mapping[str, Sequence[Row]], unread: str = ""
) -> tuple[Splits, Counter[str], str, tuple[QualityProblem, ...]]:
    """The source's own splits; validation is cut from the training rows, the latest where they have dates.

    Returns:
        As ``split_own_rows``; a warning where the test rows are not later than the training rows.
    """
    train, dropped = clean_rows(rows.get("train", ()))
    validation, test, note = rows.get("validation"), rows.get("test"), "The source's own splits."
    if test is None:
        test, validation = validation or (), None
        note = "Test is the source's validation split: its test split is not published."
    later, problems = _test_is_later(train, test)
    problems += [problem("split", "warning", unread, _SPLIT_REMEDY)] if unread else []
    if validation is None:
        by_time = _dated_share(train) >= _ENOUGH_DATES and len({row.date for row in train} - {None}) > 1
        how = "the latest" if by_time else "a stratified"
        note += f" Validation is {how} {VALIDATION_FRACTION:.0%} of the training texts{'' if by_time else ', by hash'}."
        undated = [row for row in train if by_time and row.date is None]
        dated = [row for row in train if not by_time or row.date is not None]
        train, validation = (split_latest if by_time else split_off)(dated, VALIDATION_FRACTION)
        train = [*undated, *train]
    splits = {"train": train, "validation": list(validation), "test": list(test)}
    return splits, dropped, f"{note}{later}", tuple(problems)


def _test_is_later(train: Sequence[Row], test: Sequence[Row]) -> tuple[str, list[QualityProblem]]:
    """A sentence on which of the two is later, where both have dates, and a warning where it is not test."""
    if not train or not test or min(_dated_share(train), _dated_share(test)) < _ENOUGH_DATES:
        return "", []
    spans = f"train {_span(train)}, test {_span(test)}"
    if min(row.date for row in test if row.date) > max(row.date for row in train if row.date):
        return f" Its test rows are later than its training rows: {spans}.", []
    message = f"Not all test rows of the source are later than its training rows: {spans}."
    remedy = "Scores may be too good for future texts; put all rows into one file to have them split by time."
    return f" {message}", [problem("split_not_by_time", "warning", message, remedy)]


def _require_possible(rows: Sequence[Row], wanted: str) -> None:
    dates = {row.date for row in rows} - {None}
    groups = {row.group for row in rows if row.group}
    if wanted == "time" and len(dates) < 2:
        raise DataError(
            f"A split by time needs two different dates, but the rows have {len(dates)}.",
            "Name the date column with --date (and its format with --date-format), or choose another --split.",
        )
    if wanted == "group" and len(groups) < 2:
        raise DataError(
            f"A split by group needs two different groups, but the rows have {len(groups)}.",
            "Name the ticker or document column with --group, or choose another --split.",
        )


def _cut(rows: Sequence[Row], way: Way) -> tuple[Splits, int]:
    """The rows cut one way, and how many a split by time leaves out for want of a date."""
    usable = [row for row in rows if way != "time" or row.date is not None]
    cut = {"time": split_latest, "group": _split_groups, "stratified": split_off}[way]
    train, test = cut(usable, TEST_FRACTION)
    train, validation = cut(train, VALIDATION_FRACTION)
    return {"train": train, "validation": validation, "test": test}, len(rows) - len(usable)


def _against(rows: Sequence[Row], way: Way, splits: Splits) -> str | None:
    """Why rows are not split this way of their own accord; None when they are, '' where it need not be said."""
    if way == "time":
        dates = [row.date for row in rows if row.date is not None]
        if not dates:
            return ""
        if len(dates) < _ENOUGH_DATES * len(rows):
            return f"Not by time: {len(dates):,} of {len(rows):,} rows have a readable date."
        if len(set(dates)) < 2:
            return "Not by time: all dates are the same."
        n_train, n_rows = len(splits["train"]), sum(map(len, splits.values()))
        if 2 * n_train < n_rows:
            return f"Not by time: cut between two dates, only {n_train:,} of {n_rows:,} rows would be left to train on."
    if way == "group":
        groups = {row.group for row in rows if row.group}
        if len(groups) < 3:
            return ""
        if len(groups) >= _NEARLY_UNIQUE * len(rows):
            return f"Not by group: {len(groups):,} groups are nearly as many as the {len(rows):,} rows."
    return None


def _oddities(way: Way, splits: Splits, undated: int) -> list[QualityProblem]:
    found = []
    if undated:
        what = f"{undated:,} row{' has' if undated == 1 else 's have'} no readable date"
        message = f"{what} and {'is' if undated == 1 else 'are'} left out of the split by time."
        found.append(problem("undated", "warning", message, "Correct the dates, or choose --split stratified."))
    n_rows = sum(map(len, splits.values()))
    shares = {
        "train": (1 - TEST_FRACTION) * (1 - VALIDATION_FRACTION),
        "validation": (1 - TEST_FRACTION) * VALIDATION_FRACTION,
        "test": TEST_FRACTION,
    }
    too_few = any(len(splits[split]) < _TINY * share * n_rows for split, share in shares.items())
    if way != "stratified" and (too_few or len(splits["test"]) > 2 * TEST_FRACTION * n_rows):
        sizes = ", ".join(f"{len(rows):,} {split}" for split, rows in splits.items())
        message = f"The split by {way} is lopsided: {sizes} rows."
        remedy = "Rows of one date or group stay together; give finer ones, or choose --split stratified."
        found.append(problem("lopsided", "warning", message, remedy))
    return found


def _dated_share(rows: Sequence[Row]) -> float:
    return sum(row.date is not None for row in rows) / max(1, len(rows))


def _split_groups(rows: Sequence[Row], fraction: float) -> tuple[list[Row], list[Row]]:
    """Whole groups in the order of their hashes until about ``fraction`` of the rows is reached."""
    sizes = Counter(map(_group, rows))
    target = fraction * len(rows)
    chosen: set[str] = set()
    taken = 0
    for name in sorted(sizes, key=_rank):
        if taken < target and taken + sizes[name] <= _MOST_OVERSHOOT * target:
            chosen.add(name)
            taken += sizes[name]
    if not chosen and len(sizes) > 1:
        chosen = {min(sizes, key=lambda name: (sizes[name], _rank(name)))}
    return _partition(rows, chosen, _group)


def _group(row: Row) -> str:
    return row.group or group_key(row.text)


def _rank(name: str) -> str:
    return hashlib.sha256(f"group:{name}".encode("utf-8", "surrogatepass")).hexdigest()


def _partition(rows: Sequence[Row], chosen: set[str], key: Callable[[Row], str]) -> tuple[list[Row], list[Row]]:
    return [row for row in rows if key(row) not in chosen], [row for row in rows if key(row) in chosen]


def _note(way: Way, wanted: str, splits: Splits) -> str:
    chosen = "" if wanted == "auto" else " (as asked)"
    sizes = ", ".join(f"{len(rows)} {split}" for split, rows in splits.items())
    if way == "time":
        spans = [f"{split} {_span(rows)}" for split, rows in splits.items() if rows]
        return f"Split by time{chosen}, the latest rows being test: {'; '.join(spans)} ({sizes} rows)."
    if way == "group":
        numbers = ", ".join(f"{len(set(map(_group, rows)))} {split}" for split, rows in splits.items())
        return f"Split by group{chosen}, none of them in two splits: {numbers} groups ({sizes} rows)."
    return f"Split at random by text{chosen}, stratified by label and chosen by hash ({sizes} rows)."


def _span(rows: Sequence[Row]) -> str:
    dates = [row.date for row in rows if row.date is not None]
    first, last = min(dates), max(dates)
    return f"{first:%Y-%m-%d} to {last:%Y-%m-%d}"
