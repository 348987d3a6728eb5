"""The evaluation of a run: which documents, which systems, and their scores side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from fintune.evaluation.leakage import NOT_COMPARED, Leakage, leakage_findings, measure_leakage
from fintune.evaluation.records import dialogue_of
from fintune.evaluation.training_rows import rows_to_learn, rows_to_train, with_repeats
from fintune.schema.errors import DataError, RecipeError
from fintune.schema.example import Example
from fintune.schema.quality import QualityReport
from fintune.schema.recipe import EvaluationSection, Recipe, TaskSection
from fintune.schema.results import DataLicence, OverlapReport
from fintune.sources import remove_overlap, with_overlap
from fintune.tasks.base import LoadedTask
from fintune.tasks.licences import require_licence
from fintune.tasks.loading import load_task
from fintune.tasks.registry import get_task
from fintune.tasks.selection import DRAW_SEED, select_rows
from fintune.tasks.shots import shot_order

CHARACTERS_PER_TOKEN = 4  # only for the warning about long texts; what is shortened is counted in tokens
FIVE = 5  # solved examples of the five-shot base


@dataclass(frozen=True)
class RunData:
    """All rows of a run, chosen before a model is loaded.

    Attributes:
        recipe: the recipe with the tasks' sources, revisions and hashes pinned.
        train: training examples of all tasks, in training order.
        validation: validation examples of the trained tasks.
        tested: the evaluated tasks with their documents.
        licences: sources and terms of all tasks trained or tested.
        overlap: what was found in train and held-out rows alike, by task.
        counts: rows read, kept, dropped and used, by task.
        quality: what was found in the rows of each task as read, and its overlap.
        notes: what was detected about the files of a task, such as a delimiter or an encoding.
        shots: by tested task, training rows to be shown as solved examples; as many as the recipe can ask for.
        skipped: tasks of a suite that could not be measured, and why.
        training: whether a model is trained on ``train``; otherwise only baselines learn from it.
        unchecked: tasks an adapter was trained on whose rows could not be compared with the documents, and why.
    """

    recipe: Recipe
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    tested: tuple[tuple[LoadedTask, tuple[Example, ...]], ...]
    licences: tuple[DataLicence, ...]
    overlap: tuple[OverlapReport, ...]
    counts: dict[str, Mapping[str, object]]
    quality: tuple[QualityReport, ...]
    notes: Mapping[str, tuple[str, ...]]
    shots: Mapping[str, tuple[Example, ...]] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    training: bool = True
    unchecked: Mapping[str, str] = field(default_factory=dict)

    def summary(self) -> list[str]:
        """One line a task: where its rows came from, and how many are used."""
        trained = Counter(example.task for example in self.train)
        lines = []
        for licence in self.licences:
            detected = f" ({', '.join(self.notes[licence.task])})" if self.notes.get(licence.task) else ""
            lines.append(f"{licence.task}: rows from {licence.source}{detected}. {licence.split_note}".strip())
        purpose = "" if self.training else " for the baselines"
        lines += [f"{task}: {_counted(n, 'training row')}{purpose}." for task, n in trained.items()]
        lines += [f"{task.task.name}: {_counted(len(rows), 'document')} to score." for task, rows in self.tested]
        return lines

    def findings(self) -> list[str]:
        """What to know about the rows as read. Where nothing is trained, a published data set's flaws are only counted:
        its test rows stay as they are, and the remedies are for those who train.
        """
        own = {section.name for section in self.recipe.data.tasks if section.table or section.conversations}
        lines: list[str] = []
        counted: dict[str, int] = {}
        for report in self.quality:
            problems = [problem for problem in report.problems if problem.severity != "info"]
            if not self.training and report.task not in own:
                problems, warned = list(report.errors), len(problems) - len(report.errors)
                counted.update({report.task: warned} if warned else {})
            lines += [f"{problem.message} {problem.remedy}" for problem in problems]
        if counted:
            tasks = ",".join(counted)
            lines.append(
                f"The rows as read have {sum(counted.values())} kinds of flaws, such as repeated texts or wrongly "
                f"decoded letters; the scored rows are kept as published. `fintune data check --tasks {tasks}` lists "
                "them."
            )
        return lines if self.training else [*lines, *leakage_findings(self.overlap, self.unchecked)]


def load_run_data(
    recipe: Recipe,
    *,
    training: bool = True,
    optional: Collection[str] = (),
    on_loaded: Callable[[int], None] = lambda n: None,
    adapter: Recipe | None = None,
) -> RunData:
    """Loads, checks and selects the rows of a run.

    Args:
        recipe: the recipe.
        training: False for an evaluation alone, which needs training rows for baselines and shots only.
        optional: tasks to leave out of an evaluation where their rows are not to be had.
        on_loaded: called with 1 after each task, loaded or left out.
        adapter: the recipe that a measured adapter was trained by, whose rows are compared with the documents.

    Raises:
        DataError: a task has no training or no evaluation rows, fails the quality gate, or may not be used.
        RecipeError: checkpoints are to be chosen by a score that no validation row has.
    """
    load = partial(_load, recipe=recipe, on_loaded=on_loaded)
    recipe, trained, skipped = _loaded(recipe, load, optional, on_loaded)
    by_section = {section.unweighted(): task for section, task in zip(recipe.data.tasks, trained, strict=True)}
    wanted = recipe.evaluation.tasks or recipe.data.tasks
    tested = [by_section.get(section.unweighted()) or load(section) for section in wanted]
    used = [*trained, *tested] if training else tested
    licences = tuple(dict.fromkeys(task.licence for task in used))
    if recipe.data.require_licence is not None:
        require_licence(recipe.data.require_licence, licences)
    if training:
        _require_quality(trained)
        _require_measurable(trained, recipe)
    documents = [(task, scored_documents(task, recipe.evaluation)) for task in tested]
    chosen = rows_to_train(trained, tested, documents, recipe) if training else rows_to_learn(documents, recipe)
    pinned = _pinned(recipe, trained, tested)
    leaked = measure_leakage(adapter, documents, recipe.data) if adapter is not None else Leakage()
    reports = {id(task): task for task in used}.values()
    quality = tuple(
        with_overlap(
            with_repeats(task.quality, chosen.counts.get(task.task.name, {})),
            [report for report in chosen.overlap if report.task == task.task.name],
        )
        for task in reports
    )
    return RunData(
        recipe=pinned,
        train=tuple(chosen.train),
        validation=tuple(chosen.validation),
        tested=tuple(documents),
        licences=licences,
        overlap=(*chosen.overlap, *leaked.overlap),
        counts=chosen.counts | {f"{NOT_COMPARED}{task}": {"reason": why} for task, why in leaked.unchecked.items()},
        quality=quality,
        notes={task.task.name: task.notes for task in used},
        shots={task.task.name: shot_rows(task, rows, recipe) for task, rows in documents},
        skipped=skipped,
        training=training,
        unchecked=leaked.unchecked,
    )


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _load(section: TaskSection, recipe: Recipe, on_loaded: Callable[[int], None]) -> LoadedTask:
    """A task's rows. A wrong prompt is named before minutes go into reading them."""
    if section.table is None and section.conversations is None:
        get_task(section.name).resolve_prompt(section.prompt)
    loaded = load_task(section, seed=recipe.seed, max_characters=CHARACTERS_PER_TOKEN * recipe.training.max_length)
    on_loaded(1)
    return loaded


