"""The model card: a README in Hugging Face's form, with results, data licences, overlap and limits.

Enters: ``Recipe``, ``EvaluationResults``, facts about the model. Leaves: ``README.md`` beside the adapter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from fintune.reporting.card_usage import Form, base_id, hub_id, usage
from fintune.reporting.markup import markdown_table, markdown_text
from fintune.reporting.scores import main_metrics, score_tables
from fintune.reporting.tables import Table, facts_table, licence_table, overlap_table
from fintune.reporting.verdict import verdict
from fintune.reporting.wording import DISCLAIMER, metric_name, tasks_of
from fintune.schema.recipe import Recipe
from fintune.schema.results import DataLicence, EvaluationResults, Scoring, TaskResult
from fintune.schema.stages import stage_recipes
from fintune.tasks.licences import classify_licence, meaning_of, strictest

UNKNOWN = "unknown"
# Strictest first: non-commercial, then share-alike and model licences with conditions, then attribution, then waivers.
LICENCES = (
    "cc-by-nc-nd-4.0",
    "cc-by-nc-nd-3.0",
    "cc-by-nc-sa-4.0",
    "cc-by-nc-sa-3.0",
    "cc-by-nc-4.0",
    "cc-by-nc-3.0",
    "llama2",
    "llama3",
    "llama3.1",
    "llama3.2",
    "llama3.3",
    "gemma",
    "cc-by-nd-4.0",
    "gpl-3.0",
    "cc-by-sa-4.0",
    "cc-by-sa-3.0",
    "odbl",
    "cc-by-4.0",
    "cc-by-3.0",
    "odc-by",
    "apache-2.0",
    "bsd-3-clause",
    "bsd-2-clause",
    "mit",
    "cc0-1.0",
    "unlicense",
    "pddl",
)
_HUB_TASKS: dict[Scoring, str] = {
    "classification": "text-classification",
    "questions": "text-classification",
    "tagging": "token-classification",
    "qa": "question-answering",
    "text": "text-generation",
    "chat": "text-generation",
}
_HUB_METRICS = {
    "accuracy": "accuracy",
    "avg_f1": "f1",
    "entity_f1": "f1",
    "macro_f1": "f1",
    "mcc": "matthews_correlation",
    "precision": "precision",
    "recall": "recall",
    "exact": "exact_match",
}


def write_model_card(
    path: Path,
    *,
    recipe: Recipe,
    results: EvaluationResults,
    model_facts: Mapping[str, Any],
    title: str | None = None,
    form: Form = "run",
) -> Path:
    """Writes the model card and returns its path.

    Args:
        path: the file, or the folder that gets a ``README.md``.
        recipe: the resolved recipe.
        results: aggregates, licences and overlap; may hold no results.
        model_facts: ``base_model`` (hub id) and ``base_licence`` enter the front matter; the rest is listed.
        title: heading of the card; the recipe's name when left out.
        form: what lies beside the card: what the run itself saved, or an export of it as whole weights or as GGUF.
    """
    target = path if path.suffix == ".md" else path / "README.md"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(model_card(recipe, results, model_facts, title, form), encoding="utf-8")
    return target


def model_card(
    recipe: Recipe,
    results: EvaluationResults,
    model_facts: Mapping[str, Any],
    title: str | None = None,
    form: Form = "run",
) -> str:
    """The card as text."""
    front = yaml.safe_dump(_front_matter(recipe, results, model_facts, form), sort_keys=False, allow_unicode=True)
    parts = [
        f"---\n{front}---",
        f"# {markdown_text(title or recipe.name)}",
        markdown_text(recipe.description) or f"{_kind(recipe)} for finance, made with fintune.",
        "## Results",
        *(markdown_text(sentence) for sentence in verdict(results)),
        *_tables(score_tables(results) if results.results else []),
        "## Use",
        usage(recipe, model_facts, form),
        "## Training",
        _training_words(recipe),
        *_tables([facts_table(model_facts)]),
        "## Data and licences",
        _licence_words(results, model_facts),
        *_tables([licence_table(results)]),
        "## Overlap between training and test",
        *(_tables([overlap_table(results)]) or ["Not measured."]),
        "## Limits",
        _limits(results),
    ]
    return "\n\n".join(parts) + "\n"


def strictest_licence(licences: Iterable[str]) -> str:
    """The strictest of several licences in Hugging Face's spelling; ``unknown`` as soon as one is not recognised."""
    ids = [licence_id(licence) for licence in licences]
    if not ids or UNKNOWN in ids:
        return UNKNOWN
    return min(ids, key=LICENCES.index)


