"""A recipe carried out: data, base model, training, evaluation, report, in one run directory.

Every stage writes its result before the next begins, and a stage whose result is already there is not repeated.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from fintune.environment import describe_environment
from fintune.evaluation.confidence import save_validation
from fintune.inference.forward import EdgeModel
from fintune.models.adapter_files import load_adapter, read_adapter_info, require_same_base, save_adapter
from fintune.models.adapters import count_parameters, format_parameter_counts
from fintune.models.hand_over import FrozenPart, start_adapter
from fintune.schema.errors import DataError, RecipeError, RunError
from fintune.schema.example import Example
from fintune.schema.loading import save_recipe
from fintune.schema.outcomes import TrainingOutcome
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
from fintune.session import Session, hand_over
from fintune.tasks.registry import task_of
from fintune.tasks.selection import balanced_weights
from fintune.training.identity import pinned_start, require_same_recipe, run_fingerprint
from fintune.training.ranks import Ranks
from fintune.trees.chat import EncodedSet, encode_all
from fintune.trees.plan import group_numbers, numbered
from fintune.trees.prefix_tree import TokenSample

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
        from fintune.staged import run_stages

        return run_stages(recipe, run, progress=progress)
    started = time.perf_counter()
    progress = progress and ranks.is_first
    session = _opened(recipe, run, ranks, progress=progress)
    train_set = _encoded_training_set(session)
    is_trained: bool = ranks.from_first(run.adapter.is_dir())
    base_records = session.score_base(folder=scored_folder(run)) if ranks.is_first else []
    if is_trained:
        log.warning("%s is trained already; its adapter is evaluated.", run.path)
        session = session.on_base_of(run.adapter)
        model, facts = session.edge_model(load_adapter(session.base, run.adapter)), known_facts(run)
    else:
        session, model, facts = _trained(session, run, train_set, ranks, progress=progress)
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


def train_recipe(recipe: Recipe, run: RunDirectory, *, progress: bool) -> dict[str, Any]:
    """Trains into ``run`` without measuring anything, unless that was done before; returns its facts.

    Raises:
        RunError: the directory holds a run of another recipe, data set or base.
    """
    if run.adapter.is_dir():
        require_same_recipe(run, pinned_start(recipe), resolved=False)
        log.info("%s is trained already.", run.path)
        return known_facts(run)
    session = _opened(recipe, run, Ranks(), progress=progress)
    return _trained(session, run, _encoded_training_set(session), Ranks(), progress=progress)[2]


def _opened(recipe: Recipe, run: RunDirectory, ranks: Ranks, *, progress: bool) -> Session:
    """Rows and base of a run whose directory is its own; what is known of them is written there."""
    from fintune.training.run import require_libraries

    require_libraries(recipe, ranks.world)
    require_same_recipe(run, recipe, resolved=False)
    session = Session.open(pinned_start(recipe), training=True, progress=progress, ranks=ranks)
    require_same_recipe(run, session.recipe, resolved=True)
    ranks.wait()  # before anything is written
    if ranks.is_first:
        _describe_run(session, run)
    return session


def _describe_run(session: Session, run: RunDirectory) -> None:
    """What is known before anything is computed: recipe, environment, data."""
    with writing(run.path):
        run.path.mkdir(parents=True, exist_ok=True)
    clear_leftovers(run)
    save_recipe(session.recipe, run.recipe)
    write_json(run.environment, describe_environment())
    write_json(run.data_report, {"tasks": [report.model_dump(mode="json") for report in session.data.quality]})


def _trained(
    session: Session, run: RunDirectory, train_set: EncodedSet, ranks: Ranks, *, progress: bool
) -> tuple[Session, EdgeModel, dict[str, Any]]:
    """Trains what the recipe asks for; with the session on the base that the adapter belongs to, and facts."""
    from fintune.training.run import train_model

    recipe, data = session.recipe, session.data
    session, handed = hand_over(session, run, [encoded.prompt.tolist() for encoded in train_set.encoded])
    start = start_adapter(session.base, recipe.adapter, seed=recipe.seed)
    model = session.edge_model(start.model)
    facts = _model_facts(session, model, train_set, start.frozen) | handed
    scorer = session.scorer(model)
    rows = [data.train[position] for position in train_set.kept]
    tasks, task_names = numbered(row.task for row in rows)
    trained = train_model(
        session.recipe,
        session.base,
        model,
        _training_samples(session, train_set),
        group_numbers(rows),
        run,
        tasks=tasks,
        task_names=task_names,
        packing=session.packing,
        validate=(lambda: scorer.validation_metrics(data.validation)) if _validates(session) else None,
        fingerprint=run_fingerprint(recipe, train_set, session.base.files.content_hash),
        progress=progress,
        ranks=ranks,
        frozen=start.frozen,
    )
    facts |= _training_facts(trained) | {"processes": ranks.world}
    if ranks.is_first:
        write_json(run.facts, facts)
        _save_result(session, model, run, trained.weights)
    return session, model, facts


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
        require_same_base(session.base, info)
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


def write_run_report(run: RunDirectory, recipe: Recipe) -> Path:
    """Writes report and model card from what the run directory holds."""
    from fintune.reporting.card import write_model_card
    from fintune.reporting.report import write_report

    results, facts = run.read_results(), known_facts(run)
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


def _encoded_training_set(session: Session) -> EncodedSet:
    encoded = encode_all(session.chat, session.data.train)
    if not encoded.encoded:
        raise DataError(
            f"None of the {len(session.data.train)} training samples fits {session.recipe.training.max_length} tokens.",
            "Raise training.max_length.",
        )
    if encoded.dropped:
        log.warning(
            "Dropped %d of %d training samples: training.max_length=%d is too short for their first answer, or for "
            "what surrounds their text.",
            encoded.dropped,
            len(session.data.train),
            session.recipe.training.max_length,
        )
    return encoded


def _training_samples(session: Session, train_set: EncodedSet) -> list[TokenSample]:
    rows = [session.data.train[position] for position in train_set.kept]
    is_balanced = session.recipe.data.class_weights == "balanced"
    weights = balanced_weights(rows) if is_balanced else [1.0] * len(rows)
    return [e.training_sample(i, weights[i]) for i, e in enumerate(train_set.encoded)]


def _save_result(session: Session, model: EdgeModel, run: RunDirectory, weights: dict[str, Any] | None) -> None:
    """The adapter with tokenizer and recipe, so that it can be moved away from its run and still be used rightly."""
    with placing_adapter(run) as aside:
        place = save_adapter(model.model, session.base.tokenizer, aside / "adapter", session.base.files, weights)
        describe_adapter(place, session, model, session.recipe)


@contextmanager
def placing_adapter(run: RunDirectory) -> Iterator[Path]:
    """A folder in which the block makes ``adapter``, which then takes its place in the run.

    Raises:
        RunError: it could not be written.
    """
    try:
        with tempfile.TemporaryDirectory(dir=run.path, prefix=".adapter-") as aside:
            yield Path(aside)
            (Path(aside) / "adapter").rename(run.adapter)
    except (OSError, SafetensorError) as exc:
        raise RunError(
            f"The adapter could not be written to {run.adapter} ({exc}).",
            "Free some space and start the same command again; it goes on from the last checkpoint.",
        ) from exc


def describe_adapter(place: Path, session: Session, model: EdgeModel, recipe: Recipe) -> None:
    """Writes beside an adapter the recipe it came from, and its answers to the session's validation rows."""
    save_recipe(recipe, RunDirectory(place).recipe)
    chose = session.recipe.training.best_metric is not None
    save_validation(place, _validation_records(session, model), chose_checkpoint=chose)


