"""Labels for the rows of a frame or a file: the rows as they are, with the model's answer in further columns.

Enters: what is asked of each row, rows, and what answers groups of them. Leaves: the same rows in the same order, each
once, none left out.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fintune.inference.progress import tracking
from fintune.schema.errors import DataError
from fintune.serving.answers import Question, as_text
from fintune.serving.formats import WRITERS, Row, make_layout
from fintune.serving.groups import Answers, Engine, in_this_process, open_groups
from fintune.serving.parts import PartStore, check_output
from fintune.sources import TableStream, missing_column, open_stream, table_from_frame

if TYPE_CHECKING:
    import pandas as pd

_SIZE = "rows a part"
_OPEN_SUFFIXES = (".json", ".jsonl")  # formats in which each row names its columns itself


class Columns(Protocol):
    """Names of the columns that are added to a table."""

    @property
    def types(self) -> dict[str, str]:
        """The name of each column in order, with the name of its pyarrow type."""

    @property
    def others(self) -> str:
        """The column that holds columns that only some rows have."""


class Task(Answers, Protocol):
    """What is asked of each row of a file."""

    @property
    def verb(self) -> str:
        """What is done, for the progress bar."""

    @property
    def rows_a_part(self) -> int:
        """Rows that are answered and written together; a stop costs at most so many in each process."""

    def columns(self, taken: Collection[str]) -> Columns:
        """Columns for the answers, under names that are not taken."""

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
    """A file that is being labelled: its rows, and where the answers go."""

    stream: TableStream
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

    def rows(self, answers: Iterator[list[Any]]) -> Iterator[Row]:
        """All rows with their answers."""
        for row, values in zip(self.stream.rows_from(0), answers, strict=True):
            yield self.labelled(row, values)


def label_frame(question: Question, frame: pd.DataFrame, text: str) -> pd.DataFrame:
    """A copy of the frame with the answers in further columns."""
    import pandas as pd

    table_from_frame(frame[:1] if isinstance(frame, pd.DataFrame) else frame)  # checks the names
    if text not in frame.columns:
        raise missing_column("The frame", text, list(frame.columns))
    texts = [as_text(row[text]) for row in table_from_frame(frame[[text]]).rows]
    names = list(question.columns(frame.columns).types)
    added = pd.DataFrame(list(question.values(question.read(texts))), frame.index, names)
    return pd.concat([frame, added], axis=1)


def label_file(
    question: Question,
    source: Path,
    text: str,
    output: Path,
    *,
    progress: bool,
    engine: Engine | None = None,
    reading: Mapping[str, str | None] | None = None,
) -> FileOutcome:
    """Labels a file group by group; see ``Predictor.predict_file``.

    Args:
        question: what is asked of each row.
        source: the file.
        text: its column with the text.
        output: .csv, .jsonl or .parquet file that is written.
        progress: show progress on standard error.
        engine: what answers the question; its own labeller, in this process, when None.
        reading: delimiter, encoding or sheet, where detection fails.

    Raises:
        DataError: the file cannot be read, lacks the column, or ``output`` exists already.
    """

    def open_rows(file: Path) -> TableStream:
        return open_stream(file, **(reading or {}))

    done = fill_file(question, open_rows, source, text, output, progress=progress, engine=engine)
    return FileOutcome(done.output, **done.counts, resumed_from=done.resumed_from, elapsed_s=done.elapsed_s)


def fill_file(
    task: Task,
    open_rows: Callable[[Path], TableStream],
    source: Path,
    text: str,
    output: Path,
    *,
    progress: bool,
    engine: Engine | None = None,
) -> Filled:
    """Asks the task about every row of a file, group by group; a start after a stop does the groups that are missing.

    Args:
        task: what is asked.
        open_rows: opens the file.
        source: the file.
        text: its column with the text.
        output: .csv, .jsonl or .parquet file that is written.
        progress: show progress on standard error.
        engine: what answers groups; the task, in this process, when None.

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
    columns = task.columns(stream.columns)
    others = {columns.others: "string"} if is_open and not keeps_strangers else {}
    layout = make_layout(stream.columns, stream.schema, {**columns.types, **others})
    as_it_was = _as_it_is(source)
    size = PartStore(output, {}).noted(_SIZE)  # of work begun elsewhere, where a group may have another size
    size = size if isinstance(size, int) and size > 0 else task.rows_a_part
    store = PartStore(output, {**_job(task, source, stream, text), _SIZE: size})
    if counts := store.finished():
        return Filled(output, counts, counts["rows"], time.perf_counter() - started)
    with store.claimed() as done:
        n_done = sum(stop - start for start, stop in done.items())
        with tracking(f"{task.verb} {source.name}", stream.n_rows, shown=progress, done=n_done) as tracker:
            for answered in (engine or in_this_process(task))(open_groups(stream, text, size, done)):
                store.write(answered.start, answered.values)
                tracker.advance(len(answered.values))
        if _as_it_is(source) != as_it_was:
            raise DataError(f"{source} changed while its rows were read.", f"Remove {store.folder} and start again.")
        names = list(columns.types)
        counted = task.counts((dict(zip(names, values, strict=True)) for values in store.answers()), columns)
        rows = _Table(stream, columns, keeps_strangers).rows(store.answers())
        store.finish(counted, lambda path: WRITERS[output.suffix.lower()](path, rows, layout))
    return Filled(output, counted, n_done, time.perf_counter() - started)


def _as_it_is(source: Path) -> tuple[int, int]:
    found = source.stat()
    return found.st_size, found.st_mtime_ns


def _format_of(source: Path) -> str:
    suffixes = [suffix.lower() for suffix in source.suffixes]
    return next((suffix for suffix in reversed(suffixes) if suffix != ".gz"), "")


def _job(task: Task, source: Path, stream: TableStream, text: str) -> dict[str, str | float | None]:
    """What must be the same for unfinished work to be gone on with; the same bytes read otherwise are other rows."""
    with source.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return {"input": digest, **stream.reading, "text column": text, **task.job()}
