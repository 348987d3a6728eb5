"""What a corpus is made of and how it is cleaned: sources with their columns, steps with their limits.

Enters: values of a caller, or a YAML file that lists sources. Leaves: frozen settings that a build is compared by.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date
from pathlib import Path
from typing import Any

from fintune.schema.errors import RecipeError

FORMAT_VERSION = 2
"""Raised when equal sources and settings would give other documents than before."""

SEPARATIONS = ("marker", "blank", "line")
UNDATED = ("drop", "hash")
_GROUPS = {"ticker", "date", "year", "quarter"}


@dataclass(frozen=True)
class CorpusSource:
    """One source of documents, and which of its columns say what.

    Attributes:
        place: a file, a folder, or the id of a data set on the hub.
        name: what documents say they are from where no column does; '' takes the file's name.
        text: column of the document; None looks for text, body, content and the like.
        title: column of the headline; None looks for title, headline and the like.
        date: column of the day; None looks for date, published and the like.
        source: column with who published it.
        ticker: column with the company's ticker, or several.
        pattern: ``COLUMN=EXPRESSION`` whose named groups ticker, date, year and quarter are read out of a column.
        columns: names of the columns of a table without a header.
        date_format: of ``strptime``, for dates that could be read in two ways.
        separated_by: of a .txt file: ``marker`` (a line ``<|endoftext|>``), ``blank`` (an empty line) or ``line``.
        delimiter: of CSV; None detects it.
        encoding: of text; None detects it.
        datasets: read by the ``datasets`` library, as a stream, even where it is a local path.
        config: of a data set that ``datasets`` reads.
        split: of such a data set; None takes all of them.
        revision: branch, tag or commit of a data set on the hub.
    """

    place: str
    name: str = ""
    text: str | None = None
    title: str | None = None
    date: str | None = None
    source: str | None = None
    ticker: str | None = None
    pattern: str | None = None
    columns: tuple[str, ...] = ()
    date_format: str | None = None
    separated_by: str = "marker"
    delimiter: str | None = None
    encoding: str | None = None
    datasets: bool = False
    config: str | None = None
    split: str | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        if self.pattern is not None:
            self.compiled_pattern()
        if self.separated_by not in SEPARATIONS:
            raise RecipeError(
                f"Documents of {self.place} cannot be separated by {self.separated_by!r}.",
                f"Choose one of {', '.join(SEPARATIONS)}.",
            )

    @property
    def label(self) -> str:
        """The name of the source in counts and documents."""
        return self.name or Path(self.place).name.split(".")[0] or self.place

    def compiled_pattern(self) -> tuple[str, re.Pattern[str]]:
        """The column and the expression of ``pattern``.

        Raises:
            RecipeError: it is no expression, or has no group that means something.
        """
        column, _, expression = (self.pattern or "").partition("=")
        try:
            compiled = re.compile(expression)
        except re.error as error:
            raise RecipeError(
                f"The pattern of {self.place} is no regular expression: {error}.", "Write it as Python's re reads it."
            ) from error
        if not column or not _GROUPS & compiled.groupindex.keys():
            raise RecipeError(
                f"The pattern {self.pattern!r} of {self.place} names nothing.",
                "Write COLUMN=EXPRESSION with named groups of ticker, date, year and quarter.",
            )
        return column, compiled


@dataclass(frozen=True)
class Cleaning:
    """The steps and their limits.

    Attributes:
        html: take the text out of HTML.
        unwrap: join lines that were wrapped at a fixed width.
        boilerplate_share: lines in at least this share of a source's documents, and in ten, are removed; 0 keeps them.
        min_characters: shorter documents are dropped.
        max_characters: longer ones are dropped.
        min_latin_share: share of letters that must be Latin; 0 allows every script.
        near_duplicates: Jaccard similarity of eight-byte windows from which a document repeats an earlier one; None
            drops equal ones only.
        private: replace e-mail addresses, phone numbers, IBANs, card numbers and US social security numbers.
        validation_from: first day of validation, in any form of ISO 8601; None splits by hash.
        test_from: first day of test, likewise.
        undated: what a document without a day does where a first day is named: ``drop``, for it may be newer than the
            test, or ``hash``, which splits it by hash.
        validation_share: of documents that are split by hash.
        test_share: likewise.
        companies: of collected folders, only this many companies, by market capitalisation.
        shard_documents: documents a file at most.
    """

    html: bool = True
    unwrap: bool = True
    boilerplate_share: float = 0.005
    min_characters: int = 20
    max_characters: int = 1_000_000
    min_latin_share: float = 0.5
    near_duplicates: float | None = 0.8
    private: bool = False
    validation_from: str | None = None
    test_from: str | None = None
    undated: str = "drop"
    validation_share: float = 0.05
    test_share: float = 0.1
    companies: int | None = None
    shard_documents: int = 10_000

    def __post_init__(self) -> None:
        _in_range("boilerplate_share", self.boilerplate_share, 0, 1)
        _in_range("min_latin_share", self.min_latin_share, 0, 1)
        _in_range("near_duplicates", self.near_duplicates if self.near_duplicates is not None else 1, 0.5, 1)
        _in_range("validation_share + test_share", self.validation_share + self.test_share, 0, 0.9)
        _in_range("min_characters", self.min_characters, 1, self.max_characters)
        _in_range("shard_documents", self.shard_documents, 1, 10**9)
        _in_range("companies", self.companies if self.companies is not None else 1, 1, 10**6)
        if self.undated not in UNDATED:
            raise RecipeError(
                f"A value of {self.undated!r} for undated makes no sense.", f"Choose one of {', '.join(UNDATED)}."
            )
        days = [_day("validation_from", self.validation_from), _day("test_from", self.test_from)]
        for name, day in zip(("validation_from", "test_from"), days, strict=True):
            object.__setattr__(self, name, day)  # days of documents are compared with it as texts
        if None not in days and days != sorted(days, key=str):
            raise RecipeError(
                f"Validation would begin on {days[0]}, after test on {days[1]}.", "Give validation the earlier day."
            )

    @property
    def drops_undated(self) -> bool:
        """Whether documents without a day go: their split is named by a day that they do not have."""
        return self.undated == "drop" and bool(self.validation_from or self.test_from)


def sources_of(given: Sequence[str | Path | CorpusSource | Mapping[str, Any]]) -> list[CorpusSource]:
    """Sources as given: a path or id each, settings, or a YAML file that lists them.

    Raises:
        RecipeError: there is none, two have the same name, or a key or value of one makes no sense.
    """
    found: list[CorpusSource] = []
    for one in given:
        if isinstance(one, CorpusSource):
            found.append(one)
        elif isinstance(one, Mapping):
            found.append(_from_mapping(one, "A source"))
        elif Path(one).suffix.lower() in {".yaml", ".yml"}:
            found += _from_yaml(Path(one).expanduser())
        else:
            found.append(CorpusSource(str(one)))
    if not found:
        raise RecipeError("There is no source to build a corpus from.", "Name a file, a folder or a data set.")
    labels = [source.label for source in found]
    if repeated := next((label for label in labels if labels.count(label) > 1), None):
        raise RecipeError(
            f"Two sources are called {repeated!r}.", "Give each a name of its own, in a YAML file that lists them."
        )
    return found


def _from_yaml(path: Path) -> list[CorpusSource]:
    """The entries of ``sources:``; relative places are relative to the file."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RecipeError(f"{path} cannot be read as YAML.", "Check that it exists and lists sources.") from error
    entries = content.get("sources") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise RecipeError(f"{path} has no list of sources.", "Write 'sources:' and below it '- place: FILE' for each.")
    found = []
    for number, entry in enumerate(entries, start=1):
        place = str(entry.get("place", ""))
        if place and (path.parent / place).exists():
            entry = {**entry, "place": str(path.parent / place)}
        found.append(_from_mapping(entry, f"Source {number} of {path}"))
    return found


def _from_mapping(entry: Mapping[str, Any], what: str) -> CorpusSource:
    known = [field.name for field in fields(CorpusSource)]
    if unknown := [key for key in entry if key not in known]:
        raise RecipeError(f"{what} has the unknown key {unknown[0]!r}.", f"Use {', '.join(known)}.")
    if not entry.get("place"):
        raise RecipeError(f"{what} has no place.", "Name a file, a folder or a data set: place: FILE.")
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    kinds: dict[str, type] = {"columns": tuple, "datasets": bool}
    for key, value in values.items():
        if value is not None and not isinstance(value, kinds.get(key, str)):
            raise RecipeError(
                f"{what} has {value!r} for {key}.", "Write a text; a list for columns; true for datasets."
            )
    return CorpusSource(**values)


def _in_range(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise RecipeError(f"A value of {value} for {name} makes no sense.", f"Choose from {least} to {most}.")


def _day(name: str, given: str | date | None) -> str | None:
    """A day in whatever form ISO 8601 allows, as 2024-01-31."""
    if given is None:
        return None
    try:
        return date.fromisoformat(str(given)).isoformat()
    except ValueError:
        raise RecipeError(f"{str(given)!r} is no day for {name}.", "Write it like 2024-01-31.") from None