def _loaded(
    recipe: Recipe,
    load: Callable[[TaskSection], LoadedTask],
    optional: Collection[str],
    on_loaded: Callable[[int], None],
) -> tuple[Recipe, list[LoadedTask], dict[str, str]]:
    """The recipe's tasks with their rows; optional ones that cannot be had leave the recipe, each for a reason."""
    found: dict[int, LoadedTask] = {}
    skipped: dict[str, str] = {}
    errors: list[DataError | RecipeError] = []
    for number, section in enumerate(recipe.data.tasks):
        try:
            task = load(section)
            if section.name in optional:
                scored_documents(task, recipe.evaluation)
        except (DataError, RecipeError) as error:
            if section.name not in optional:
                raise
            skipped[section.name] = error.message
            errors.append(error)
            on_loaded(1)
            continue
        found[number] = task
    if not found and all(isinstance(error, RecipeError) for error in errors):
        raise errors[0]  # a prompt that no task has is not a matter of missing data
    if not found:
        raise DataError(
            f"None of the tasks {', '.join(skipped)} has data to be measured on.",
            f"Set FINTUNE_DATA_DIR to the folder above them. The first of them: {next(iter(skipped.values()))}",
        )
    sections = tuple(recipe.data.tasks[number] for number in found)
    data = recipe.data.model_copy(update={"tasks": sections})
    return recipe.model_copy(update={"data": data}), list(found.values()), skipped


