"""Labels for the rows of a frame or a file: the rows as they are, with the model's answer in further columns.

Enters: what is asked of each row, and rows. Leaves: the same rows in the same order, each once, none left out.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fintune.inference.progress import Tracker, tracking
from fintune.schema.errors import DataError
from fintune.serving.answers import Question, as_text
from fintune.serving.formats import make_layout
from fintune.serving.parts import PartStore, check_output
from fintune.sources import TableStream, missing_column, open_stream, table_from_frame

if TYPE_CHECKING:
    import pandas as pd

FIRST_ROWS = 64
MOST_ROWS = 1024
MOST_ROWS_A_PART = 16 * MOST_ROWS
# The clock is read between batches: a stop costs at most a part and a batch, about 20 s. Only the first batch, whose
# speed nobody knows yet, can take longer.
SECONDS_A_BATCH = 4.0
SECONDS_A_PART = 16.0
_OPEN_SUFFIXES = (".json", ".jsonl")  # formats in which each row names its columns itself


class Columns(Protocol):
    """Names of the columns that are added to a table."""

    @property
    def types(self) -> dict[str, str]:
        """The name of each column in order, with the name of its pyarrow type."""

    @property
    def others(self) -> str:
        """The column that holds columns that only some rows have."""


class Task(Protocol):
    """What is asked of each row of a file."""

    @property
    def verb(self) -> str:
        """What is done, for the progress bar."""

    @property
    def first_rows(self) -> int:
        """Rows of the first batch, whose speed nobody knows yet."""

    def columns(self, taken: Collection[str]) -> Columns:
        """Columns for the answers, under names that are not taken."""

    def values(self, texts: Sequence[str | None]) -> Iterator[list[Any]]:
        """The values of the added columns for each text, in order."""

    def job(self) -> dict[str, str | float | None]:
        """What must be the same for unfinished work to be gone on with."""

    def counts(self, rows: Iterator[dict[str, Any]], columns: Any) -> dict[str, Any]:
        """What the answers were; ``rows`` among it is their number."""


@dataclass(frozen=True)
class Filled:
    """What filling a file did.

    Attributes:
        output: the file with the answers.
        counts: what the task counts over all rows; its ``rows`` is their number.
        resumed_from: rows that an earlier start had filled.
        elapsed_s: seconds this start took.
    """

    output: Path
    counts: dict[str, Any]
    resumed_from: int
    elapsed_s: float


@dataclass(frozen=True)
class FileOutcome:
    """What labelling a file did.

    Attributes:
        output: the file with the answers.
        rows: rows in it.
        labels: how often each label was given, abstentions included.
        abstained: answers less sure than the threshold.
        unlabelled: rows without text, or whose text does not fit.
        resumed_from: rows that an earlier start had labelled.
        elapsed_s: seconds this start took.
    """

    output: Path
    rows: int
    labels: dict[str, int]
    abstained: int
    unlabelled: int
    resumed_from: int
    elapsed_s: float


@dataclass(frozen=True)
class _Table:
    """A file that is being labelled: its rows, the column with the text, and where the answers go."""

    stream: TableStream
    text: str
    answers: Columns
    keeps_strangers: bool

    def labelled(self, row: Mapping[str, Any], values: Sequence[Any]) -> dict[str, Any]:
        """The row with its answer; columns that the file's first row lacks get a place where the output has none."""
        added = dict(zip(self.answers.types, values, strict=True))
        reserved = {*added, self.answers.others}
        strangers = [name for name in row if name not in self.stream.columns]
        moved = [name for name in strangers if not self.keeps_strangers or name in reserved]
        kept = {name: value for name, value in row.items() if name not in moved}
        others = {self.answers.others: {name: row[name] for name in moved}} if moved else {}
        return {**kept, **added, **others}


