"""A written answer for every row of a file: the rows as they are, with the answer in further columns.

Enters: a ``Predictor`` and a file of prompts, a table or one prompt a line. Leaves: a file with every row once; a start
after a kill goes on where it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fintune.schema.errors import FintuneError
from fintune.schema.example import Message
from fintune.serving.answers import NO_TEXT
from fintune.serving.asking import Asked
from fintune.serving.files import fill_file
from fintune.serving.writing import WritingOptions, Written, write_together
from fintune.sources import TableStream, open_stream
from fintune.sources.files import existing_file
from fintune.sources.opening import text_lines
from fintune.sources.stream import make_stream

if TYPE_CHECKING:
    from fintune.serving.predictor import Predictor

LINE = "prompt"
"""The column of prompts, and what the lines of a text file become."""
_ROWS_A_PART = {"cpu": 8, "gpu": 512}


@dataclass(frozen=True)
class GenerationOutcome:
    """What writing answers to a file did.

    Attributes:
        output: the file with the answers.
        rows: rows in it.
        unanswered: rows without a prompt, or whose prompt does not fit; their note says why.
        shortened: prompts that lost their beginning.
        tokens: tokens of all answers.
        resumed_from: rows that an earlier start had answered.
        elapsed_s: seconds this start took.
        tokens_per_s: tokens this start wrote, over the seconds it was writing; None where it wrote none.
        time_to_first_token_s: of the first answers that this start wrote; None where it wrote none.
    """

    output: Path
    rows: int
    unanswered: int
    shortened: int
    tokens: int
    resumed_from: int
    elapsed_s: float
    tokens_per_s: float | None
    time_to_first_token_s: float | None


@dataclass(frozen=True)
class WrittenColumns:
    """Names of the columns that are added: ``prefix`` keeps them apart from those of the table."""

    prefix: str = ""

    @property
    def types(self) -> dict[str, str]:
        """The name of each column in order, with the name of its pyarrow type."""
        kinds = {"answer": "string", "ended": "string", "answer_tokens": "int64", "prompt_tokens": "int64"}
        kinds |= {"dropped_prompt_tokens": "int64", "note": "string"}
        return {f"{self.prefix}{name}": kind for name, kind in kinds.items()}

    @property
    def others(self) -> str:
        """Holds columns that only some rows have."""
        return f"{self.prefix}other_columns"


@dataclass
class _Writing:
    """Writes an answer to each text; remembers what this start wrote and how long it took."""

    predictor: Predictor
    options: WritingOptions
    verb: ClassVar[str] = "answering"
    wrote: list[tuple[int, float]] = field(default_factory=list)
    first_token_s: float | None = None

    @property
    def rows_a_part(self) -> int:
        """Enough to keep the device busy."""
        return _ROWS_A_PART["cpu" if self.predictor.scorer.model.device.type == "cpu" else "gpu"]

    def columns(self, taken: Collection[str]) -> WrittenColumns:
        """Bare names, or those with the first prefix that keeps all apart."""
        prefixes = (f"fintune{number if number > 1 else ''}_" if number else "" for number in count())
        found = (WrittenColumns(prefix) for prefix in prefixes)
        return next(columns for columns in found if not {*columns.types, columns.others} & set(taken))

    def read(self, texts: Sequence[str | None]) -> list[Asked | str]:
        """The prompt of each text, or why there is none."""
        return [self._asked(text) for text in texts]

    def values(self, read: list[Asked | str]) -> Iterator[list[Any]]:
        """Answer, how it ended, tokens of answer and prompt, tokens left out, and a note where there is no answer."""
        asked = read
        answers = iter(self._write([prompt for prompt in asked if isinstance(prompt, Asked)]))
        for prompt in asked:
            if isinstance(prompt, str):
                yield [None] * 5 + [prompt]
                continue
            answer = next(answers)
            tokens = [answer.n_tokens, answer.prompt_tokens, answer.dropped_tokens]
            yield [answer.text, answer.ended, *tokens, None]

    def job(self) -> dict[str, str | float | None]:
        """What must be the same for unfinished work to be gone on with."""
        how = hashlib.sha256(repr(sorted(asdict(self.options).items())).encode()).hexdigest()
        return {"model": self.predictor.identity, "options": how}

    def counts(self, rows: Iterator[dict[str, Any]], columns: WrittenColumns) -> dict[str, int]:
        """Rows, those without an answer, those shortened, and tokens of all answers."""
        names = [f"{columns.prefix}{name}" for name in ("answer", "dropped_prompt_tokens", "answer_tokens")]
        found = {"rows": 0, "unanswered": 0, "shortened": 0, "tokens": 0}
        for row in rows:
            answer, dropped, tokens = (row[name] for name in names)
            found["rows"] += 1
            found["unanswered"] += answer is None
            found["shortened"] += bool(dropped)
            found["tokens"] += tokens or 0
        return found

    def _asked(self, text: str | None) -> Asked | str:
        """The prompt, or why there is none."""
        if text is None or not text.strip():
            return NO_TEXT
        try:
            return self.options.ask(self.predictor, [Message("user", text)])
        except FintuneError as error:
            return error.message

    def _write(self, asked: list[Asked]) -> list[Written]:
        if not asked:
            return []
        answers = write_together(self.predictor, asked, self.options)
        if self.first_token_s is None:
            self.first_token_s = answers[0].time_to_first_token_s
        self.wrote.append((sum(answer.n_tokens for answer in answers), answers[0].elapsed_s))
        return answers


def write_file(
    predictor: Predictor,
    source: Path,
    output: Path,
    options: WritingOptions,
    *,
    column: str = LINE,
    progress: bool,
) -> GenerationOutcome:
    """Answers every row of a file.

    Args:
        predictor: what writes.
        source: CSV, JSONL, Parquet or Excel file; or .txt with one prompt a line.
        output: .jsonl, .csv or .parquet file that is written.
        options: lengths and sampling; every row is drawn from the same seed, so that it is as if asked alone.
        column: with the prompt.
        progress: show progress on standard error.

    Raises:
        DataError: the file cannot be read, lacks the column, or ``output`` exists already.
        ModelError: max_new_tokens leaves no room for any prompt.
    """
    options.ask(predictor, [Message("user", "a")])  # what no row could get by is said once, not row by row
    task = _Writing(predictor, options)
    open_rows = _lines if source.suffix.lower() == ".txt" else open_stream
    done = fill_file(task, open_rows, source, column, output, progress=progress)
    tokens, seconds = (sum(column) for column in zip((0, 0.0), *task.wrote, strict=True))
    return GenerationOutcome(
        output=done.output,
        **done.counts,
        resumed_from=done.resumed_from,
        elapsed_s=done.elapsed_s,
        tokens_per_s=tokens / seconds if seconds else None,
        time_to_first_token_s=task.first_token_s,
    )


def _lines(source: Path) -> TableStream:
    """Each line as a row, blank ones too, so that line n of the output answers line n."""
    file = existing_file(source)

    def rows_from(start: int) -> Iterator[dict[str, Any]]:
        lines = text_lines(file, "utf-8-sig")
        for line in islice(lines, start, None):
            yield {LINE: line.rstrip("\r\n")}

    return make_stream(file, rows_from)
