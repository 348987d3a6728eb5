"""The rows of a run that are not scored: what is trained on, what validates, and what baselines learn from.

Enters: the loaded tasks, and the documents that are scored in the end. Leaves: ``ChosenRows``, apart from all that is
held out, without repeats of earlier sources, as many as each task's proportion asks for; what is left out is counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fintune.evaluation.baselines import LEARNT
from fintune.schema.errors import DataError
from fintune.schema.example import Example
from fintune.schema.quality import QualityReport
from fintune.schema.recipe import DataSection, Recipe, TaskSection
from fintune.schema.results import OverlapReport
from fintune.sources import remove_overlap
from fintune.sources.overlap import HeldOut, overlap_pairs
from fintune.tasks.base import LoadedTask
from fintune.tasks.selection import DRAW_SEED, select_rows

REPEATS = "repeats of earlier sources"
"""What the counts call them."""


@dataclass(frozen=True)
class ChosenRows:
    """Rows to train on and to validate with, counts by task, and what was found in training and held-out rows alike."""

    train: list[Example] = field(default_factory=list)
    validation: list[Example] = field(default_factory=list)
    counts: dict[str, Mapping[str, object]] = field(default_factory=dict)
    overlap: list[OverlapReport] = field(default_factory=list)


def rows_to_train(
    trained: Sequence[LoadedTask],
    tested: Sequence[LoadedTask],
    documents: Sequence[tuple[LoadedTask, Sequence[Example]]],
    recipe: Recipe,
) -> ChosenRows:
    """Training and validation rows, each apart from what is held out in any task of the run."""
    heldout = HeldOut(
        [example for task in {id(t): t for t in [*trained, *tested]}.values() for example in _heldout(task)],
        threshold=recipe.data.near_duplicate_threshold,
    )
    tests = heldout.among([example for _, rows in documents for example in rows])
    chosen = ChosenRows()
    earlier: list[Example] = []
    for task in trained:
        whole, repeats = _training_rows(task, heldout, recipe, earlier)
        rows = _proportion_of(whole, task.section, recipe.seed)
        if not rows:
            raise _no_training_rows(task, recipe)
        watched = _validation_rows(task, tests, recipe)
        removed = {"validation_rows_like_test": len(task.splits["validation"]) - len(watched)}
        chosen.train.extend(rows)
        chosen.validation.extend(select_rows(watched, recipe.data.validation_limit, seed=DRAW_SEED))
        if len(rows) < len(whole):
            removed["left_out_by_proportion"] = len(whole) - len(rows)
        if task.section.conversations is not None:
            earlier.extend(rows)
            removed[REPEATS] = repeats
        chosen.counts[task.task.name] = {**task.counts, "trained": len(rows), **removed}
    if recipe.training.best_metric and not chosen.validation:
        raise DataError("training.best_metric is set, but there are no validation rows.", "Set it to null.")
    chosen.overlap.extend(_overlaps(trained, documents, heldout, recipe.data))
    return chosen


def rows_to_learn(documents: Sequence[tuple[LoadedTask, Sequence[Example]]], recipe: Recipe) -> ChosenRows:
    """What baselines learn from where no model is trained: the training rows of each task by itself.

    They are the rows that a run on the task trains on. Under a limit, only the scored documents count as held out,
    because an index of thousands of rows is slow to build.
    """
    chosen = ChosenRows(counts={task.task.name: task.counts for task, _ in documents})
    for task, scored in documents if not LEARNT.isdisjoint(recipe.evaluation.baselines) else ():
        if task.task.choices:  # free answers have no baselines
            heldout = _heldout(task) if recipe.evaluation.limit is None else scored
            chosen.train.extend(_training_rows(task, heldout, recipe)[0])
    return chosen


def _no_training_rows(task: LoadedTask, recipe: Recipe) -> DataError:
    where, n_rows = f"The task {task.task.name} from {task.source}", len(task.splits["train"])
    if not n_rows:
        return DataError(f"{where} has no training rows.", "Check its source and split.")
    threshold = recipe.data.near_duplicate_threshold
    nearly = "" if threshold is None else f" or nearly equal (similarity from {threshold:g})"
    return DataError(
        f"{where} has no training rows left: all {n_rows} are equal{nearly} to held-out rows.",
        "Use more varied rows, raise data.near_duplicate_threshold, or set data.remove_overlap=false.",
    )


def _training_rows(
    task: LoadedTask, heldout: Sequence[Example] | HeldOut, recipe: Recipe, earlier: Sequence[Example] = ()
) -> tuple[tuple[Example, ...], int]:
    """The rows to train on, and how many were left out as repeats of ``earlier`` sources."""
    rows, _ = kept_apart(task.splits["train"], heldout, recipe.data)
    rows, repeats = without_earlier(task, rows, earlier)
    return select_rows(rows, recipe.data.train_limit, recipe.data.balance, recipe.seed), repeats


def _proportion_of(rows: tuple[Example, ...], section: TaskSection, seed: int) -> tuple[Example, ...]:
    """The share of the rows that the section uses, at least one; under a limit, a share of the limited rows."""
    return (
        rows if section.proportion == 1 else select_rows(rows, max(1, round(section.proportion * len(rows))), seed=seed)
    )


def _validation_rows(task: LoadedTask, tests: HeldOut, recipe: Recipe) -> tuple[Example, ...]:
    """Rows that choose checkpoints and thresholds: none of them may be like a row that is scored in the end."""
    rows = task.splits["validation"]
    return kept_apart(rows, tests, recipe.data)[0] if recipe.evaluation.split == "test" else rows


def kept_apart(
    rows: Sequence[Example], heldout: Sequence[Example] | HeldOut, data: DataSection
) -> tuple[tuple[Example, ...], OverlapReport]:
    """The rows without what is also, or nearly, held out, if the recipe removes it; and what was found."""
    kept, report = remove_overlap(
        rows, heldout, threshold=data.near_duplicate_threshold, same_document=data.remove_same_document
    )
    if data.remove_overlap:
        return kept, report
    return tuple(rows), report.model_copy(update={"removed_from_train": 0})


def _overlaps(
    trained: Sequence[LoadedTask],
    documents: Sequence[tuple[LoadedTask, Sequence[Example]]],
    heldout: HeldOut,
    data: DataSection,
) -> list[OverlapReport]:
    """The scored documents of each task against the training rows of each task, as read."""
    reports = overlap_pairs(
        {task.task.name: task.splits["train"] for task in trained},
        {task.task.name: rows for task, rows in documents},
        heldout,
        same_document=data.remove_same_document,
    )
    if data.remove_overlap:
        return reports
    return [report.model_copy(update={"removed_from_train": 0}) for report in reports]


def _heldout(task: LoadedTask) -> list[Example]:
    return [*task.splits["validation"], *task.splits["test"]]


def without_earlier(
    task: LoadedTask, rows: tuple[Example, ...], earlier: Sequence[Example]
) -> tuple[tuple[Example, ...], int]:
    """The rows that no earlier source has, equal or nearly equal, and how many it has; labelled texts stay."""
    section = task.section.conversations
    if section is None or not earlier:
        return rows, 0
    kept, found = remove_overlap(rows, earlier, threshold=section.near_duplicates, same_document=False)
    return kept, found.removed_from_train


def with_repeats(quality: QualityReport, counts: Mapping[str, object]) -> QualityReport:
    """The report with the repeats among what was left out."""
    repeats = counts.get(REPEATS)
    if not isinstance(repeats, int) or not repeats:
        return quality
    return quality.model_copy(update={"left_out": {**quality.left_out, REPEATS: repeats}})
