"""A trained model measured beside its base: records, results and the report of a run directory.

Enters: a recipe or an open session, and a model. Leaves: ``EvaluationResults``, written where there is a directory.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from fintune.environment import describe_environment
from fintune.inference.forward import EdgeModel
from fintune.models.adapter_files import load_adapter, read_adapter_info, require_same_base
from fintune.schema.errors import RunError
from fintune.schema.loading import save_recipe
from fintune.schema.recipe import Recipe
from fintune.schema.results import DocumentRecord, EvaluationResults
from fintune.schema.run_directory import (
    RunDirectory,
    clear_leftovers,
    write_json,
    write_records,
    write_text_atomically,
    writing,
)
from fintune.session import Session


def evaluate_recipe(
    recipe: Recipe,
    adapter: Path | None,
    run: RunDirectory | None,
    *,
    progress: bool,
    optional: Collection[str] = (),
    trained: Recipe | None = None,
) -> EvaluationResults:
    """Scores the base, and an adapter beside it, on the recipe's tasks; goes on from what ``run`` already holds.

    Args:
        recipe: model, tasks and how they are measured.
        adapter: adapter folder to measure beside the base.
        run: where records, results and report go; nothing is written when None.
        progress: show progress on standard error.
        optional: tasks that are left out, and reported, where their data are not to be had.
        trained: the recipe that the adapter was trained by; its rows are looked for among the documents.
    """
    started = time.perf_counter()
    if run is not None and (run.adapter.exists() or run.checkpoints.exists()):
        raise RunError(f"{run.path} holds a training run, which would be overwritten.", "Choose another --output-dir.")
    session = Session.open(recipe, training=False, progress=progress, optional=optional, adapter=trained)
    folder = None
    if run is not None:
        with writing(run.path):
            run.path.mkdir(parents=True, exist_ok=True)
        clear_leftovers(run)
        folder = scored_folder(run)
    info = read_adapter_info(adapter) if adapter is not None else None
    if info is not None:
        require_same_base(session.base.files, info)
    records = session.score_base(folder=folder, always=info is None)
    if info is not None:
        model = session.edge_model(load_adapter(session.base, info.path))
        records += session.score(model, "tuned", folder=folder, adapter=info.path)
    records += session.score_classical(folder=folder)
    results = session.results(
        records, str(adapter) if adapter else None, dict(session.data.counts), time.perf_counter() - started
    )
    if run is not None:
        save_recipe(session.recipe, run.recipe)
        write_json(run.environment, describe_environment())
        files = session.base.files
        write_json(run.facts, {"base_model": files.hub_id or files.source, "base_licence": files.licence})
        write_records(run.predictions, records)
        write_text_atomically(run.results, results.model_dump_json(indent=2))
        if recipe.report.enabled:
            write_run_report(run, session.recipe)
    return results


def evaluate_run(
    session: Session,
    model: EdgeModel,
    base_records: list[DocumentRecord],
    run: RunDirectory,
    lost: Mapping[str, Any],
    started: float,
) -> EvaluationResults:
    """Scores the trained model and the classical systems, and writes what they and the base scored into ``run``.

    Args:
        session: the rows, and the base that ``model`` is on.
        model: the model with the adapter of ``run``.
        base_records: what the untuned base scored.
        run: where its adapter lies, and records and results go.
        lost: counts of training samples that were shortened or dropped.
        started: when the run began, by ``time.perf_counter``.
    """
    tuned = session.score(model, "tuned", folder=scored_folder(run), adapter=run.adapter)
    records = [*base_records, *tuned, *session.score_classical(folder=scored_folder(run))]
    counts: dict[str, Any] = {**session.data.counts, **lost}
    results = session.results(records, str(run.adapter), counts, time.perf_counter() - started)
    write_records(run.predictions, records)
    write_text_atomically(run.results, results.model_dump_json(indent=2))
    return results


def scored_folder(run: RunDirectory) -> Path:
    """Where the records of each system are kept while it is scored."""
    return run.path / "scored"


def write_run_report(run: RunDirectory, recipe: Recipe) -> Path:
    """Writes report and model card from what the run directory holds."""
    from fintune.reporting.card import write_model_card
    from fintune.reporting.report import write_report

    results, facts = run.read_results(), run.read_facts()
    with writing(run.path):
        page = write_report(
            run.path,
            recipe=recipe,
            results=results,
            records=run.read_records(),
            history=run.read_history(),
            other_ranks=run.read_other_ranks(),
            model_facts=facts,
        )
        if run.adapter.is_dir():
            write_model_card(run.adapter / "README.md", recipe=recipe, results=results, model_facts=facts)
    return page


def write_comparison(run: RunDirectory, results: EvaluationResults, records: list[DocumentRecord]) -> Path:
    """Writes what a comparison of runs found, and its report; refuses the directory of a run."""
    from fintune.reporting.report import write_report

    if run.recipe.exists():
        raise RunError(f"{run.path} holds a run, which would be overwritten.", "Choose another --output-dir.")
    with writing(run.path):
        run.path.mkdir(parents=True, exist_ok=True)
        write_records(run.predictions, records)
        write_text_atomically(run.results, results.model_dump_json(indent=2))
        return write_report(run.path, recipe=None, results=results, records=records, history=(), model_facts={})
