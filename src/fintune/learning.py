"""A recipe's rows made into an adapter: the base loaded, the rows encoded, training, and the adapter kept.

Enters: a recipe and its run directory. Leaves: the trained model, the adapter with its recipe beside it, and facts.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from fintune.environment import describe_environment
from fintune.evaluation.confidence import save_validation
from fintune.inference.forward import EdgeModel
from fintune.models.adapter_files import save_adapter
from fintune.models.adapters import count_parameters, format_parameter_counts
from fintune.models.hand_over import FrozenPart, start_adapter
from fintune.models.load import load_base
from fintune.models.merging import merge_and_load, merged_section
from fintune.schema.adapter_records import given_adapter
from fintune.schema.errors import DataError, RunError
from fintune.schema.example import Example
from fintune.schema.loading import save_recipe
from fintune.schema.recipe import Recipe
from fintune.schema.results import DocumentRecord
from fintune.schema.run_directory import RunDirectory, clear_leftovers, write_json, writing
from fintune.session import Session
from fintune.tasks.registry import task_of
from fintune.tasks.selection import balanced_weights
from fintune.training.identity import pinned_start, require_same_recipe, run_fingerprint
from fintune.training.ranks import Ranks
from fintune.training.trained import training_facts
from fintune.trees.chat import EncodedSet, encode_all
from fintune.trees.plan import group_numbers, numbered
from fintune.trees.prefix_tree import TokenSample

log = logging.getLogger(__name__)
MERGE_PROMPTS = 8


def train_recipe(recipe: Recipe, run: RunDirectory, *, progress: bool) -> dict[str, Any]:
    """Trains into ``run`` without measuring anything, unless that was done before; returns its facts.

    Raises:
        RunError: the directory holds a run of another recipe, data set or base.
    """
    if run.adapter.is_dir():
        require_same_recipe(run, pinned_start(recipe), resolved=False)
        log.info("%s is trained already.", run.path)
        return run.read_facts()
    session = open_run(recipe, run, Ranks(), progress=progress)
    return train_session(session, run, encoded_training_set(session), Ranks(), progress=progress)[2]


def open_run(recipe: Recipe, run: RunDirectory, ranks: Ranks, *, progress: bool) -> Session:
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


def train_session(
    session: Session, run: RunDirectory, train_set: EncodedSet, ranks: Ranks, *, progress: bool
) -> tuple[Session, EdgeModel, dict[str, Any]]:
    """Trains what the recipe asks for; with the session on the base that the adapter belongs to, and facts."""
    from fintune.training.run import train_model

    recipe, data = session.recipe, session.data
    session, handed = _hand_over(session, run, [encoded.prompt.tolist() for encoded in train_set.encoded])
    start = start_adapter(session.base, recipe.adapter, seed=recipe.seed)
    model = session.edge_model(start.model)
    facts = _model_facts(session, model, train_set, start.frozen) | handed
    shares = ranks.world > 1 and recipe.distributed.strategy not in ("auto", "ddp")
    scorer = replace(session.scorer(model), shrinks=not shares)  # the others would wait for what is split
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
    facts |= training_facts(trained) | {"processes": ranks.world}
    if ranks.is_first:
        write_json(run.facts, facts)
        _save_result(session, model, run, trained.weights)
    return session, model, facts


def _hand_over(session: Session, run: RunDirectory, prompts: Sequence[list[int]]) -> tuple[Session, dict[str, Any]]:
    """Carries out ``adapter.hand_over=merge``, unless that was done before; other rules are for ``start_adapter``.

    Args:
        session: on the base of the earlier adapter, which is used up.
        run: gets the merged base as ``base/`` and what the merge changed as ``merge.json``.
        prompts: tokens of some prompts, of which the first are compared.

    Returns:
        The session on the merged base, and the facts of the merge.
    """
    adapter = session.recipe.adapter
    if adapter.hand_over != "merge" or adapter.init_adapter is None:
        return session, {}
    target, note, section = run.path / "base", run.path / "merge.json", session.recipe.model
    held = session.base.quantization
    if note.is_file():
        facts = json.loads(note.read_text(encoding="utf-8"))
        device = session.base.model.device
        return session.on_base(
            load_base(merged_section(section, held, target), device=device, for_training=True)
        ), facts
    base, gap = merge_and_load(
        session.base, section, given_adapter(adapter.init_adapter), target, prompts[:MERGE_PROMPTS]
    )
    log.warning(
        "Merging the earlier adapter moved the last logits of %d prompts by %.3g on average and %.3g at most; "
        "their spread is %.3g.",
        gap.positions, gap.mean, gap.largest, gap.spread,
    )  # fmt: skip
    facts = {"hand_over": {"rule": "merge", "held": held, **asdict(gap)}}
    write_json(note, facts)
    return session.on_base(base), facts


def encoded_training_set(session: Session) -> EncodedSet:
    """The training rows as tokens.

    Raises:
        DataError: none of them fits.
    """
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
