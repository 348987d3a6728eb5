"""From a recipe's ``TaskSection`` to a ``LoadedTask``: find the source, read it, split it, build the examples.

``source: null`` tries, in order: ``FINTUNE_DATA_DIR/<task folder>``, the task's hub id, the shipped sample; which one
was used, and why, is logged and pinned in the returned section.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from fintune.schema.errors import DataError
from fintune.schema.quality import QualityProblem
from fintune.schema.recipe import TableSection, TaskSection
from fintune.schema.results import SAMPLE_OF, DataLicence
from fintune.sources import (
    ALL,
    CheckedRow,
    RawTable,
    has_sample,
    hash_tables,
    inspect_rows,
    is_archive,
    looks_like_hub_id,
    read_archive,
    read_file,
    read_folder,
    read_hub,
    read_sample,
    sample_note,
    with_problems,
)
from fintune.tasks.base import LoadedTask, Row, Task, unique_ids
from fintune.tasks.classification import ClassificationTask
from fintune.tasks.conversation_loading import load_conversations
from fintune.tasks.own import pin_table
from fintune.tasks.own_checks import label_error, label_problems, left_problems, with_label_error
from fintune.tasks.own_columns import dated_and_grouped
from fintune.tasks.own_source import DATA_DIR_VARIABLE, read_own_source
from fintune.tasks.own_splits import keep_source_splits, split_own_rows
from fintune.tasks.registry import get_task, task_of
from fintune.tasks.splits import OWN_SPLITS, make_splits

logger = logging.getLogger(__name__)

MAX_CHARACTERS = 8192
"""About what 2,048 tokens hold."""
Tables = Mapping[str, RawTable]


def load_task(
    section: TaskSection, *, seed: int = 17, max_characters: int = MAX_CHARACTERS, strict: bool = True
) -> LoadedTask:
    """Loads a task's rows as examples in train, validation and test.

    Args:
        section: which task, from where, in which config and under which prompt.
        seed: the run's seed; splits do not depend on it, so that runs with other seeds share their test rows.
        max_characters: longer texts are reported as over-long.
        strict: an unknown label in a table of one's own is raised; otherwise it is an error of the quality report.
    """
    if section.conversations is not None:
        return load_conversations(section, max_characters=max_characters)
    if section.table is None:
        task = get_task(section.name)
        config = task.resolve_config(section.config)
        source, tables = _read_source(task, section, config)
    else:
        source, tables = read_own_source(section, section.table)
        section, config = pin_table(section, tables), ""
        task = task_of(section)
    own = section.table
    wrong = label_error(task, own, tables) if own is not None and isinstance(task, ClassificationTask) else None
    if wrong is not None and strict:
        raise wrong
    prompt = task.resolve_prompt(section.prompt).name
    content_hash = hash_tables(tables)
    if section.content_hash not in (None, content_hash):
        raise DataError(
            f"The rows of {task.name} from {source} are not the ones the recipe pins (SHA-256 {content_hash[:12]}…).",
            "Restore the data, or clear data.tasks[].content_hash to accept the new rows.",
        )
    parsed, unread = _parse_tables(task, tables, section.table)
    if wrong is not None and not any(row.label is not None for rows in parsed.values() for row in rows):
        raise wrong
    parsed, known_flaws = task.complete_splits(parsed, config, source)
    quality = inspect_rows(
        task.name,
        {split: _checked(task, tables[split], rows) for split, rows in parsed.items()},
        max_characters=max_characters,
        choices=task.choices or None,
        raw_rows=[row for table in tables.values() for row in table.rows],
        source=source,
    )
    splits, counts, note, odd = _split_rows(task, parsed, config, source, section.table, unread)
    problems = [*label_problems(section.table, tables), *known_flaws, *odd]
    quality = with_problems(with_label_error(quality, wrong), problems)
    examples = {
        split: tuple(unique_ids([task.make_example(row, prompt) for row in rows])) for split, rows in splits.items()
    }
    said = task.split_notes.get(config)
    if said:
        note = said if note.startswith(OWN_SPLITS) else f"{note} {said}"
    if source == "sample":
        note = f"{sample_note(task.name)} {'Of the whole: ' if said else ''}{note}"
    licence = DataLicence(
        task=task.name,
        source=source if source != "sample" else f"{SAMPLE_OF}{task.hub_ids.get(config, task.name)}",
        licence=task.licence,
        citation=task.citation,
        split_note=note,
        content_hash=content_hash,
    )
    pinned = section.model_copy(
        update={
            "source": source,
            # A hub repository that is not ours to know gets back exactly the configuration that was asked of it.
            "config": section.config if _is_unknown_hub_id(task, source) else config or None,
            "prompt": prompt,
            "revision": next((table.revision for table in tables.values()), None),
            "content_hash": content_hash,
        }
    )
    return LoadedTask(task, pinned, examples, licence, note, content_hash, counts, quality, _notes(tables))


def _read_source(task: Task, section: TaskSection, config: str) -> tuple[str, Tables]:
    """What the rows were read from, and the rows by the source's own splits."""
    source = section.source
    if source is None:
        return _read_first_available(task, section, config)
    if source == "sample":
        if not has_sample(task.name):
            raise DataError(f"Task {task.name} ships no sample: its licence is {task.licence}.", _alternatives(task))
        if not _has_sample(task, config):
            raise DataError(
                f"Task {task.name} ships no sample of its config {config}, only of its default.",
                f"Leave config out. {_alternatives(task, config)}",
            )
        return source, read_sample(task.name)
    path = Path(source).expanduser()
    if path.is_dir():
        return source, _read_folder(task, path, config)
    if path.is_file() and is_archive(path):
        return source, read_archive(path, task.known_files.get(config, ()), config or None)
    if path.is_file():
        return source, {ALL: read_file(path)}
    if looks_like_hub_id(source):
        return source, read_hub(source, _hub_config(task, source, section.config, config), section.revision)
    raise DataError(f"The source {source} of task {task.name} is no file, folder or hub id.", _alternatives(task))


