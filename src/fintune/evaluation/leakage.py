"""Leakage: whether the rows an adapter was trained on are among the documents it is measured on.

Enters: the recipe the adapter was trained by, and the documents. Leaves: ``Leakage``, the overlap of every pair of a
trained and a measured task, and the trained tasks whose rows are not to be had.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from fintune.schema.errors import DataError, RecipeError
from fintune.schema.example import Example
from fintune.schema.recipe import DataSection, Recipe, TaskSection
from fintune.schema.results import OverlapReport
from fintune.sources.overlap import HeldOut, overlap_pairs
from fintune.tasks.base import LoadedTask
from fintune.tasks.loading import load_task

NOT_COMPARED = "training rows not compared: "
"""What the results' counts call a trained task whose rows were not to be had, before its name."""
Documents = Sequence[tuple[LoadedTask, Sequence[Example]]]


@dataclass(frozen=True)
class Leakage:
    """What training rows and measured documents share.

    Attributes:
        overlap: the reports; ``removed_from_train`` is 0 where the training did not hold the documents out.
        unchecked: trained tasks whose rows could not be loaded, and why.
    """

    overlap: tuple[OverlapReport, ...] = ()
    unchecked: Mapping[str, str] = field(default_factory=dict)


def measure_leakage(trained: Recipe, documents: Documents, data: DataSection) -> Leakage:
    """Compares the documents with the training rows, as read, of every task of ``trained``.

    Args:
        trained: the recipe of the adapter.
        documents: the measured tasks with their documents.
        data: says from which similarity on two texts are near-duplicates.
    """
    loaded: list[LoadedTask] = []
    unchecked: dict[str, str] = {}
    for section in trained.data.tasks:
        try:
            loaded.append(_known(section, documents) or load_task(section, seed=trained.seed))
        except (DataError, RecipeError) as error:
            unchecked[section.name] = error.message
    heldout = HeldOut([row for _, rows in documents for row in rows], threshold=data.near_duplicate_threshold)
    reports = overlap_pairs(
        {task.task.name: task.splits["train"] for task in loaded},
        {task.task.name: rows for task, rows in documents},
        heldout,
        same_document=trained.data.remove_same_document,
    )
    removed = _held_out_by(trained, loaded, documents, data)
    overlap = (r if r.task in removed else r.model_copy(update={"removed_from_train": 0}) for r in reports)
    return Leakage(tuple(overlap), unchecked)


def leakage_findings(overlap: Sequence[OverlapReport], unchecked: Mapping[str, str]) -> Iterator[str]:
    """A warning for each pair of tasks that share documents, and for each trained task that was not compared."""
    for report in overlap:
        shared = max(report.normalised, report.near, report.same_exchanges or 0)
        alike = " or share half of their answers with them" if report.same_exchanges else ""
        if shared and not report.removed_from_train:
            yield (
                f"{report.task}: {shared:,} of {report.n_test:,} scored documents are equal or nearly equal to rows of "
                f"{report.trained_on} that the adapter may have been trained on ({report.exact:,} word for word)"
                f"{alike}, so its scores flatter it. "
                f"Measure {report.task} in the config and source the adapter was trained on."
            )
    for task, why in unchecked.items():
        yield f"Whether scored documents are among the adapter's training rows of {task} is not known: {why}"


def _known(section: TaskSection, documents: Documents) -> LoadedTask | None:
    """The measured task with the same rows, where there is one: reading them again may take minutes."""
    return next((task for task, _ in documents if section.content_hash and _rows(task.section) == _rows(section)), None)


def _rows(section: TaskSection) -> TaskSection:
    """A section as the key of its rows, whatever is asked about them and how often."""
    return section.unweighted().model_copy(update={"prompt": None, "revision": None})


def _held_out_by(
    trained: Recipe, loaded: Sequence[LoadedTask], documents: Documents, data: DataSection
) -> frozenset[str]:
    """Measured tasks whose documents the training held out, so that their twins were removed from its rows."""
    theirs, ours = trained.data.near_duplicate_threshold, data.near_duplicate_threshold
    if not trained.data.remove_overlap or (ours is not None and (theirs is None or theirs > ours)):
        return frozenset()
    sections = [*(task.section for task in loaded), *(trained.evaluation.tasks or ())]
    known = {_division(section) for section in sections}
    return frozenset(task.task.name for task, _ in documents if _division(task.section) in known)


def _division(section: TaskSection) -> tuple[object, ...]:
    split = section.table.split if section.table is not None else ""
    return section.name, section.config, section.content_hash, split
