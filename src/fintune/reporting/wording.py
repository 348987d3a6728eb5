"""Names and number formats, the same in every output."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fintune.metrics.families import MAX_TURN
from fintune.schema.recipe import sanitize_name
from fintune.schema.results import Estimate, EvaluationResults, OverlapReport, Protocol, TaskResult

SYSTEM_NAMES = {
    "base": "Base model",
    "base_5shot": "Base model, five examples shown",
    "base_calibrated": "Base model, calibrated",
    "tuned": "Tuned model",
    "majority": "Majority class",
    "lexicon": "Lexicon (VADER)",
    "tfidf": "TF-IDF + logistic regression",
    "last_direction": "Last direction again",
    "always_rise": "Always rise",
}
METRIC_NAMES = {
    "accuracy": "Accuracy",
    "macro_f1": "Macro F1",
    "weighted_f1": "Weighted F1",
    "mcc": "MCC",
    "ece": "Calibration error",
    "avg_f1": "Average F1",
    "entity_f1": "Entity F1",
    "precision": "Precision",
    "recall": "Recall",
    "exact": "Exact match",
    "tolerant": "Tolerant match",
    "execution": "Execution accuracy",
    "program": "Program accuracy",
    "token_f1": "Token F1",
    "rouge_l": "ROUGE-L",
    "dialogue_accuracy": "Whole dialogues right",
    "next_turn_accuracy": "Next turn found",
    "next_turn_chance": "By chance",
    "numbers_right": "Numbers right",
    "invented_numbers": "Numbers invented",
    "win_rate": "Win rate",
    "tie_rate": "Ties",
    "order_dependent": "Verdict depends on order",
    "perplexity": "Perplexity (token)",
    "byte_perplexity": "Perplexity (byte)",
}
DETAILS = {"weighted_f1_": "question", "entity_f1_": "entities", "accuracy_turn_": "turn"}
"""Scores of a part of the documents, by the head of their names, with the word for such a part."""
OUR_RULES = "our rules"
_FLARE, _READ_BY_FINGPT = "FLARE's", "_forecast"
"""What the names of tasks end with whose answers the reference implementation of FinGPT reads, not FLARE's."""
CLASSICAL = ("majority", "last_direction", "always_rise", "lexicon", "tfidf")
VARIANTS = ("base_5shot", "base_calibrated")
SYSTEM_ORDER = (*CLASSICAL, "base", *VARIANTS, "tuned")
_BYTES = "_bytes"
DISCLAIMER = "This is a research measurement, not investment advice."


def rules_name(protocol: Protocol, tasks: Iterable[str] = ()) -> str:
    """Whose rules answers are read by: ours, FLARE's, or FinGPT's for forecasts in words; both where tasks differ."""
    if protocol == "robust":
        return OUR_RULES
    whose = dict.fromkeys("FinGPT's" if task.endswith(_READ_BY_FINGPT) else _FLARE for task in tasks)
    return f"{' and '.join(whose or (_FLARE,))} rules"


def system_name(system: str) -> str:
    """The name people read; an unknown system keeps its own."""
    return SYSTEM_NAMES.get(system, system)


def metric_name(metric: str) -> str:
    """The name people read; an unknown metric keeps its own."""
    head = detail_head(metric)
    if head is not None and metric not in METRIC_NAMES:
        return f"{metric_name(head.removesuffix('_').removesuffix('_turn'))}, {detail_name(metric)}"
    return METRIC_NAMES.get(metric, metric.replace("_", " "))


def metric_in_sentence(metric: str) -> str:
    """The name within a sentence: ``macro F1``, ``MCC``."""
    name = metric_name(metric)
    return name if name[:2].isupper() else name[:1].lower() + name[1:]


def detail_head(metric: str) -> str | None:
    """The head of ``DETAILS`` that a score of a part of the documents begins with; None for a score of all."""
    return next((head for head in DETAILS if metric.startswith(head)), None)


def detail_name(metric: str) -> str:
    """The part of the documents a detailed score is about: ``price or not``, ``PER``, ``turn 2``."""
    head = detail_head(metric) or ""
    part = metric.removeprefix(head).replace("_", " ")
    if head != "accuracy_turn_":
        return part
    return f"turn {part} and later" if part == str(MAX_TURN) else f"turn {part}"


