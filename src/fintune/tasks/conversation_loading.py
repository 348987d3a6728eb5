"""From a section with ``conversations`` to a ``LoadedTask``: read, parsed, checked, split, made into examples.

Splits depend on the rows alone, never on a run's seed, so that runs with other seeds share their held-out rows.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from fintune.schema.conversations import ConversationsSection
from fintune.schema.errors import DataError
from fintune.schema.quality import QualityProblem, QualityReport
from fintune.schema.recipe import TaskSection
from fintune.schema.results import DataLicence
from fintune.sources import ALL, CheckedRow, RawTable, hash_tables, inspect_rows, with_problems
from fintune.sources.documents import holds_documents, read_documents
from fintune.sources.quality_problems import problem
from fintune.tasks.base import LoadedTask, Row, unique_ids
from fintune.tasks.conversation_quality import usable_rows, without_repeats
from fintune.tasks.conversation_rows import join_exchanges, pin_format
from fintune.tasks.conversations import ConversationTask, with_candidates
from fintune.tasks.own_source import found_in_data_dir, read_own_source
from fintune.tasks.registry import task_of
from fintune.tasks.splits import OWN_SPLITS, Splits, split_off

logger = logging.getLogger(__name__)

_MANY = 0.2
"""From this share of a source left out, its report warns."""


def load_conversations(section: TaskSection, *, max_characters: int) -> LoadedTask:
    """Loads conversations or texts as examples in train, validation and test.

    Args:
        section: source and ``conversations``.
        max_characters: longer ones are reported as over-long.

    Raises:
        DataError: the source cannot be read, is in no known format, or has no usable row.
    """
    asked = section.conversations
    assert asked is not None, "the caller looks for conversations"
    source, tables = _read(section, asked)
    content_hash = hash_tables(tables)
    if section.content_hash not in (None, content_hash):
        raise DataError(
            f"The rows of {section.name} from {source} are not the ones the recipe pins "
            f"(SHA-256 {content_hash[:12]}…).",
            "Restore the data, or clear data.tasks[].content_hash to accept the new rows.",
        )
    pinned = pin_format(asked, next(iter(tables.values())))
    revision = next((table.revision for table in tables.values()), None)
    section = section.model_copy(
        update={"source": source, "conversations": pinned, "revision": revision, "content_hash": content_hash}
    )
    task = task_of(section)
    assert isinstance(task, ConversationTask)
    parsed = {split: _parse(task, table, split) for split, table in tables.items()}
    rows, left_out = _checked(parsed, pinned)
    if not any(rows.values()):
        raise _nothing_left(section.name, source, left_out)
    splits, note = _split(rows, pinned)
    examples = {split: tuple(unique_ids([task.make_example(row) for row in found])) for split, found in splits.items()}
    if task.measure == "next_turn":
        examples |= {split: tuple(with_candidates(examples[split])) for split in ("validation", "test")}
    for reason, number in left_out.items():
        logger.info("Task %s: %d: %s.", section.name, number, reason)
    return LoadedTask(
        task=task,
        section=section,
        splits=examples,
        licence=DataLicence(
            task=section.name,
            source=source,
            licence=task.licence,
            citation="",
            split_note=note,
            content_hash=content_hash,
        ),
        split_note=note,
        content_hash=content_hash,
        counts={
            "read": {split: len(found) for split, found in parsed.items()},
            "dropped": dict(left_out),
            "kept": {split: len(found) for split, found in splits.items()},
        },
        quality=_quality(task, parsed, tables, left_out, max_characters, source),
        notes=tuple(dict.fromkeys(note for table in tables.values() for note in table.notes)),
    )


def _read(section: TaskSection, asked: ConversationsSection) -> tuple[str, Mapping[str, RawTable]]:
    source = found_in_data_dir(str(section.source))
    path = Path(source).expanduser()
    if holds_documents(path):
        return source, {ALL: read_documents(path, asked.encoding)}
    return read_own_source(section.model_copy(update={"source": source}), asked)


def _parse(task: ConversationTask, table: RawTable, split: str) -> list[Row]:
    section = task.section
    rows = join_exchanges(table, section)
    if section.conversation is not None:
        listed = section.model_copy(update={"format": "messages", "turns": "messages"})
        task = replace(task, section=listed)
    return [task.parse_row(raw, index, split) for index, raw in enumerate(rows)]


def _checked(
    parsed: Mapping[str, Sequence[Row]], section: ConversationsSection
) -> tuple[dict[str, list[Row]], Counter[str]]:
    """The usable rows by split, and what was left out; held-out rows of the source's own splits are no repeats."""
    rows: dict[str, list[Row]] = {}
    left_out: Counter[str] = Counter()
    for split, found in parsed.items():
        usable, reasons = usable_rows(found, section)
        rows[split], repeats = without_repeats(usable, section.near_duplicates)
        left_out += reasons + repeats
    return rows, left_out


def _split(rows: Mapping[str, Sequence[Row]], section: ConversationsSection) -> tuple[Splits, str]:
    what = f"{section.group} values" if section.group else "conversations and texts"
    validation, test = rows.get("validation"), rows.get("test")
    train = list(rows.get("train", rows.get(ALL, ())))
    note, share = OWN_SPLITS, section.validation_share
    if test is None and validation is not None:
        note, test, validation = (
            "Test is the source's validation split: its test split is not published.",
            validation,
            None,
        )
    if test is None:
        train, test = split_off(train, section.test_share, stratified=False)
        share /= max(1 - section.test_share, share, 1e-9)  # of what is left
        note = f"No published split: test is {section.test_share:.0%} of the {what}, chosen by hash."
    if validation is None:
        train, validation = split_off(train, share, stratified=False)
        note += f" Validation is {section.validation_share:.0%}, chosen the same way."
    return {"train": train, "validation": list(validation), "test": list(test)}, note


def _quality(
    task: ConversationTask,
    parsed: Mapping[str, Sequence[Row]],
    tables: Mapping[str, RawTable],
    left_out: Counter[str],
    max_characters: int,
    source: str,
) -> QualityReport:
    report = inspect_rows(
        task.name,
        {
            # What is said has no label, and rows that say nothing are counted by reason.
            split: [CheckedRow(i + 1, row.text, "", "") for i, row in enumerate(rows) if row.label is not None]
            for split, rows in parsed.items()
        },
        # Texts are cut into blocks: none is too long.
        max_characters=sys.maxsize if task.section.format == "text" else max_characters,
        choices=None,
        raw_rows=[row for table in tables.values() for row in table.rows],
        source=source,
    )
    report = report.model_copy(update={"left_out": dict(left_out)})
    return with_problems(report, _left_out_problem(task.name, sum(map(len, parsed.values())), left_out))


def _left_out_problem(name: str, n_rows: int, left_out: Counter[str]) -> list[QualityProblem]:
    if not left_out:
        return []
    listed = "; ".join(f"{number:,} {reason}" for reason, number in left_out.most_common())
    return [
        problem(
            "left_out",
            "warning" if left_out.total() > _MANY * n_rows else "info",
            f"Of {n_rows:,} conversations or texts of {name}: {listed}.",
            "Correct them, or change the checks in its conversations section.",
        )
    ]


def _nothing_left(name: str, source: str, left_out: Counter[str]) -> DataError:
    reason, number = next(iter(left_out.most_common(1)), ("no rows", 0))
    return DataError(
        f"No conversation or text of {name} from {source} can be used ({number:,}: {reason}).",
        "Check which columns are named, and the limits in its conversations section (min_latin_share for other "
        "scripts).",
    )