def shot_rows(task: LoadedTask, documents: Sequence[Example], recipe: Recipe) -> tuple[Example, ...]:
    """Training rows to show as solved examples, as many as the recipe can ask for; the same whatever the run's seed.

    Rows that are equal or nearly equal to a scored document are left out, even where the recipe trains on such.
    """
    wanted = most_shots(recipe.evaluation)
    if not wanted or task.section.conversations is not None:  # a conversation is no solved example
        return ()
    candidates = shot_order(task.splits["train"], seed=DRAW_SEED)[: 20 * wanted]
    apart, _ = remove_overlap(candidates, documents, threshold=recipe.data.near_duplicate_threshold)
    return apart[:wanted]


def most_shots(evaluation: EvaluationSection) -> int:
    """The most solved examples that any system of the recipe is shown."""
    return max(evaluation.shots, FIVE if "five_shot" in evaluation.base_variants else 0)


def _require_measurable(trained: Sequence[LoadedTask], recipe: Recipe) -> None:
    """Accuracy and macro-F1 of validation rows are known where answers are chosen from labels, not written."""
    metric = recipe.training.best_metric
    watched = [task.task.name for task in trained if task.splits["validation"]]
    if metric in ("accuracy", "macro_f1") and watched and not any(task.task.choices for task in trained):
        raise RecipeError(
            f"training.best_metric={metric} needs validation rows with labels, and {', '.join(watched)} has free "
            "answers only.",
            "Set training.best_metric=loss.",
        )


def _require_quality(trained: Sequence[LoadedTask]) -> None:
    for task in trained:
        for problem in task.quality.errors:
            raise DataError(f"{task.source}: {problem.message}", problem.remedy)


def scored_documents(task: LoadedTask, evaluation: EvaluationSection) -> tuple[Example, ...]:
    """The documents of a task that are scored; the same ones whatever the run's seed."""
    has_turns = any("turn" in example.metadata for example in task.splits[evaluation.split])
    select = _whole_dialogues if has_turns else partial(select_rows, seed=DRAW_SEED)
    rows = select(task.splits[evaluation.split], evaluation.limit)
    if not rows:
        raise DataError(
            f"The task {task.task.name} from {task.source} has no {evaluation.split} rows.",
            "Choose another evaluation.split or source.",
        )
    return rows


def _whole_dialogues(examples: Sequence[Example], limit: int | None) -> tuple[Example, ...]:
    """The first dialogues with at most ``limit`` turns together, one at least: a turn needs the answers to those before
    it. Leaving out a long one for a later short one would favour short dialogues.
    """
    dialogues: dict[str, list[Example]] = {}
    for example in select_rows(examples, seed=DRAW_SEED):
        dialogues.setdefault(dialogue_of(example), []).append(example)
    kept: list[Example] = []
    for turns in dialogues.values():
        if kept and limit is not None and len(kept) + len(turns) > limit:
            break
        kept += turns
    return tuple(kept)


def _pinned(recipe: Recipe, trained: Sequence[LoadedTask], tested: Sequence[LoadedTask]) -> Recipe:
    data = recipe.data.model_copy(update={"tasks": tuple(task.section for task in trained)})
    evaluation = recipe.evaluation
    if evaluation.tasks is not None:
        sections: tuple[TaskSection, ...] = tuple(task.section for task in tested)
        evaluation = evaluation.model_copy(update={"tasks": sections})
    return recipe.model_copy(update={"data": data, "evaluation": evaluation})