def licence_id(licence: str) -> str:
    """Hugging Face's identifier of a licence however it is written; ``unknown`` when it is not recognised.

    ``CC BY-NC-SA 3.0``, ``cc-by-nc-sa-3.0`` and ``Apache License 2.0`` are all read.
    """
    text = re.sub(r"[\s_/-]+", "-", licence.strip().lower())
    text = re.sub(r"-?\b(licen[cs]e|version|deed|international|unported|community)\b-?", "-", text).strip("-. ")
    text = re.sub(r"-+", "-", text).replace("creative-commons", "cc").replace("-v", "-").replace("llama-", "llama")
    text = {"apache2": "apache-2.0", "apache": "apache-2.0", "apache-2": "apache-2.0", "cc0": "cc0-1.0"}.get(text, text)
    return text if text in LICENCES else UNKNOWN


def _front_matter(recipe: Recipe, results: EvaluationResults, facts: Mapping[str, Any], form: Form) -> dict[str, Any]:
    base = base_id(recipe, facts)
    lora = recipe.adapter.kind == "lora"
    quantised = recipe.model.quantization != "none"
    datasets = [found for d in results.data if (found := hub_id(d.source))]
    front: dict[str, Any] = {
        "base_model": base,
        "base_model_relation": "finetune" if form != "run" and base else None,
        "library_name": {"run": "peft" if lora else "transformers", "merged": "transformers", "gguf": "gguf"}[form],
        "pipeline_tag": "text-generation",
        "license": strictest_licence(_all_licences(results, facts)),
        "tags": [
            "finance",
            "fintune",
            *(["lora"] if lora else []),
            *(["qlora"] if lora and quantised else []),
            *(["gguf"] if form == "gguf" else []),
        ],
        "datasets": list(dict.fromkeys(datasets)) or None,
        "metrics": list(dict.fromkeys(kind for r in results.under("robust") for kind, _ in _hub_metrics(r))) or None,
        "model-index": _model_index(recipe, results) or None,
    }
    return {key: value for key, value in front.items() if value is not None}


def _model_index(recipe: Recipe, results: EvaluationResults) -> list[dict[str, Any]]:
    sources = {d.task: hub_id(d.source) or d.task for d in results.data}
    entries = [
        {
            "task": {"type": _HUB_TASKS[r.scoring]},
            "dataset": {"name": r.task, "type": sources.get(r.task, r.task), "split": r.split},
            "metrics": [
                {"type": kind, "name": metric_name(metric), "value": round(r.metrics[metric].value, 4)}
                for kind, metric in _hub_metrics(r)
            ],
        }
        for task in tasks_of(results)
        if (r := results.find(task, "tuned")) is not None
    ]
    return [{"name": recipe.name, "results": entries}] if entries else []


def _hub_metrics(result: TaskResult) -> list[tuple[str, str]]:
    """The hub's kind of metric and our name for it, the primary score first, each kind once."""
    kinds = {
        result.primary: _HUB_METRICS.get(result.primary, result.primary),
        **{metric: _HUB_METRICS[metric] for metric in main_metrics([result]) if metric in _HUB_METRICS},
    }
    by_kind: dict[str, str] = {}
    for metric, kind in kinds.items():
        by_kind.setdefault(kind, metric)
    return list(by_kind.items())


