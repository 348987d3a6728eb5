"""The words of this room: ``Prompt``, ``Row``, ``Task`` and ``LoadedTask``.

A prompt may speak other label words than the task (FLARE's FiQA asks for ``Positive``). Everything about one
document (choices, target, prediction) is therefore in its ``Example``'s own words: score against ``example.choices``.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from fintune.schema.errors import DataError, RecipeError
from fintune.schema.example import Example, Message
from fintune.schema.quality import QualityProblem, QualityReport
from fintune.schema.recipe import TaskSection
from fintune.schema.results import DataLicence, Judgement, Protocol, Scoring
from fintune.sources.table import RawTable

Builder = Callable[[Path], Mapping[str, RawTable] | None]
"""Makes rows by split from the files of an original corpus; None when the folder does not hold them."""


@dataclass(frozen=True)
class Prompt:
    """A named wording around the document.

    Attributes:
        name: how recipes call it.
        before: instruction in front of the document; ``<kind>`` becomes the document's kind (headline, post, news).
        after: what follows the document.
        words: the label words this wording asks for, in the order of the task's choices; empty: the choices.
        kinds: what a row's kind is called in this wording; kinds not listed keep their name.
        source: where the wording is from.
    """

    name: str
    before: str
    after: str = ""
    words: tuple[str, ...] = ()
    kinds: Mapping[str, str] = field(default_factory=dict)
    source: str = ""

    def message(self, document: str, kind: str) -> Message:
        """The user's turn; only the document's span may be shortened."""
        return Message.around("user", self.before.replace("<kind>", self.kinds.get(kind, kind)), document, self.after)

    def ask(self, document: str, kind: str, verbatim: str = "") -> Message:
        """The user's turn; ``verbatim``, the prompt that a source's own row carries, is used as it is if it holds the
        document.
        """
        if not verbatim or document not in verbatim:
            return self.message(document, kind)
        start = verbatim.rfind(document)
        return Message("user", verbatim, (start, start + len(document)))


@dataclass(frozen=True)
class Row:
    """One row of a source as the task understands it.

    Attributes:
        row_id: unique within its split.
        text: the document.
        label: the canonical label, or the answer to be given; None when it is not usable.
        kind: what the document is, for prompts that name it.
        query: the prompt the source's row carries, if any.
        group: what statistics cluster by and splits keep together; the text when empty.
        date: when the document was published.
        identity: what makes two rows repeats of each other; the text when empty (a question adds itself).
        metadata: anything the examples should carry.
        left_out: why the row is not used; '' where it is.
    """

    row_id: str
    text: str
    label: str | None
    kind: str = ""
    query: str = ""
    group: str = ""
    date: datetime | None = None
    identity: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    left_out: str = ""


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """Data, prompts, targets and scoring of one data set; subclasses know one kind of answer.

    Attributes:
        name: registered name.
        version: raised whenever prompts, labels, splits or scoring change.
        description: one sentence for people.
        prompts: named prompts.
        default_prompt: name of the prompt that null stands for.
        licence: terms of the data, as its publisher states them.
        citation: publication.
        folder: sub-folder of ``FINTUNE_DATA_DIR`` that holds the original files.
        known_files: by config ('' for none), layouts of the original release to look for in a folder.
        builders: by config, what makes rows of original files that no reader knows; tried before ``known_files``.
        hub_ids: by config, the hub id that ``source: null`` tries.
        configs: variants; the first is the default.
        hub_configs: by hub id, the one config that its rows are.
        split_rule: name of the published rule that splits an unsplit source, by config; ``latest`` validates by time.
        split_notes: by config, what differs from the published split.
        protocols: how answers are read, the first being the one to quote.
        choices: canonical labels in fixed order; empty for free text.
        max_answer_tokens: longest answer that is generated.
        stop_strings: text that ends an answer, besides the end of the turn.
        history: what earlier turns of a dialogue show: the answers given in the data, or the system's own.
    """

    name: str
    version: str
    description: str
    prompts: Mapping[str, Prompt]
    default_prompt: str
    licence: str
    citation: str
    folder: str
    known_files: Mapping[str, tuple[Mapping[str, tuple[str, ...]], ...]] = field(default_factory=dict)
    builders: Mapping[str, Builder] = field(default_factory=dict)
    hub_ids: Mapping[str, str] = field(default_factory=dict)
    configs: tuple[str, ...] = ()
    hub_configs: Mapping[str, str] = field(default_factory=dict)
    split_rule: Mapping[str, str] = field(default_factory=dict)
    split_notes: Mapping[str, str] = field(default_factory=dict)
    protocols: tuple[Protocol, ...] = ("robust",)
    choices: tuple[str, ...] = ()
    max_answer_tokens: int = 16
    stop_strings: tuple[str, ...] = ()
    history: Literal["given", "own"] = "given"

    @property
    @abstractmethod
    def scoring(self) -> Scoring:
        """The family of scores its records are aggregated by."""

    @abstractmethod
    def parse_row(self, raw: Mapping[str, Any], index: int, split: str) -> Row:
        """What the task understands of a source's row; ``index`` and ``split`` make an id where it brings none."""

    @abstractmethod
    def make_example(self, row: Row, prompt: str | None = None) -> Example:
        """The row under a prompt, with its target."""

    @abstractmethod
    def judge(self, example: Example, answer: str | None, protocol: Protocol = "robust") -> Judgement:
        """What an answer is worth; None is no answer, such as for a document that does not fit the model."""

    def raw_label(self, raw: Mapping[str, Any], index: int) -> Any:
        """The label as the source has it, for the quality report."""
        return self.parse_row(raw, index, "").label

    def complete_rows(self, rows: list[Row]) -> list[Row]:
        """The rows of one split with what only the others can tell, such as the answers of earlier turns."""
        return rows

    def complete_splits(
        self, rows: dict[str, list[Row]], config: str, source: str
    ) -> tuple[dict[str, list[Row]], tuple[QualityProblem, ...]]:
        """The rows of all splits with what only the others can tell, or why they are left out; and what is wrong."""
        return rows, ()

    def with_history(self, example: Example, answers: Sequence[str]) -> Example:
        """The example with the system's own earlier answers in place of the right ones, where it has turns."""
        return example

    def resolve_prompt(self, prompt: str | None) -> Prompt:
        """The prompt of that name, or a ``RecipeError`` naming the nearest."""
        name = prompt or self.default_prompt
        if name not in self.prompts:
            raise RecipeError(_unknown(f"Task {self.name} has no prompt", name, self.prompts), _known(self.prompts))
        return self.prompts[name]

    def resolve_config(self, config: str | None) -> str:
        """The config of that name, '' when the task has none."""
        if config is None or (not self.configs and config == ""):
            return self.configs[0] if self.configs else ""
        if config not in self.configs:
            message = _unknown(f"Task {self.name} has no config", config, self.configs)
            named = [name for name in self.configs if name]
            may_be_left_out = ["leave config out"] if len(named) < len(self.configs) or not named else []
            ways = " or ".join([*may_be_left_out, *([f"choose one of {', '.join(named)}"] if named else [])])
            raise RecipeError(message, f"{ways[0].upper()}{ways[1:]}.")
        return config

    def column(self, raw: Mapping[str, Any], names: Sequence[str], what: str, index: int) -> str:
        """The first of ``names`` that the row has, or a ``DataError``."""
        found = next((name for name in names if name in raw), None)
        if found is None:
            raise DataError(
                f"Row {index + 1} of task {self.name}'s data has no {what} column; its columns are {', '.join(raw)}.",
                f"Name the {what} column one of {', '.join(names)}.",
            )
        return found


