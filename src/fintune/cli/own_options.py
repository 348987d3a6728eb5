"""The options that describe a table of the user's own, shared by every command that takes one.

Enters: a command with a parameter ``table: TableOptions``. Leaves: the same command with one option for each field.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

import typer

from fintune.cli.options import spread

_PANEL = "Your own data"


def _option(*names: str, help: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=_PANEL)


@dataclass(frozen=True)
class TableOptions:
    """What the command line says about a table."""

    data: Annotated[str | None, _option("--data", help="CSV, JSONL, Parquet or Excel file, folder, or hub id.")] = None
    text: Annotated[str | None, _option("--text", help="Column with the text.")] = None
    label: Annotated[str | None, _option("--label", help="Column with the label.")] = None
    labels: Annotated[
        str | None, _option("--labels", help="Label map: 1=positive,0=neutral,-1=negative; an empty word drops rows.")
    ] = None
    bins: Annotated[
        str | None, _option("--bins", help="Thresholds that cut a numeric label into classes: --bins=-0.1,0.1.")
    ] = None
    choices: Annotated[str | None, _option("--choices", help="All labels, in order, separated by commas.")] = None
    date: Annotated[str | None, _option("--date", help="Column with dates, for a split by time.")] = None
    date_format: Annotated[str | None, _option("--date-format", help="How dates are written, such as %d/%m/%Y.")] = None
    group: Annotated[str | None, _option("--group", help="Column with ticker or document, for a split by it.")] = None
    split: Annotated[
        Literal["auto", "time", "group", "stratified", "test"] | None,
        _option("--split", help="How test rows are held out."),
    ] = None
    instruction: Annotated[str | None, _option("--instruction", help="What to ask the model about each text.")] = None
    licence: Annotated[str | None, _option("--licence", "--license", help="Terms of the data.")] = None
    delimiter: Annotated[str | None, _option("--delimiter", help="Of a CSV file, where detection fails.")] = None
    encoding: Annotated[str | None, _option("--encoding", help="Of a text file, where detection fails.")] = None
    sheet: Annotated[str | None, _option("--sheet", help="Of an Excel file; the first otherwise.")] = None

    @property
    def given(self) -> bool:
        """Whether any of the options was."""
        return any(getattr(self, field.name) is not None for field in fields(self))

    def section(self) -> dict[str, Any]:
        """The keys of ``data.tasks[].table`` that were given.

        Raises:
            typer.BadParameter: a list or map is not written as one.
        """
        given: dict[str, Any] = {
            field.name: getattr(self, field.name) for field in fields(self) if field.name != "data"
        }
        given |= {"labels": _mapping(self.labels), "bins": _numbers(self.bins), "choices": _words(self.choices)}
        return {name: value for name, value in given.items() if value is not None}


def takes_table(command: Callable[..., None]) -> Callable[..., None]:
    """Replaces the parameter ``table`` of a command by one option for each field of ``TableOptions``."""
    return spread(command, "table", TableOptions)


def _words(text: str | None) -> list[str] | None:
    return None if text is None else [word.strip() for word in text.split(",") if word.strip()]


def _mapping(text: str | None) -> dict[str, str] | None:
    words = _words(text)
    if words is None:
        return None
    if not words or not all("=" in word for word in words):
        raise typer.BadParameter("Write --labels old=new,old=new.")
    return {old.strip(): new.strip() for old, _, new in (word.rpartition("=") for word in words)}


def _numbers(text: str | None) -> list[float] | None:
    try:
        return None if text is None else [float(word) for word in _words(text) or ()]
    except ValueError as error:
        raise typer.BadParameter("Write --bins=0.1 or --bins=-0.1,0.1.") from error
