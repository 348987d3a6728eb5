"""A recipe with stages carried out: each trained in a run directory of its own below that of the run, then measured.

::

    runs/flare-curriculum/
      recipe.yaml  stages.json           the whole, and the order that was taken
      stages/1-complex/  2-simple/       each a run: recipe, checkpoints, metrics, facts, adapter
      adapter/                           the last stage's
      metrics.jsonl  facts.json          of all stages together
      predictions.jsonl  results.json  report.html ...

Enters: a recipe with stages. Leaves: what a run without leaves. A stage that is trained is not trained again.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fintune.environment import describe_environment
from fintune.inference.out_of_memory import release_memory
from fintune.learning import describe_adapter, placing_adapter, train_recipe
from fintune.measuring import evaluate_run, scored_folder, write_run_report
from fintune.models.adapter_files import load_adapter
from fintune.models.load import load_base
from fintune.schema.errors import DataError
from fintune.schema.loading import load_recipe, save_recipe
from fintune.schema.outcomes import TrainingOutcome
from fintune.schema.recipe import Recipe, StageSection
from fintune.schema.results import EvaluationResults
from fintune.schema.run_directory import (
    RunDirectory,
    clear_leftovers,
    write_json,
    write_text_atomically,
    writing,
)
from fintune.schema.stages import stage_folders, stage_order, stage_recipes, whole_recipe
from fintune.session import Session
from fintune.training.identity import require_same_recipe

log = logging.getLogger(__name__)
_SUMMED = ("samples_drawn", "sample_tokens", "distinct_tokens", "training_seconds", "steps")
_OF_A_STAGE = (*_SUMMED, "training_samples", "trainable_parameters", "final_loss", "hand_over")


def run_stages(recipe: Recipe, run: RunDirectory, *, progress: bool) -> TrainingOutcome:
    """Trains the stages one after the other and measures the last one's adapter, going on from what is there.

    Raises:
        RunError: the directory holds a run of another recipe.
        AdapterError: a stage cannot start from the adapter before it.
    """
    started = time.perf_counter()
    require_same_recipe(run, recipe, resolved=False)
    with writing(run.path):
        run.path.mkdir(parents=True, exist_ok=True)
    clear_leftovers(run)
    save_recipe(recipe, run.recipe)
    write_json(run.environment, describe_environment())
    order = _order(recipe, run, progress=progress)
    places = [RunDirectory(run.path / folder) for folder in stage_folders(recipe, order)]
    for number, (stage, place) in enumerate(zip(stage_recipes(recipe, order), places, strict=True)):
        log.info("Stage %d of %d: %s.", number + 1, len(places), place.path.name)
        train_recipe(_following(stage, places[number - 1] if number else None), place, progress=progress)
        release_memory()
    recipe = _pinned(recipe, order, places)
    save_recipe(recipe, run.recipe)
    facts = _facts(recipe, order, places)
    write_json(run.facts, facts)
    _join_metrics(run, places)
    results = _measured(recipe, run, _asked(recipe, order, places), started, progress=progress)
    report = write_run_report(run, recipe) if recipe.report.enabled else None
    return TrainingOutcome(run.path, run.adapter, results, report, facts)


def _following(stage: Recipe, previous: RunDirectory | None) -> Recipe:
    """A stage that starts from the one before it, on the base that one has; merging makes another base."""
    if previous is None:
        return stage
    adapter, model = stage.adapter, load_recipe(previous.adapter / previous.recipe.name).model
    if adapter.init_adapter == str(Path("stages") / previous.path.name):
        adapter = adapter.model_copy(update={"init_adapter": str(previous.path)})
    return stage.model_copy(update={"adapter": adapter, "model": model})


# --- order -----------------------------------------------------------------------------------------------------------


def _order(recipe: Recipe, run: RunDirectory, *, progress: bool) -> tuple[int, ...]:
    """The order of the stages; once measured it stays, whatever is trained meanwhile."""
    if recipe.stage_order != "measured_loss":
        order, losses = stage_order(recipe), {}
    elif run.stages.is_file():
        known = json.loads(run.stages.read_text(encoding="utf-8"))
        order, losses = tuple(known["order"]), known["losses"]
    else:
        losses = _losses(recipe, progress=progress)
        order = tuple(sorted(range(len(recipe.stages)), key=lambda number: -losses[recipe.stages[number].name]))
        log.info(
            "Order by the loss of the untuned base: %s.", ", ".join(recipe.stages[number].name for number in order)
        )
    names = [recipe.stages[number].name for number in order]
    write_json(run.stages, {"stage_order": recipe.stage_order, "order": order, "names": names, "losses": losses})
    return order


def _losses(recipe: Recipe, *, progress: bool) -> dict[str, float]:
    """The untuned base's mean loss on each stage's validation rows, in nats per token of the answers."""
    session = Session.open(whole_recipe(recipe), training=True, progress=progress)
    scorer = session.scorer(session.edge_model(session.base.model))
    losses = {}
    for stage in recipe.stages:
        tasks = {task.name for task in stage.data.tasks}
        rows = [example for example in session.data.validation if example.task in tasks]
        if not rows:
            raise DataError(
                f"The stage {stage.name} has no validation rows, so that its loss cannot be measured.",
                "Choose another stage_order, or data with a validation split.",
            )
        losses[stage.name] = scorer.validation_metrics(rows)["eval_loss"]
    del session, scorer
    release_memory()
    return losses


# --- what comes of it ------------------------------------------------------------------------------------------------


def _pinned(recipe: Recipe, order: Sequence[int], places: Sequence[RunDirectory]) -> Recipe:
    """The recipe with revisions and hashes as the stages found them, and sections that hold for all of them."""
    done = [load_recipe(place.recipe) for place in places]
    sections = {task.name: task for stage in done for task in stage.data.tasks}
    stages = tuple(
        _pinned_stage(stage, sections, done[0] if number == 0 else None) for number, stage in enumerate(recipe.stages)
    )
    pinned = recipe.model_copy(update={"model": done[0].model, "stages": stages})
    whole = whole_recipe(pinned)
    return pinned.model_copy(update={"data": whole.data, "adapter": whole.adapter, "training": whole.training})


def _pinned_stage(stage: StageSection, sections: dict[str, Any], first: Recipe | None) -> StageSection:
    tasks = tuple(
        task.model_copy(
            update={
                key: getattr(sections[task.name], key)
                for key in ("source", "config", "prompt", "revision", "content_hash", "table")
            }
        )
        for task in stage.data.tasks
    )
    start = {} if first is None else {"init_hash": first.adapter.init_hash}
    data, adapter = stage.data.model_copy(update={"tasks": tasks}), stage.adapter.model_copy(update=start)
    return stage.model_copy(update={"data": data, "adapter": adapter})


def _facts(recipe: Recipe, order: Sequence[int], places: Sequence[RunDirectory]) -> dict[str, Any]:
    """The last stage's facts, the sums of what all stages computed, and each stage's own figures."""
    found = [place.read_facts() for place in places]
    stages = {
        place.path.name: {key: own[key] for key in _OF_A_STAGE if key in own}
        for place, own in zip(places, found, strict=True)
    }
    sums = {key: sum(own[key] for own in found) for key in _SUMMED}
    sharing = round(sums["sample_tokens"] / max(sums["distinct_tokens"], 1), 3)
    return {**found[-1], **sums, "sharing_ratio": sharing, "stages": stages}


def _join_metrics(run: RunDirectory, places: Sequence[RunDirectory]) -> None:
    """The lines of all stages' metrics, with steps counted on and the stage named."""
    lines, before = [], 0
    for place in places:
        rows = place.read_history()
        lines += [json.dumps({**row, "step": row["step"] + before, "stage": place.path.name}) for row in rows]
        before += max((row["step"] for row in rows), default=0)
    write_text_atomically(run.metrics, "".join(f"{line}\n" for line in lines))


