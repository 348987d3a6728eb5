"""The public functions: train, evaluate, load, predict, report, preview, and what is there to choose from.

Everything heavy is imported inside the functions, so that ``import fintune`` and ``fintune --help`` stay quick.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fintune.asked import base_and_adapter, own_tables, task_section
from fintune.schema.errors import FintuneError, RecipeError, RunError
from fintune.schema.loading import RecipeInfo, list_recipes, load_recipe
from fintune.schema.outcomes import PreviewSample, TaskInfo, TrainingOutcome
from fintune.schema.recipe import Recipe
from fintune.schema.results import EvaluationResults
from fintune.schema.run_directory import RunDirectory

if TYPE_CHECKING:
    import pandas as pd

    from fintune.data import DataSummary
    from fintune.doctor import Check
    from fintune.serving.predictor import Predictor
    from fintune.training.estimate import Estimate

log = logging.getLogger(__name__)
RecipeLike = Recipe | Mapping[str, Any] | str | Path


def train(
    recipe: RecipeLike | None = None,
    *,
    data: str | Path | pd.DataFrame | None = None,
    text: str | None = None,
    label: str | None = None,
    table: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    output_dir: str | Path | None = None,
    resume: bool = True,
    progress: bool = True,
) -> TrainingOutcome:
    """Runs a recipe, or trains on a table of your own; processes that a launcher has started share the run.

    Args:
        recipe: name of a shipped recipe, path to a YAML file or run directory, a mapping, or a ``Recipe``. With
            ``data`` it gives all settings but the task; the quickstart's when None.
        data: your own classification data: a file (CSV, JSONL, Parquet, Excel), a folder, a hub id or a DataFrame.
        text: column of ``data`` with the text.
        label: column of ``data`` with the label.
        table: further keys of ``data.tasks[].table``: labels, bins, choices, date, group, split, instruction ...
        overrides: ``key.sub=value`` strings.
        output_dir: run directory; the recipe's ``output_dir``, or ``runs/<name>``, when None.
        resume: go on from the newest checkpoint of that directory; a finished training is not repeated.
            False starts in a fresh directory beside it (``<name>-2``), never over it.
        progress: show progress on standard error.

    Raises:
        FintuneError: one sentence saying what is wrong, with the remedy.
    """
    from fintune.pipeline import run_recipe
    from fintune.training.rank_log import rank_logged
    from fintune.training.ranks import joined

    loaded = _recipe(recipe, data, {"text": text, "label": label, **(table or {})}, overrides)
    place = Path(output_dir or loaded.output_dir or Path("runs") / loaded.name)
    with joined() as ranks:
        if not resume:
            place = Path(ranks.from_first(str(_unused(place))))
        if data is not None and not isinstance(data, (str, Path)):
            with ranks.first_goes_first():
                file = _saved_frame(data, place)
            loaded = load_recipe(loaded, [f"data.tasks.0.source={json.dumps(str(file))}"])
        with rank_logged(RunDirectory(place), ranks):
            return run_recipe(loaded, RunDirectory(place), progress=progress, ranks=ranks)


def _saved_frame(frame: pd.DataFrame, folder: Path) -> Path:
    from fintune.own_data import save_frame

    return save_frame(frame, folder)


def _recipe(
    recipe: RecipeLike | None,
    data: str | Path | pd.DataFrame | None,
    table: Mapping[str, Any],
    overrides: Sequence[str],
) -> Recipe:
    if data is not None:
        from fintune.own_data import recipe_for_table

        return recipe_for_table(recipe, data if isinstance(data, (str, Path)) else "frame", table, overrides)
    if recipe is None:
        raise RecipeError("There is neither a recipe nor data to train on.", "Name a recipe, or give data.")
    if stray := [key for key, value in table.items() if value is not None]:
        raise RecipeError(f"{stray[0]} belongs to data of your own, but none is given.", "Add data.")
    return load_recipe(recipe, overrides)


def _unused(place: Path) -> Path:
    number = 2
    candidate = place
    while candidate.exists():
        candidate = place.with_name(f"{place.name}-{number}")
        number += 1
    return candidate


def evaluate(
    model: str | Path,
    *,
    adapter: str | Path | None = None,
    tasks: Sequence[str] = ("tfns",),
    split: str = "test",
    limit: int | None = None,
    prompt: str | None = None,
    quantization: str | None = None,
    decoding: str | None = None,
    shots: int = 0,
    base_variants: Sequence[str] = (),
    baselines: Sequence[str] = (),
    output_dir: str | Path | None = None,
    overrides: Sequence[str] = (),
    progress: bool = True,
) -> EvaluationResults:
    """Scores a base model, and an adapter beside it, on tasks.

    With ``output_dir``, an evaluation that was stopped goes on where it was when it is started again.

    Args:
        model: alias, hub id, folder or .gguf file of the base; or a run directory or adapter folder, whose base it is.
        adapter: adapter or run directory; with it, base and tuned are compared on the same documents.
        tasks: task names, each optionally ``name:source`` to say where its rows are, ``name@config`` to choose a
            variant of them, or ``name@config:source``; and suites: flare, fingpt, finlora and all. A suite asks with
            its own prompts and variants, and tasks of it without data are left out and reported. A task that the
            adapter was trained on is measured on the data of its training, unless a source or config is named; its
            own table is named like its task: alone, its held-out rows are scored; with another source, all of that.
        split: test or validation.
        limit: at most this many documents a task.
        prompt: named prompt of every task; the one the adapter was trained with, or the default, when None.
        quantization: none, nf4, int8 or fp8; what the adapter was trained with, or none, when None.
        decoding: how labels are answered: constrained takes the likeliest, free writes an answer and reads it, both
            ranks for our rules and writes for FLARE's; both for the suite flare, else constrained, when None.
        shots: solved training rows of the same task shown before each document.
        base_variants: further ways to ask the base: five_shot, calibrated.
        baselines: classical systems to score beside: majority, lexicon, tfidf, last_direction, always_rise.
        output_dir: where predictions, results and the report go; nothing is written when None.
        overrides: further ``key.sub=value`` strings for the recipe this makes.
        progress: show progress on standard error.
    """
    from fintune.tasks.suites import asked_tasks, require_known, suite_decoding

    asked = asked_tasks(tasks)
    base, folder = base_and_adapter(model, adapter)
    trained = load_recipe(folder) if folder is not None and (folder / "recipe.yaml").is_file() else None
    known = trained.model if trained else None
    require_known(asked, own_tables(trained))
    recipe = load_recipe(
        {
            "name": "evaluation",
            "model": {
                "base": base,
                "quantization": quantization or (known.quantization if known else "none"),
                "chat_template": known.chat_template if known else None,
            },
            "data": {"tasks": [task_section(task, prompt, trained) for task in asked]},
            "training": {"max_length": trained.training.max_length} if trained else {},
            "evaluation": {
                "split": split,
                "limit": limit,
                "decoding": decoding or suite_decoding(tasks),
                "shots": shots,
                "base_variants": list(base_variants),
                "baselines": list(baselines),
            },
        },
        overrides,
    )
    run = RunDirectory(Path(output_dir)) if output_dir is not None else None
    optional = [task.name for task in asked if task.suite]
    from fintune.measuring import evaluate_recipe  # torch: only once the names are known to be right

    return evaluate_recipe(recipe, folder, run, progress=progress, optional=optional, trained=trained)


def check_data(
    tasks: Sequence[str] = (),
    *,
    data: str | Path | pd.DataFrame | None = None,
    text: str | None = None,
    label: str | None = None,
    table: Mapping[str, Any] | None = None,
    output_dir: str | Path | None = None,
    overrides: Sequence[str] = (),
) -> list[DataSummary]:
    """Loads data without a model and says what is in it and what is wrong with it.

    Args:
        tasks: registered tasks, each ``name`` or ``name:source``; ``all`` for every one.
        data: a table of your own instead, as in ``train``; likewise text, label and table.
        text: its column with the text.
        label: its column with the label.
        table: further keys of ``data.tasks[].table``.
        output_dir: where ``data_report.json`` goes; nothing is written when None.
        overrides: ``key.sub=value`` strings, such as ``data.near_duplicate_threshold=0.8``.
    """
    return _data(tasks, data, {"text": text, "label": label, **(table or {})}, output_dir, overrides, write=False)


def prepare_data(
    tasks: Sequence[str] = (),
    *,
    output_dir: str | Path,
    data: str | Path | pd.DataFrame | None = None,
    text: str | None = None,
    label: str | None = None,
    table: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
) -> list[DataSummary]:
    """Writes ``<output_dir>/<task>/{train,validation,test}.jsonl`` and ``data_report.json``; see ``check_data``.

    Rows hold id, text, label, group, messages, target and choices; train is without what overlaps with the others.
    """
    return _data(tasks, data, {"text": text, "label": label, **(table or {})}, output_dir, overrides, write=True)


def _data(
    tasks: Sequence[str],
    data: str | Path | pd.DataFrame | None,
    table: Mapping[str, Any],
    output_dir: str | Path | None,
    overrides: Sequence[str],
    *,
    write: bool,
) -> list[DataSummary]:
    from fintune.data import recipe_for_tasks, summarise_data

    if (data is None) == (not tasks):
        raise RecipeError("Data are named either by tasks or by a table of your own.", "Give exactly one of them.")
    if data is None or isinstance(data, (str, Path)):
        recipe = _recipe(recipe_for_tasks(tasks) if tasks else None, data, table, overrides)
        return summarise_data(recipe, Path(output_dir) if output_dir else None, write_splits=write)
    with tempfile.TemporaryDirectory(prefix="fintune-") as folder:
        file = _saved_frame(data, Path(folder) / "frame")
        recipe = _recipe(None, file, table, overrides)
        try:
            return summarise_data(recipe, Path(output_dir) if output_dir else None, write_splits=write)
        except FintuneError as error:  # the file it was kept in means nothing to the caller
            raise type(error)(error.message.replace(str(file), "the data frame"), error.remedy) from error


def load(
    path: str | Path,
    *,
    adapters: Mapping[str, str | Path] | Sequence[str] = (),
    device: str | None = None,
    quantization: str | None = None,
    bf16_products: bool = False,
) -> Predictor:
    """Loads a trained run, an adapter or a base model, ready to ``predict`` and ``write``.

    Args:
        path: run directory, adapter folder, named adapter, or anything ``model.base`` takes.
        adapters: several on the base ``path``, in memory together: names of stored adapters or paths, or a mapping from
            names of your own. ``predict(texts, adapter=NAME)`` answers with one of them, else the base alone.
        device: torch device; a GPU if there is one, when None.
        quantization: none, nf4, int8 or fp8; what the run was trained with, when None.
        bf16_products: multiply in bf16 on a CPU with AVX512-BF16 or AMX: faster, and near-ties may fall otherwise.

    Raises:
        ModelError: the model cannot be loaded, or there is no such device or quantization.
        AdapterError: an adapter is missing, damaged or of another base.
    """
    from fintune.models.named import named_quantization
    from fintune.serving.predictor import load_predictor
    from fintune.serving.switching import load_switchable
    from fintune.session import find_device

    where = find_device(device)
    if quantization is not None:
        named_quantization(quantization)
    held: dict[str, Any] = {"quantization": quantization, "bf16_products": bf16_products}
    if adapters:
        named = dict(adapters) if isinstance(adapters, Mapping) else {str(name): name for name in adapters}
        return load_switchable(path, named, device=where, **held)
    return load_predictor(path, device=where, **held, needs_template=False)


def report(run_dir: str | Path, *, documents: bool | None = None) -> Path:
    """Writes the report of a finished run again and returns the HTML page.

    Args:
        run_dir: run directory of a training or evaluation.
        documents: whether the page shows the documents and their answers; what the recipe says, when None.

    Raises:
        RunError: the directory is no run, or was not evaluated.
    """
    from fintune.measuring import write_run_report

    run = RunDirectory(Path(run_dir))
    if not run.recipe.is_file():
        raise RunError(f"{run.path} has no recipe.yaml, so it is no run directory.", "Check the path.")
    changes = [] if documents is None else [f"report.documents={str(documents).lower()}"]
    return write_run_report(run, load_recipe(run.recipe, changes))


def compare(
    runs: Mapping[str, str | Path | Sequence[str | Path]], *, output_dir: str | Path | None = None
) -> EvaluationResults:
    """Sets finished runs side by side: paired tests on the same documents, Holm's correction, spread over seeds.

    Args:
        runs: by the name a system gets, the runs it comes from: a run directory, or ``RUN:SYSTEM`` for one system of
            it; without, the one of that name, else ``tuned``, else ``base``. Several runs of one name bring in
            their tasks together; the same task in several of them counts as repeated runs. ``*`` and ``?`` are
            taken as patterns of files.
        output_dir: where ``results.json``, ``predictions.jsonl`` and the report go; nothing is written when None.

    Returns:
        As of one evaluation, with one comparison for each pair of systems on each task.

    Raises:
        RunError: a run is missing, was not evaluated, is named twice, or lacks the system; there is one system only; or
            ``output_dir`` holds a run.
        DataError: two systems answered different documents of one task, or it was scored in different ways.
    """
    from fintune.evaluation.between_runs import compare_runs
    from fintune.evaluation.named_runs import read_runs

    results, records = compare_runs(read_runs(runs))
    if output_dir is not None:
        from fintune.measuring import write_comparison

        write_comparison(RunDirectory(Path(output_dir)), results, records)
    return results


def preview(
    recipe: RecipeLike, *, overrides: Sequence[str] = (), samples: int = 3, split: str = "train"
) -> list[PreviewSample]:
    """The first samples of a recipe as tokens with their loss mask; loads the tokenizer but no weights."""
    from fintune.previewing import preview_samples

    return preview_samples(load_recipe(recipe, overrides), samples, split)


def estimate(
    recipe: RecipeLike, *, overrides: Sequence[str] = (), gpu: str | None = None, data: bool = True
) -> Estimate:
    """Predicts peak memory, speed and time of an epoch; reads no weights and allocates nothing on a GPU.

    Args:
        recipe: as in ``train``.
        overrides: ``key.sub=value`` strings.
        gpu: a card to assume, such as ``H100``, ``RTX 4090`` or ``T4``; the one in this machine when None.
        data: count the training samples, where they are on this machine, for the time of an epoch.
    """
    from fintune.training.estimate import estimate_recipe

    return estimate_recipe(load_recipe(recipe, overrides), gpu=gpu, data=data)


def recipes() -> list[RecipeInfo]:
    """The shipped recipes."""
    return list_recipes()


def tasks() -> list[TaskInfo]:
    """The registered tasks."""
    from fintune.sources.sample import has_sample
    from fintune.tasks.registry import get_task, list_tasks

    return [
        TaskInfo(
            name=task.name,
            version=task.version,
            description=task.description,
            licence=task.licence,
            citation=task.citation,
            prompts=tuple(task.prompts),
            choices=task.choices,
            configs=tuple(task.configs),
            hub_ids=tuple(dict.fromkeys(task.hub_ids.values())),
            has_sample=has_sample(task.name),
        )
        for task in map(get_task, list_tasks())
    ]


def doctor() -> list[Check]:
    """Whether this machine is ready, check by check, with remedies."""
    from fintune.doctor import run_checks

    return run_checks()