def label_frame(question: Question, frame: pd.DataFrame, text: str) -> pd.DataFrame:
    """A copy of the frame with the answers in further columns."""
    import pandas as pd

    table_from_frame(frame[:1] if isinstance(frame, pd.DataFrame) else frame)  # checks the names
    if text not in frame.columns:
        raise missing_column("The frame", text, list(frame.columns))
    texts = [as_text(row[text]) for row in table_from_frame(frame[[text]]).rows]
    names = list(question.columns(frame.columns).types)
    added = pd.DataFrame(list(question.values(texts)), frame.index, names)
    return pd.concat([frame, added], axis=1)


def label_file(
    question: Question, source: Path, text: str, output: Path, *, progress: bool, **reading: str | None
) -> FileOutcome:
    """Labels a file part by part; see ``Predictor.predict_file``."""
    done = fill_file(question, lambda file: open_stream(file, **reading), source, text, output, progress=progress)
    return FileOutcome(done.output, **done.counts, resumed_from=done.resumed_from, elapsed_s=done.elapsed_s)


def fill_file(
    task: Task, open_rows: Callable[[Path], TableStream], source: Path, text: str, output: Path, *, progress: bool
) -> Filled:
    """Asks the task about every row of a file, part by part; a start after a stop goes on after the last part.

    Args:
        task: what is asked.
        open_rows: opens the file.
        source: the file.
        text: its column with the text.
        output: .csv, .jsonl or .parquet file that is written.
        progress: show progress on standard error.

    Raises:
        DataError: the file cannot be read, lacks the column, or ``output`` exists already.
    """
    started = time.perf_counter()
    source, output = source.expanduser(), output.expanduser()
    check_output(output)
    if source.is_dir():
        raise DataError(f"{source} is a folder.", "Name one data file in it.")
    stream = open_rows(source)
    if text not in stream.columns:
        raise missing_column(str(source), text, stream.columns)
    is_open = _format_of(source) in _OPEN_SUFFIXES
    keeps_strangers = output.suffix.lower() == ".jsonl"
    answers = task.columns(stream.columns)
    others = {answers.others: "string"} if is_open and not keeps_strangers else {}
    layout = make_layout(stream.columns, stream.schema, {**answers.types, **others})
    store = PartStore(output, layout, _job(task, source, text))
    if counts := store.finished():
        return Filled(output, counts, counts["rows"], time.perf_counter() - started)
    table = _Table(stream, text, answers, keeps_strangers)
    with store.claimed() as done:
        with tracking(f"{task.verb} {source.name}", stream.n_rows, shown=progress, done=done) as tracker:
            for start, rows in _parts(task, table, done, tracker):
                store.write(start, rows)
        counted = task.counts(store.rows(), answers)
        store.finish(counted)
    return Filled(output, counted, done, time.perf_counter() - started)


def _parts(task: Task, table: _Table, done: int, tracker: Tracker) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Filled rows from row ``done`` on, in parts that are written as they come."""
    part: list[dict[str, Any]] = []
    begun = time.perf_counter()
    given = table.stream.rows_from(done)
    size = min(FIRST_ROWS, task.first_rows)
    while rows := list(islice(given, size)):
        batch_begun = time.perf_counter()
        values = task.values([as_text(row.get(table.text)) for row in rows])
        part += [table.labelled(row, found) for row, found in zip(rows, values, strict=True)]
        tracker.advance(len(rows))
        now = time.perf_counter()
        size = next_size(size, now - batch_begun)
        if len(part) >= MOST_ROWS_A_PART or now - begun > SECONDS_A_PART:
            yield done, part
            done, part, begun = done + len(part), [], time.perf_counter()
    if part:
        yield done, part


def next_size(size: int, elapsed_s: float) -> int:
    """Rows of the next batch, so that it takes the time a batch should; at most four times as many as before."""
    fitting = int(size * min(4.0, SECONDS_A_BATCH / max(elapsed_s, 1e-9)))
    return max(1, min(fitting, MOST_ROWS))


def _format_of(source: Path) -> str:
    suffixes = [suffix.lower() for suffix in source.suffixes]
    return next((suffix for suffix in reversed(suffixes) if suffix != ".gz"), "")


def _job(task: Task, source: Path, text: str) -> dict[str, str | float | None]:
    """What must be the same for unfinished work to be gone on with."""
    with source.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"input": digest, "text column": text, **task.job()}
