"""A recipe carried out: data, base model, training, evaluation, report, in one run directory.

Every stage writes its result before the next begins, and a stage whose result is already there is not repeated.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

from fintune.learning import encoded_training_set, open_run, train_session
from fintune.measuring import evaluate_run, scored_folder, write_run_report
from fintune.models.adapter_files import load_adapter
from fintune.schema.errors import RecipeError
from fintune.schema.outcomes import TrainingOutcome
from fintune.schema.recipe import Recipe
from fintune.schema.run_directory import RunDirectory
from fintune.staged import run_stages
from fintune.training.ranks import Ranks

log = logging.getLogger(__name__)


def run_recipe(recipe: Recipe, run: RunDirectory, *, progress: bool, ranks: Ranks | None = None) -> TrainingOutcome:
    """Trains, evaluates and reports into ``run``, going on from whatever is already there.

    Args:
        recipe: what to do.
        run: where it is done.
        progress: show progress on standard error.
        ranks: the processes that share the run; the first writes and evaluates while the others wait. None: this one.

    Raises:
        RunError: the directory holds a run of another recipe, data set or base.
        RecipeError: several processes cannot do it.
    """
    ranks = ranks or Ranks()
    _require_shared_alike(recipe, ranks)
    if recipe.stages:
        return run_stages(recipe, run, progress=progress)
    started = time.perf_counter()
    progress = progress and ranks.is_first
    session = open_run(recipe, run, ranks, progress=progress)
    train_set = encoded_training_set(session)
    is_trained: bool = ranks.from_first(run.adapter.is_dir())
    base_records = session.score_base(folder=scored_folder(run)) if ranks.is_first else []
    if is_trained:
        log.warning("%s is trained already; its adapter is evaluated.", run.path)
        session = session.on_base_of(run.adapter)
        model, facts = session.edge_model(load_adapter(session.base, run.adapter)), run.read_facts()
    else:
        session, model, facts = train_session(session, run, train_set, ranks, progress=progress)
    if not ranks.is_first:
        ranks.wait()  # for the evaluation
        return TrainingOutcome(run.path, run.adapter, run.read_results(), _written_report(run), facts)
    lost = {"truncated_training_samples": train_set.truncated, "dropped_training_samples": train_set.dropped}
    results = evaluate_run(session, model, base_records, run, lost, started)
    report = write_run_report(run, session.recipe) if session.recipe.report.enabled else None
    ranks.wait()
    return TrainingOutcome(run.path, run.adapter, results, report, facts)


def _require_shared_alike(recipe: Recipe, ranks: Ranks) -> None:
    """Refuses what only one process can do."""
    if ranks.world == 1:
        return
    if recipe.stages:
        raise RecipeError(
            f"A recipe with stages is trained by one process, not {ranks.world}.",
            "Train each stage as a recipe of its own that names the adapter before it as adapter.init_adapter.",
        )
    if recipe.adapter.hand_over == "merge":
        raise RecipeError(
            f"adapter.hand_over=merge is done by one process, not {ranks.world}.",
            "Merge first (`fintune adapters merge`), and set model.base to the folder that makes.",
        )


def _written_report(run: RunDirectory) -> Path | None:
    page = run.path / "report.html"
    return page if page.is_file() else None