def answers_phrase(found: Iterable[TaskResult]) -> str:
    """How the models answered: ``answers written``, ``answers ranked``, or both; '' where no model did."""
    ways = {result.decoding for result in found if result.system not in CLASSICAL}
    if len(ways) > 1:
        return "answers partly written, partly ranked"
    return f"answers {next(iter(ways))}" if ways else ""


def tasks_of(results: EvaluationResults) -> list[str]:
    """Measured tasks in the order they were measured."""
    return list(dict.fromkeys(result.task for result in results.under("robust")))


def file_names(tasks: Iterable[str]) -> dict[str, str]:
    """What each task is called in names of files; of tasks that would share a name, the later ones are numbered.

    Names that differ in case alone are one on some systems.
    """
    names: dict[str, str] = {}
    taken: set[str] = set()
    for task in dict.fromkeys(tasks):
        plain = name = sanitize_name(task)
        number = 1
        while name.casefold() in taken:
            number += 1
            name = f"{plain}-{number}"
        taken.add(name.casefold())
        names[task] = name
    return names


def systems_of(results: EvaluationResults, task: str | None = None, protocol: Protocol = "robust") -> list[str]:
    """Measured systems: classical ones first, then base, tuned and anything else."""
    present = dict.fromkeys(r.system for r in results.under(protocol) if task is None or r.task == task)
    known = [system for system in SYSTEM_ORDER if system in present]
    return known + [system for system in present if system not in SYSTEM_ORDER]


def split_notes(results: EvaluationResults, task: str) -> list[str]:
    """What the data's own notes say of a task's split, each once and as a sentence."""
    notes = (d.split_note.strip() for d in results.data if d.task == task)
    return [note if note.endswith((".", "!", "?")) else f"{note}." for note in dict.fromkeys(notes) if note]


def near_duplicates(overlap: OverlapReport) -> str:
    """``12 (0.6)``: how many test documents have one, and from which similarity on texts count as such."""
    return "not sought" if overlap.near_threshold is None else f"{overlap.near} ({overlap.near_threshold:g})"


def main_system(results: EvaluationResults, task: str | None = None) -> str | None:
    """The system a run is about: the tuned model, else the base, else the last one; None when nothing was measured."""
    systems = systems_of(results, task)
    return next((s for s in ("tuned", "base") if s in systems), systems[-1] if systems else None)


def interval(estimate: Estimate, signed: bool = False) -> str:
    """``0.781 (0.729 to 0.834)``; the value alone when there is no interval."""
    form = "+.3f" if signed else ".3f"
    value = _minus(f"{estimate.value:{form}}")
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} ({_minus(f'{estimate.low:{form}}')} to {_minus(f'{estimate.high:{form}}')})"


def p_value(p: float | None) -> str:
    """A p-value to three places, ``< 0.001`` below that, a dash when the test does not apply."""
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def p_phrase(p: float) -> str:
    """``p < 0.001`` or ``p = 0.042``."""
    return f"p {p_value(p)}" if p < 0.001 else f"p = {p_value(p)}"


def percent(share: float) -> str:
    """A share as a percentage with one decimal."""
    return f"{100 * share:.1f}%"


def fact(value: Any) -> str:
    """Any fact on one line: thousands separated, lists and mappings joined by commas, nested ones by semicolons."""
    if value is None:
        return "not recorded"
    if isinstance(value, Sequence | Mapping) and not value:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, Mapping):
        separator = "; " if any(isinstance(item, Mapping) for item in value.values()) else ", "
        return separator.join(f"{key} {fact(item)}" for key, item in value.items() if item is not None) or "none"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(fact(item) for item in value)
    return str(value)


def fact_value(key: str, value: Any) -> str:
    """The fact in the unit that ``fact_name`` gives it."""
    if key.endswith(_BYTES) and isinstance(value, int | float):
        return f"{value / 2**30:.2f}"
    return fact(value)


def fact_name(key: str) -> str:
    """``elapsed_s`` becomes ``Elapsed (s)``; ``base_model`` becomes ``Base model``; bytes are shown as GiB."""
    unit = ""
    for suffix, name in (("_s", " (s)"), (_BYTES, " (GiB)")):
        if key.endswith(suffix):
            key, unit = key.removesuffix(suffix), name
    words = key.replace("_", " ").strip()
    return words[:1].upper() + words[1:] + unit


def shortened(text: str, length: int = 280) -> str:
    """The text on one line, cut at ``length`` characters with an ellipsis."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


def _minus(text: str) -> str:
    return text.replace("-", "−")
