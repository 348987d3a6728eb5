"""Draws the class-balanced sample that fintune ships from the two files of Twitter Financial News Sentiment.

    python scripts/make_tfns_sample.py sent_train.csv sent_valid.csv src/fintune/sources/samples/tfns

Test comes from the publisher's validation file, train and validation from its train file. Texts of 15 to 160
characters; one row a text, compared without links, punctuation, case and whitespace; texts with contradictory labels
left out; no training or validation text occurs in the publisher's validation file. The draw is by hash: no seed.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fintune.sources import normalise_text, read_file

Row = Mapping[str, str]
LABELS = ("0", "1", "2")
SHORTEST, LONGEST = 15, 160
TRAIN_PER_CLASS, VALIDATION_PER_CLASS, TEST_PER_CLASS = 300, 50, 100


def usable(rows: Iterable[Row], excluded: frozenset[str] = frozenset()) -> list[Row]:
    """One row a text, of the right length, with one label, and not among the excluded normalised texts."""
    labels: dict[str, set[str]] = {}
    first: dict[str, Row] = {}
    for row in rows:
        key = normalise_text(row["text"])
        labels.setdefault(key, set()).add(row["label"])
        first.setdefault(key, row)
    return [
        row
        for key, row in first.items()
        if key and key not in excluded and len(labels[key]) == 1 and SHORTEST <= len(row["text"].strip()) <= LONGEST
    ]


def draw(rows: Sequence[Row], per_class: Sequence[int]) -> list[list[Row]]:
    """Consecutive balanced draws of ``per_class`` rows a label, each in hash order, none sharing a row."""
    draws: list[list[Row]] = [[] for _ in per_class]
    for label in LABELS:
        pile = sorted((row for row in rows if row["label"] == label), key=_rank)
        if len(pile) < sum(per_class):
            raise SystemExit(f"label {label} has {len(pile)} usable rows, {sum(per_class)} are needed")
        start = 0
        for number, count in enumerate(per_class):
            draws[number].extend(pile[start : start + count])
            start += count
    return [sorted(rows_of_split, key=_rank) for rows_of_split in draws]


def _rank(row: Row) -> str:
    return hashlib.sha256(f"sample:{normalise_text(row['text'])}".encode()).hexdigest()


def write(path: Path, rows: Iterable[Row]) -> None:
    """Writes the publisher's two columns."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"], lineterminator="\n")
        writer.writeheader()
        writer.writerows({"text": row["text"].strip(), "label": row["label"]} for row in rows)


def main() -> None:
    """Reads both files, draws the three splits, writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train_csv", type=Path)
    parser.add_argument("validation_csv", type=Path)
    parser.add_argument("output_dir", type=Path)
    arguments = parser.parse_args()
    publisher_train = read_file(arguments.train_csv).rows
    publisher_validation = read_file(arguments.validation_csv).rows
    heldout = frozenset(normalise_text(row["text"]) for row in publisher_validation)
    (test,) = draw(usable(publisher_validation), [TEST_PER_CLASS])
    train, validation = draw(usable(publisher_train, heldout), [TRAIN_PER_CLASS, VALIDATION_PER_CLASS])
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", train), ("validation", validation), ("test", test)):
        write(arguments.output_dir / f"{name}.csv", rows)
        print(f"{name}: {len(rows)} rows")


if __name__ == "__main__":
    main()