def _tables(tables: Iterable[Table | None]) -> list[str]:
    lines = []
    for table in tables:
        if table is not None:
            lines += [f"**{markdown_text(table.caption)}**", markdown_table(table)]
            lines += [markdown_text(table.note)] if table.note else []
    return lines


def _training_words(recipe: Recipe) -> str:
    if recipe.stages:
        stages = [(stage.name.removeprefix(f"{recipe.name}-"), stage) for stage in stage_recipes(recipe)]
        parts = " ".join(f"Stage {markdown_text(name)}: {_training_words(stage)}" for name, stage in stages)
        measured = " Trained in the order of the untuned base's loss." if recipe.stage_order == "measured_loss" else ""
        return parts + measured
    tasks = ", ".join(task.name for task in recipe.data.tasks)
    a, t = recipe.adapter, recipe.training
    length = f"{t.max_steps} steps" if t.max_steps else f"{t.epochs:g} epoch{'s' if t.epochs != 1 else ''}"
    adapter = f"rank {a.rank}, alpha {a.alpha:g}, dropout {a.dropout:g}, " if a.kind == "lora" else ""
    held = "unquantised" if recipe.model.quantization == "none" else f"in {recipe.model.quantization}"
    return markdown_text(
        f"{_kind(recipe)} on {tasks}: {adapter}{length}, {t.samples_per_step} samples a step, peak learning rate "
        f"{t.learning_rate:g} ({t.schedule}), seed {recipe.seed}; base weights {held}."
    )


def _kind(recipe: Recipe) -> str:
    if recipe.adapter.kind == "none":
        return "Full fine-tune"
    return "QLoRA adapter" if recipe.model.quantization != "none" else "LoRA adapter"


def _licence_words(results: EvaluationResults, facts: Mapping[str, Any]) -> str:
    front = strictest_licence(_all_licences(results, facts))
    stated = (
        f"The front matter states {front}."
        if front != UNKNOWN
        else "At least one licence is unknown, so the front matter states unknown: check before any use."
    )
    base = _base_licence(facts) or "not known"
    return markdown_text(f"The base model's licence is {base}. {_strictest_words(results, facts)} {stated}")


def _strictest_words(results: EvaluationResults, facts: Mapping[str, Any]) -> str:
    """The sentence a reader must not miss: what the strictest of all sources allows, and which source that is."""
    terms = [(_base_licence(facts), "the base model"), *((d.licence.strip(), d.task) for d in results.data)]
    licence = strictest(text for text, _ in terms)
    names = list(dict.fromkeys(name for text, name in terms if (text or UNKNOWN) == licence))
    meaning = meaning_of(classify_licence(licence))
    if licence == UNKNOWN:
        return f"The strictest terms among its sources are not known ({', '.join(names)}): {meaning}."
    return f"The strictest terms among its sources are {licence} ({', '.join(names)}): {meaning}."


def _base_licence(facts: Mapping[str, Any]) -> str:
    licence = str(facts.get("base_licence") or "").strip()
    return "" if licence == UNKNOWN else licence


def _all_licences(results: EvaluationResults, facts: Mapping[str, Any]) -> list[str]:
    return [str(facts.get("base_licence") or ""), *(d.licence for d in results.data)]


def _limits(results: EvaluationResults) -> str:
    closed = any(result.labels for result in results.results)
    items = [
        DISCLAIMER + " Do not trade on its answers.",
        "The scores hold for the documents measured; other sources, periods, languages and prompts will differ.",
        "What the base model saw in its own pre-training is not known and may include test documents.",
        *(["It answers with one of the task's labels even where none fits."] if closed or not results.results else []),
    ]
    notes = dict.fromkeys(_note(d) for d in results.data if d.split_note)
    return "\n".join(f"- {markdown_text(item)}" for item in [*items, *notes])


def _note(licence: DataLicence) -> str:
    return f"{licence.task}: {licence.split_note}"
