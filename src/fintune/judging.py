"""Written answers of a finished run, base against tuned, before a judge: from a run directory to scores beside it.

Enters: a run directory and an endpoint. Leaves: ``<run>/judged/<model>/`` with records and results, and those results.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from fintune.evaluation.comparing import with_holm
from fintune.evaluation.judge import Judge, Pair, Rubric, judge_from_environment, judged_records
from fintune.evaluation.resuming import ScoredFile, scored_records
from fintune.evaluation.suite import load_run_data
from fintune.inference.progress import tracking
from fintune.metrics.summary import compare, summarise
from fintune.schema.errors import RunError
from fintune.schema.example import Example
from fintune.schema.loading import load_recipe
from fintune.schema.recipe import Recipe, sanitize_name
from fintune.schema.results import Comparison, DocumentRecord, EvaluationResults, Scoring, TaskResult
from fintune.schema.run_directory import RunDirectory, write_records, write_text_atomically, writing
from fintune.tasks.base import LoadedTask
from fintune.training.identity import hash_of

SYSTEMS = ("tuned", "base")
SCORINGS: dict[Rubric, tuple[Scoring, ...]] = {"chat": ("chat", "text"), "forecast": ("qa", "text")}
"""Tasks whose answers a rubric is about, by how they are scored."""
_CHUNK = 8


def judge(
    run_dir: str | Path,
    *,
    endpoint: str,
    model: str,
    rubric: Rubric = "chat",
    limit: int | None = None,
    progress: bool = True,
) -> EvaluationResults:
    """Has a judge compare the tuned model's written answers with the base's, on every task where both wrote some.

    Args:
        run_dir: a finished run.
        endpoint: base URL of an OpenAI-compatible endpoint, such as http://localhost:8000/v1; its key is read from
            ``FINTUNE_JUDGE_KEY`` or ``OPENAI_API_KEY``.
        model: what the endpoint calls the judge.
        rubric: what the judge is told to prefer; ``forecast`` is about weekly forecasts in words.
        limit: at most this many documents a task.
        progress: show a bar.

    Raises:
        RunError: the run is not finished, or has no written answers of both systems.
        RecipeError: the endpoint is no URL, holds a password, or the network is forbidden.
        DependencyError: the judge does not answer; what it said before is kept.
    """
    run, started = RunDirectory(Path(run_dir)), time.perf_counter()
    asked = judge_from_environment(endpoint, model, rubric)
    recipe = load_recipe(run.path)
    written = _written(run, SCORINGS[rubric])
    tested = [(task, rows) for task, rows in load_run_data(recipe, training=False).tested if task.task.name in written]
    if not tested:
        raise RunError(
            f"{run.path} holds no answers that both the base and the tuned model wrote.",
            "Measure answers (conversations.measure: answers) with evaluation.base=true.",
        )
    place = RunDirectory(judged_folder(run.path, model, rubric))
    records: list[DocumentRecord] = []
    results: list[TaskResult] = []
    comparisons: list[Comparison] = []
    for task, rows in tested:
        found = _task_records(asked, task, rows[:limit], written[task.task.name], place, progress=progress)
        scored, compared = _scores(found, task, recipe)
        records, results, comparisons = [*records, *found], [*results, *scored], [*comparisons, *compared]
    malformed = int(sum(one.counts.get("malformed", 0) for one in records if one.system == SYSTEMS[0]))
    outcome = EvaluationResults(
        model=recipe.model.base,
        adapter=str(run.adapter),
        results=tuple(results),
        comparisons=tuple(with_holm(comparisons)),
        data=tuple(task.licence for task, _ in tested),
        counts={
            "judge": model,
            "rubric": rubric,
            "judged documents": len(records) // 2,
            "malformed verdicts": malformed,
        },
        elapsed_s=time.perf_counter() - started,
    )
    with writing(place.path):
        write_records(place.predictions, records)
        write_text_atomically(place.results, outcome.model_dump_json(indent=2))
    return outcome


def judged_folder(run: Path, model: str, rubric: Rubric = "chat") -> Path:
    """Where a judge's records and results go."""
    return run / "judged" / (sanitize_name(model) if rubric == "chat" else f"{sanitize_name(model)}-{rubric}")


def _written(run: RunDirectory, scorings: Collection[Scoring]) -> dict[str, dict[str, dict[str, str]]]:
    """Answers by task, document and system, where the task is answered in words and both systems answered."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    results = run.read_results()
    tasks = {one.task for one in results.results if one.scoring in scorings and one.decoding == "written"}
    for record in run.read_records():
        if record.task in tasks and record.system in SYSTEMS and record.output is not None:
            found.setdefault(record.task, {}).setdefault(record.example_id, {})[record.system] = record.output
    whole = {task: {key: said for key, said in by_id.items() if len(said) == 2} for task, by_id in found.items()}
    return {task: by_id for task, by_id in whole.items() if by_id}


def _task_records(
    judge: Judge,
    task: LoadedTask,
    rows: tuple[Example, ...],
    written: dict[str, dict[str, str]],
    place: RunDirectory,
    *,
    progress: bool,
) -> list[DocumentRecord]:
    documents = [example for example in rows if example.example_id in written]
    answers = [[one.example_id, written[one.example_id]] for one in documents]
    rubric = [] if judge.rubric == "chat" else [judge.rubric]
    known = hash_of([judge.model, judge.url, task.content_hash, answers, *rubric])
    file = ScoredFile(place.path / "scored", SYSTEMS[0], task.task.name, known)

    def ask(chunk: Sequence[Example]) -> list[DocumentRecord]:
        pairs = [Pair(one, *(written[one.example_id][system] for system in SYSTEMS)) for one in chunk]
        found = judged_records(judge, pairs, SYSTEMS)
        tracker.advance(len(chunk))
        return found

    with tracking(f"judging {task.task.name}", len(documents), shown=progress) as tracker:
        return scored_records(
            ask, task.task, documents, chunk=_CHUNK, n_records=2, file=file, on_restored=tracker.advance
        )


def _scores(
    records: list[DocumentRecord], task: LoadedTask, recipe: Recipe
) -> tuple[list[TaskResult], list[Comparison]]:
    evaluation = recipe.evaluation
    options: dict[str, Any] = {
        "scoring": "chat",
        "confidence": evaluation.confidence,
        "n_resamples": evaluation.bootstrap_samples,
        "seed": recipe.seed,
    }
    tuned, base = ([one for one in records if one.system == system] for system in SYSTEMS)
    results = [
        summarise(rows, task_version=task.task.version, split=evaluation.split, **options).model_copy(
            update={"decoding": "written"}
        )
        for rows in (tuned, base)
    ]
    return results, [compare(tuned, base, **options)]
