"""Data sets without a model: checked, counted, or written out in splits for any other tool.

Enters: task names or a table of one's own. Leaves: ``DataSummary`` objects, and with an output directory the files.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fintune.evaluation.suite import CHARACTERS_PER_TOKEN
from fintune.evaluation.training_rows import kept_apart
from fintune.schema.errors import DataError, RecipeError
from fintune.schema.example import Example
from fintune.schema.quality import QualityProblem, QualityReport
from fintune.schema.recipe import Recipe
from fintune.schema.results import DataLicence, OverlapReport
from fintune.schema.run_directory import write_json, write_text_atomically
from fintune.sources import with_overlap, with_problems
from fintune.tasks.base import LoadedTask
from fintune.tasks.licences import require_licence
from fintune.tasks.loading import load_task
from fintune.tasks.own_checks import left_problems
from fintune.tasks.registry import get_task

REPORT_FILE = "data_report.json"


@dataclass(frozen=True)
class SplitSummary:
    """One split: its rows, groups, labels, and the words of its texts."""

    rows: int
    groups: int
    labels: dict[str, int]
    median_words: float
    longest_words: int


@dataclass(frozen=True)
class DataSummary:
    """A task's data: terms, how it was split, what each split holds, what is wrong with the rows.

    Attributes:
        task: name.
        licence: source, terms, citation, split note and hash.
        splits: what is left for training and measuring after cleaning.
        counts: rows read, kept and dropped, by reason.
        quality: what was found in the rows as read.
        notes: what was detected about the files, such as a delimiter or an encoding.
        folder: where the splits were written; None when they were not.
    """

    task: str
    licence: DataLicence
    splits: dict[str, SplitSummary]
    counts: Mapping[str, Mapping[str, int]]
    quality: QualityReport
    notes: tuple[str, ...] = ()
    folder: Path | None = None


def summarise_data(recipe: Recipe, output_dir: Path | None = None, *, write_splits: bool = False) -> list[DataSummary]:
    """Loads every task that a recipe trains on, and says what is in it.

    Args:
        recipe: its ``data`` section is what counts.
        output_dir: where ``data_report.json`` goes; nothing is written when None.
        write_splits: write ``<task>/{train,validation,test}.jsonl`` too, overlap removed from train.

    Raises:
        DataError: a source cannot be read, its terms do not allow what ``data.require_licence`` asks, or splits are to
            be written of rows that have errors.
        RecipeError: a task's name cannot name a folder.
    """
    loaded = [
        load_task(
            section,
            seed=recipe.seed,
            max_characters=CHARACTERS_PER_TOKEN * recipe.training.max_length,
            strict=write_splits,
        )
        for section in recipe.data.tasks
    ]
    require_licence(recipe.data.require_licence, [task.licence for task in loaded])
    prepared = [_without_overlap(task, recipe) for task in loaded]
    found = [_summarise(task, *parts) for task, parts in zip(loaded, prepared, strict=True)]
    if write_splits and output_dir is not None:
        _require_no_errors(found)
        found = [
            replace(summary, folder=_write_splits(task, splits, output_dir))
            for summary, task, (splits, _) in zip(found, loaded, prepared, strict=True)
        ]
    if output_dir is not None:
        write_json(output_dir / REPORT_FILE, {"tasks": [summary.quality.model_dump(mode="json") for summary in found]})
    return found


def _summarise(task: LoadedTask, splits: Mapping[str, Sequence[Example]], overlap: OverlapReport) -> DataSummary:
    return DataSummary(
        task.task.name,
        task.licence,
        {split: _summarise_split(rows) for split, rows in splits.items()},
        task.counts,
        with_problems(with_overlap(task.quality, [overlap]), _nothing_left(task, splits)),
        task.notes,
    )


def _nothing_left(task: LoadedTask, splits: Mapping[str, Sequence[Example]]) -> tuple[QualityProblem, ...]:
    """An error where removing the overlap left nothing to train on; splits that were empty before are named already."""
    n_train = len(task.splits["train"])
    if not n_train or splits["train"]:
        return ()
    why = f": all {n_train:,} are equal, or nearly, to held-out rows"
    return left_problems(task.task.name, splits, ("train",), why)


def _require_no_errors(found: Sequence[DataSummary]) -> None:
    for summary in found:
        if errors := summary.quality.errors:
            more = f" (and {len(errors) - 1} more; fintune data check lists them)" if len(errors) > 1 else ""
            raise DataError(f"{summary.licence.source}: {errors[0].message.rstrip('.')}{more}.", errors[0].remedy)


def _without_overlap(task: LoadedTask, recipe: Recipe) -> tuple[dict[str, Sequence[Example]], OverlapReport]:
    tests = task.splits["test"]
    train, overlap = kept_apart(task.splits["train"], (*task.splits["validation"], *tests), recipe.data)
    validation, _ = kept_apart(task.splits["validation"], tests, recipe.data)
    splits: dict[str, Sequence[Example]] = {**task.splits, "train": train, "validation": validation}
    return splits, overlap.model_copy(update={"task": task.task.name})


def _summarise_split(rows: Sequence[Example]) -> SplitSummary:
    words = sorted(len(example.document.split()) for example in rows)
    labels = Counter(example.target for example in rows if example.learnt == "answer")
    return SplitSummary(
        rows=len(rows),
        groups=len({example.group or example.example_id for example in rows}),
        labels={label: labels[label] for label in sorted(labels)},
        median_words=float(words[len(words) // 2]) if words else 0.0,
        longest_words=words[-1] if words else 0,
    )


def _write_splits(task: LoadedTask, splits: Mapping[str, Sequence[Example]], output_dir: Path) -> Path:
    """Each split as JSON lines: text and label for classifiers, messages and target for chat models."""
    folder = output_dir / task.task.name
    if folder.resolve().parent != output_dir.resolve():
        raise RecipeError(
            f"The task name {task.task.name!r} cannot name a folder.", "Choose letters, digits and dashes."
        )
    for split, rows in splits.items():
        text = "".join(json.dumps(_as_row(example), ensure_ascii=False) + "\n" for example in rows)
        write_text_atomically(folder / f"{split}.jsonl", text)
    write_json(folder / "LICENCE.json", task.licence.model_dump(mode="json"))
    return folder


def _as_row(example: Example) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": example.example_id,
        "text": example.document,
        "label": example.metadata.get("label") or example.target,
        "group": example.group,
    }
    if "date" in example.metadata:
        row["date"] = str(example.metadata["date"])
    messages = [{"role": message.role, "content": message.content} for message in example.messages]
    return {**row, "messages": messages, "target": example.target, "choices": list(example.choices)}


def recipe_for_tasks(tasks: Sequence[str]) -> dict[str, Any]:
    """A recipe whose data are registered tasks, each ``name`` or ``name:source``; ``all`` stands for every one."""
    from fintune.tasks.registry import list_tasks

    names = list_tasks() if tuple(tasks) == ("all",) else tasks
    sections = []
    for name in names:
        task, _, source = name.partition(":")
        sections.append({"name": get_task(task).name, "source": source or None})
    return {"name": "data", "model": {"base": "smollm2-135m"}, "data": {"tasks": sections}}