def _read_folder(task: Task, folder: Path, config: str) -> Tables:
    """A folder's rows: built from an original corpus where the task can, read from its files otherwise."""
    build = task.builders.get(config)
    built = build(folder) if build is not None else None
    return built if built is not None else read_folder(folder, task.known_files.get(config, ()), config or None)


def _read_first_available(task: Task, section: TaskSection, config: str) -> tuple[str, Tables]:
    tried: list[str] = []
    data_dir = os.environ.get(DATA_DIR_VARIABLE)
    folder = Path(data_dir).expanduser() / task.folder if data_dir else None
    if folder is not None and folder.is_dir():
        logger.info("Task %s: reading %s (%s is set).", task.name, folder, DATA_DIR_VARIABLE)
        return str(folder), _read_folder(task, folder, config)
    tried.append(f"{folder} is not a folder" if folder else f"{DATA_DIR_VARIABLE} is not set")
    hub_id = task.hub_ids.get(config)
    if hub_id is not None:
        try:
            tables = read_hub(hub_id, _hub_config(task, hub_id, None, config), section.revision)
        except DataError as error:
            tried.append(error.message.rstrip("."))
        else:
            logger.info("Task %s: reading %s from the hub (%s).", task.name, hub_id, "; ".join(tried))
            return hub_id, tables
    if _has_sample(task, config) and section.revision is None:
        logger.warning("Task %s: using the shipped sample (%s).", task.name, "; ".join(tried))
        return "sample", read_sample(task.name)
    raise DataError(f"No data for task {task.name}: {'; '.join(tried)}.", _alternatives(task, config))


def _has_sample(task: Task, config: str) -> bool:
    """Whether rows of that config are shipped; a sample is of the default one."""
    return config == task.resolve_config(None) and has_sample(task.name)


def _hub_config(task: Task, hub_id: str, asked: str | None, config: str) -> str | None:
    """The configuration to ask the hub for: known repositories hold exactly one; others get what the recipe says."""
    held = task.hub_configs.get(hub_id)
    if held is None:
        return None if task.hub_ids.get(config) == hub_id else asked
    if asked is not None and held != config:
        raise DataError(
            f"{hub_id} holds {held} of {task.name}, not {config}.", f"Set config={held}, or another source."
        )
    return None


def _is_unknown_hub_id(task: Task, source: str) -> bool:
    return source not in task.hub_configs and looks_like_hub_id(source) and not Path(source).expanduser().exists()


