"""Splits that every run shares: they depend on the rows alone, never on a run's seed.

Rows whose texts are equal after normalisation form one group, and a group is never divided between splits we make.
A split that a publisher made is kept as published.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import groupby

import numpy as np

from fintune.sources.table import ALL
from fintune.sources.text import group_key
from fintune.tasks.base import Row

TEST_FRACTION = 0.25
VALIDATION_FRACTION = 0.1
FINGPT_PHRASEBANK_ROWS = 4846
LATEST = "latest"
"""The rule for dated rows: those of the latest dates validate, where the source has no split for it."""
OWN_SPLITS = "The source's own splits."

Splits = dict[str, list[Row]]


def make_splits(
    rows: Mapping[str, Sequence[Row]],
    positions: Mapping[str, Sequence[int]],
    n_read: Mapping[str, int],
    rule: str,
    *,
    stratified: bool = True,
) -> tuple[Splits, Counter[str], str]:
    """Turns the source's own splits into train, validation and test.

    Args:
        rows: usable rows by the source's split.
        positions: each row's position among all rows read, unusable ones included (published rules count those).
        n_read: how many rows the source had, by split.
        rule: name of the published rule for an unsplit source, or ``LATEST``; '' for ours.
        stratified: divide each label's texts alike; not where every answer is its own.

    Returns:
        The splits, what was dropped by reason, and a sentence that says how the split was made.
    """
    validation: Sequence[Row] | None = None
    if set(rows) == {ALL} or set(rows) == {"train"}:
        (only,) = rows
        if rule == "fingpt" and n_read[only] == FINGPT_PHRASEBANK_ROWS:
            train, test, dropped, note = _split_as_fingpt(rows[only], positions[only], n_read[only])
        else:
            train, test, dropped, note = _split_by_hash(rows[only], stratified)
    else:
        train, validation, test = list(rows.get("train", ())), rows.get("validation"), list(rows.get("test", ()))
        note = OWN_SPLITS
        if "test" not in rows:
            test, validation = list(validation or ()), None
            note = "Test is the source's validation split: its test split is not published."
        train, dropped = clean_rows(train)
    if validation is None and train and rule == LATEST:
        train, validation = split_latest(train, VALIDATION_FRACTION)
        note += f" Validation is the latest {VALIDATION_FRACTION:.0%} of the training rows."
    elif validation is None and train:
        train, validation = split_off(train, VALIDATION_FRACTION, stratified=stratified)
        note += f" Validation is {_drawn(stratified)}{VALIDATION_FRACTION:.0%} of the training texts, chosen by hash."
    return {"train": train, "validation": list(validation or ()), "test": test}, dropped, note


def fingpt_test_positions(n_rows: int) -> list[int]:
    """Rows that ``datasets.Dataset.train_test_split(seed=42)`` puts in the test split, in its order.

    FinGPT's PhraseBank benchmark is this split of the 4,846 rows of 50Agree; FinLoRA's test file repeats it.
    """
    n_test = math.ceil(TEST_FRACTION * n_rows)
    return [int(index) for index in np.random.default_rng(42).permutation(n_rows)[:n_test]]


def _split_as_fingpt(
    rows: Sequence[Row], positions: Sequence[int], n_rows: int
) -> tuple[list[Row], list[Row], Counter[str], str]:
    """FinGPT's test rows as they are, repeats included; the other rows are cleaned and lose the texts of the test."""
    by_position = dict(zip(positions, rows, strict=True))
    chosen = fingpt_test_positions(n_rows)
    test = [by_position[position] for position in chosen if position in by_position]
    heldout, taken = {group_key(row.text) for row in test}, set(chosen)
    rest = [row for position, row in by_position.items() if position not in taken]
    apart = [row for row in rest if group_key(row.text) not in heldout]
    train, dropped = clean_rows(apart)
    if len(apart) < len(rest):
        dropped["training row whose text is in test"] = len(rest) - len(apart)
    return train, test, dropped, "Test is FinGPT's split of 50Agree: 25% of the rows, train_test_split with seed 42."


def _drawn(stratified: bool) -> str:
    return "a stratified " if stratified else ""


def _split_by_hash(rows: Sequence[Row], stratified: bool) -> tuple[list[Row], list[Row], Counter[str], str]:
    cleaned, dropped = clean_rows(rows)
    train, test = split_off(cleaned, TEST_FRACTION, stratified=stratified)
    note = f"No published split: test is {_drawn(stratified)}{TEST_FRACTION:.0%} of the texts, chosen by hash."
    return train, test, dropped, note


def clean_rows(rows: Sequence[Row]) -> tuple[list[Row], Counter[str]]:
    """Keeps one row a text; texts that occur with different labels are dropped, all of their rows."""
    labels: dict[str, set[str | None]] = {}
    keys = [group_key(row.identity or row.text) for row in rows]
    for key, row in zip(keys, rows, strict=True):
        labels.setdefault(key, set()).add(row.label)
    kept: list[Row] = []
    dropped: Counter[str] = Counter()
    seen: set[str] = set()
    for key, row in zip(keys, rows, strict=True):
        if len(labels[key]) > 1:
            dropped["row whose text has contradictory labels"] += 1
        elif key in seen:
            dropped["row that repeats another"] += 1
        else:
            seen.add(key)
            kept.append(row)
    return kept, dropped


def split_off(rows: Sequence[Row], fraction: float, *, stratified: bool = True) -> tuple[list[Row], list[Row]]:
    """Moves ``fraction`` of each label's groups into a second list, the ones whose hash is lowest; order is kept.

    A group's rows stay together; its label is its first row's. Without ``stratified``, labels are not told apart.
    """
    groups: dict[str, str | None] = {}
    for row in rows:
        groups.setdefault(_group_of(row), row.label if stratified else "")
    chosen: set[str] = set()
    for label in sorted({str(label) for label in groups.values()}):
        keys = sorted((key for key, value in groups.items() if str(value) == label), key=_rank)
        chosen.update(keys[: round(fraction * len(keys))])
    rest: list[Row] = []
    taken: list[Row] = []
    for row in rows:
        (taken if _group_of(row) in chosen else rest).append(row)
    return rest, taken


def split_latest(rows: Sequence[Row], fraction: float) -> tuple[list[Row], list[Row]]:
    """The latest rows, about ``fraction`` of them, cut between two dates so that none is on both sides."""
    ordered = sorted(rows, key=_date)
    starts = [sum(1 for _ in same) for _, same in groupby(ordered, key=_date)]
    cuts: list[int] = []
    position = 0
    for size in starts[:-1]:
        position += size
        cuts.append(position)
    if not cuts:
        return list(ordered), []
    target = len(ordered) * (1 - fraction)
    cut = min(cuts, key=lambda place: abs(place - target))
    return list(ordered[:cut]), list(ordered[cut:])


def _date(row: Row) -> datetime:
    assert row.date is not None  # rows without a date were dropped
    return row.date


def _group_of(row: Row) -> str:
    return row.group or group_key(row.text)


def _rank(key: str) -> str:
    # Hashed again: the key also orders other draws, which must not depend on this one.
    return hashlib.sha256(f"split:{key}".encode()).hexdigest()