def _unknown(message: str, name: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(name, list(known), n=1)
    return f"{message} named {name!r}" + (f"; the nearest is {nearest[0]}." if nearest else ".")


def _known(known: Iterable[str]) -> str:
    return f"Choose one of {', '.join(known)}."


@dataclass(frozen=True)
class LoadedTask:
    """A task with its rows.

    Attributes:
        task: the task.
        section: the recipe's section with source, config, prompt, revision and content hash pinned.
        splits: ``train``, ``validation`` and ``test``; a split the source lacks is empty.
        licence: source, terms, citation, split note and hash, ready for the report.
        split_note: which split was used and how it was made.
        content_hash: SHA-256 of the rows as read, before anything was dropped.
        counts: ``read`` and ``kept`` by split, ``dropped`` by reason.
        quality: what was found in the rows as read.
        notes: what was detected about the files, such as a delimiter or an encoding.
    """

    task: Task
    section: TaskSection
    splits: Mapping[str, tuple[Example, ...]]
    licence: DataLicence
    split_note: str
    content_hash: str
    counts: Mapping[str, Mapping[str, int]]
    quality: QualityReport
    notes: tuple[str, ...] = ()

    @property
    def source(self) -> str:
        """What the rows were read from."""
        return self.licence.source


def unique_ids(examples: list[Example]) -> list[Example]:
    """Numbers repeated ids of a split, so that every document has its own record."""
    seen: Counter[str] = Counter()
    unique = []
    for example in examples:
        seen[example.example_id] += 1
        count = seen[example.example_id]
        unique.append(example if count == 1 else replace(example, example_id=f"{example.example_id}#{count}"))
    return unique