def _alternatives(task: Task, config: str | None = None) -> str:
    hub_ids = [task.hub_ids[config]] if config and config in task.hub_ids else sorted(set(task.hub_ids.values()))
    files = sorted(
        {name for layouts in task.known_files.values() for layout in layouts for n in layout.values() for name in n}
    )
    sample = "sample, " if _has_sample(task, config or task.resolve_config(None)) else ""
    hub = f"the hub id {' or '.join(hub_ids)}, " if hub_ids else ""
    named = f" ({', '.join(files)})" if files else ""
    return (
        f"Set source to {sample}{hub}a file (csv, jsonl, parquet), or a folder with the original files{named}; or set "
        f"{DATA_DIR_VARIABLE} to the folder above {task.folder}/."
    )


def _notes(tables: Tables) -> tuple[str, ...]:
    return tuple(dict.fromkeys(note for table in tables.values() for note in table.notes))


def _parse_tables(task: Task, tables: Tables, own: TableSection | None) -> tuple[dict[str, list[Row]], str]:
    """The rows by split, and why a column of an own table that looks like dates was not used."""
    parsed: dict[str, list[Row]] = {}
    unread = ""
    for split, table in tables.items():
        rows = task.complete_rows([task.parse_row(raw, index, split) for index, raw in enumerate(table.rows)])
        if own is not None:
            rows, failure = dated_and_grouped(rows, table, own, has_own_splits=len(tables) > 1)
            unread = unread or failure
        parsed[split] = rows
    return parsed, unread


def _checked(task: Task, table: RawTable, rows: Sequence[Row]) -> list[CheckedRow]:
    return [
        CheckedRow(index + 1, row.text, task.raw_label(raw, index), row.label, row.identity)
        for index, (raw, row) in enumerate(zip(table.rows, rows, strict=True))
    ]


def _split_rows(
    task: Task,
    parsed: Mapping[str, Sequence[Row]],
    config: str,
    source: str,
    own: TableSection | None,
    unread: str,
) -> tuple[dict[str, list[Row]], dict[str, dict[str, int]], str, tuple[QualityProblem, ...]]:
    rows: dict[str, list[Row]] = {}
    positions: dict[str, list[int]] = {}
    dropped: Counter[str] = Counter()
    for split, found in parsed.items():
        there = [(index, row) for index, row in enumerate(found) if not row.left_out]
        usable = [(index, row) for index, row in there if row.text and row.label is not None]
        dropped["row without text"] += sum(not row.text for row in found)
        dropped["row without a known label"] += sum(bool(row.text) and row.label is None for _, row in there)
        dropped.update(row.left_out for row in found if row.left_out)
        if found and not usable:
            raise DataError(
                f"None of the {len(found)} rows of {task.name} ({split}) from {source} has a text and a known label.",
                f"Column {own.label} must hold numbers, which the bins cut into classes."
                if own is not None and own.bins
                else _usable_labels(task),
            )
        rows[split] = [row for _, row in usable]
        positions[split] = [index for index, _ in usable]
    n_read = {split: len(found) for split, found in parsed.items()}
    odd: tuple[QualityProblem, ...] = ()
    if own is not None and len(rows) == 1:
        splits, cleaned, note, odd = split_own_rows(next(iter(rows.values())), own.split, unread)
    elif own is not None:
        if own.split not in ("auto", "test"):
            raise DataError(
                f"A split by {own.split} is asked for, but {source} has splits of its own ({', '.join(sorted(rows))}).",
                "Leave --split (table.split) out, or put all rows into one file.",
            )
        splits, cleaned, note, odd = keep_source_splits(rows, unread)
    else:
        splits, cleaned, note = make_splits(
            rows, positions, n_read, task.split_rule.get(config, ""), stratified=bool(task.choices)
        )
    counts = {
        "read": n_read,
        "dropped": dict(+(dropped + cleaned)),
        "kept": {split: len(kept) for split, kept in splits.items()},
    }
    for reason, number in counts["dropped"].items():
        logger.info("Task %s: dropped %d: %s.", task.name, number, reason)
    if len(rows) == 1 and (own is not None or set(rows) <= {ALL, "train"}):
        listed = "; ".join(f"{number:,} {reason}" for reason, number in counts["dropped"].items())
        needed = ("test",) if own is not None and own.split == "test" else ("train", "test")
        odd += left_problems(task.name, splits, needed, f" (dropped: {listed})" if listed else "")
    return splits, counts, note, odd


def _usable_labels(task: Task) -> str:
    if isinstance(task, ClassificationTask):
        return f"Labels must be one of {', '.join(task.label_names)}."
    return "Each row needs an answer."