# --- measuring -------------------------------------------------------------------------------------------------------


def _asked(recipe: Recipe, order: Sequence[int], places: Sequence[RunDirectory]) -> list[RunDirectory]:
    """The stages that are measured on the way, in order; the last one's adapter is measured as the run's."""
    if recipe.stage_order == "mixed":
        return [places[-1]]
    wanted = [place for number, place in zip(order, places, strict=True) if recipe.stages[number].evaluate]
    return [place for place in wanted if place is not places[-1]] + [places[-1]]


def _measured(
    recipe: Recipe, run: RunDirectory, places: Sequence[RunDirectory], started: float, *, progress: bool
) -> EvaluationResults:
    """Scores the base once and the adapter of each place, the last one as the run's own."""
    whole = whole_recipe(recipe)
    session = Session.open(whole, training=True, progress=progress)
    write_json(run.data_report, {"tasks": [report.model_dump(mode="json") for report in session.data.quality]})
    base_records = session.score_base(folder=scored_folder(run))
    results = None
    for number, place in enumerate(places):
        trained = load_recipe(place.adapter / place.recipe.name)
        if number or trained.model.content_hash != session.base.files.content_hash:
            session = replace(
                session, base=load_base(trained.model, device=session.base.model.device, for_training=True)
            )
        release_memory()
        model = session.edge_model(load_adapter(session.base, place.adapter))
        goal = place
        if place is places[-1]:
            goal = run
            if not run.adapter.is_dir():
                with placing_adapter(run) as aside:
                    shutil.copytree(place.adapter, aside / "adapter")
                    described = recipe.model_copy(update={"model": trained.model})
                    describe_adapter(aside / "adapter", session, model, described)
        results = evaluate_run(session, model, base_records, goal, _lost(places[: number + 1]), started)
        if goal is place and recipe.report.enabled:
            write_run_report(place, trained)
    assert results is not None, "the last stage is always measured"
    return results


def _lost(places: Sequence[RunDirectory]) -> dict[str, int]:
    found = [place.read_facts() for place in places]
    return {
        f"{name}_training_samples": sum(int(facts.get(f"{name}_samples", 0)) for facts in found)
        for name in ("truncated", "dropped")
    }