def _validation_records(session: Session, model: EdgeModel) -> list[DocumentRecord]:
    evaluation = session.recipe.evaluation
    if not evaluation.abstention or evaluation.decoding == "free":  # a written answer has no probabilities
        return []
    scorer = replace(session.scorer(model), decoding="constrained")
    by_task: dict[str, list[Example]] = {}
    for example in session.data.validation:
        if example.choices:
            by_task.setdefault(example.task, []).append(example)
    tasks = {section.name: task_of(section) for section in session.recipe.data.tasks}
    return [record for name, rows in by_task.items() for record in scorer.records(tasks[name], rows, "tuned")]


def _validates(session: Session) -> bool:
    training = session.recipe.training
    if training.best_metric is not None and not session.data.validation:
        raise DataError(
            "training.best_metric is set, but there are no validation rows to measure it on.",
            "Use data with validation rows, or set training.best_metric=null.",
        )
    return training.eval_steps is not None and bool(session.data.validation)


def known_facts(run: RunDirectory) -> dict[str, Any]:
    """What a run has measured about itself so far."""
    if not run.facts.is_file():
        return {}
    facts: dict[str, Any] = json.loads(run.facts.read_text(encoding="utf-8"))
    return facts


def _model_facts(
    session: Session, model: EdgeModel, train_set: EncodedSet, frozen: FrozenPart | None
) -> dict[str, Any]:
    trainable, total = count_parameters(model.model)
    trainable -= frozen.parameters if frozen else 0
    return {
        "base_model": session.base.files.hub_id or session.recipe.model.base,
        "base_source": session.recipe.model.base,
        "base_licence": session.base.files.licence,
        "base_sha256": session.base.files.content_hash,
        "quantization": session.base.quantization,
        "dtype": str(session.base.dtype).removeprefix("torch."),
        "weight_bytes": session.base.facts.weight_bytes,
        "device": str(session.base.model.device),
        "attention": model.backend,
        "packing": session.packing,
        "trainable_parameters": trainable,
        "all_parameters": total,
        "trainable_line": format_parameter_counts(trainable, total),
        **({"frozen_adapter_parameters": frozen.parameters} if frozen else {}),
        "training_samples": len(train_set.encoded),
        "truncated_samples": train_set.truncated,
        "dropped_samples": train_set.dropped,
    }


def _training_facts(trained: Any) -> dict[str, Any]:
    return {
        "steps": trained.steps,
        "planned_steps": trained.planned_steps,
        "stopped_early": trained.stopped_early,
        "skipped_steps": trained.skipped_steps,
        "rollbacks": trained.rollbacks,
        "resumed_from_step": trained.resumed_from,
        "resumed_on": trained.resumed_on,
        "memory_retries": trained.memory_retries,
        "tokens_per_batch": trained.tokens_per_batch,
        "activations": trained.activations,
        "predicted_bytes": trained.predicted_bytes,
        "free_bytes": trained.free_bytes,
        "best_step": trained.best_step,
        "final_loss": trained.final_loss,
        "training_seconds": round(trained.seconds, 2),
        "samples_drawn": trained.samples,
        "sample_tokens": trained.sample_tokens,
        "distinct_tokens": trained.distinct_tokens,
        "sharing_ratio": round(trained.sample_tokens / max(trained.distinct_tokens, 1), 3),
        "padding_ratio": round(trained.padding_ratio, 4),
        "tflops_per_s": trained.tflops_per_s,
        "mfu": trained.mfu,
        "peak_bytes": trained.peak_bytes,
        "by_task": trained.by_task,
    }
