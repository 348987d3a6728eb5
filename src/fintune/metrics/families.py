"""Families of scores: what each document adds up to, and what is computed from the totals.

Every score of fintune is a function of sums over documents. That is what lets one cluster bootstrap give all of them
intervals and paired differences. Enters: one system's records on one task. Leaves: ``Family`` with ``(G, F)`` features.

What a task's ``judge`` puts into ``DocumentRecord.counts``:
- questions: ``question:<name>`` = 1, the question that was asked (FLARE's Headlines asks nine).
- tagging: ``tp:<TYPE>``, ``fp:<TYPE>``, ``fn:<TYPE>``, numbers of entities; a subset of them that is also reported
  apart goes under ``tp@<subset>:<TYPE>`` and so on (``entity_f1_<subset>``): ``names``, the names that are no roles,
  and ``blind``, all of them at places chosen without a look at gold.
- qa and text: any name with a number between 0 and 1, whose mean over documents is reported; ``turn`` holds the number
  of a dialogue's turn, counted from 1, and is not averaged. ``same_unit`` is the part of the right answers that does
  not rest on per cent and ratio, or millions and units, being the same.
- chat: ``nats``, ``tokens`` and ``bytes`` of what was said; ``ranked``, ``next_turn`` and ``chance`` where turns were
  ranked; ``answered``, ``token_f1``, ``rouge_l`` and ``numbers_*`` where answers were written; ``judged``, ``win``,
  ``tie`` and ``order_dependent`` where a judge compared two systems.

Shape legend: ``G`` groups, ``F`` features, ``K`` labels, ``N`` documents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fintune.metrics import classification as scores
from fintune.metrics.classification import Floats, Ints, Tally
from fintune.schema.errors import DataError
from fintune.schema.results import DocumentRecord, Scoring

MAX_TURN = 6
"""Turns from this one on are reported together: longer dialogues are few."""


_CHAT_RATIOS: Mapping[str, tuple[str, str]] = {
    "win_rate": ("win", "judged"),
    "tie_rate": ("tie", "judged"),
    "order_dependent": ("order_dependent", "judged"),
    "next_turn_accuracy": ("next_turn", "ranked"),
    "next_turn_chance": ("chance", "ranked"),
    "token_f1": ("token_f1", "answered"),
    "rouge_l": ("rouge_l", "answered"),
    "numbers_right": ("numbers_found", "numbers_expected"),
    "invented_numbers": ("numbers_invented", "numbers_said"),
}
"""Scores of conversations that are one count over another."""
_CHAT_PRIMARY = ("win_rate", "token_f1", "next_turn_accuracy", "perplexity")


@dataclass(frozen=True)
class Measure:
    """One score of ``(..., F)`` feature totals, and its range."""

    score: Callable[[Floats], Floats]
    bounds: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True)
class Family:
    """The scores of one system's records.

    Attributes:
        primary: name of the score to quote.
        features_GF: feature sums of each group.
        measures: scores by name.
    """

    primary: str
    features_GF: Floats
    measures: Mapping[str, Measure]


def family_of(
    scoring: Scoring, records: Sequence[DocumentRecord], labels: Sequence[str], names: Sequence[str], group_N: Ints
) -> Family:
    """The family of scores of ``records``.

    Args:
        scoring: the task's family.
        records: one system's records on one task.
        labels: the task's labels in fixed order, where its answers are closed.
        names: count names to use; two systems compared must use the same (``count_names``).
        group_N: number of each record's group.
    """
    if scoring == "classification":
        return Family("accuracy", group_sums(_tallies(records, labels), group_N), _label_measures(len(labels)))
    if scoring == "questions":
        return _questions(records, labels, names, group_N)
    if scoring == "tagging":
        return _tagging(records, names, group_N)
    if scoring == "chat":
        return _chat(records, names, group_N)
    return _means(records, names, group_N, "token_f1" if scoring == "text" and "token_f1" in names else "accuracy")


def count_names(*systems: Sequence[DocumentRecord]) -> tuple[str, ...]:
    """All names that occur among the records' counts, sorted."""
    return tuple(sorted({name for records in systems for record in records for name in record.counts}))


def _tallies(records: Sequence[DocumentRecord], labels: Sequence[str]) -> Floats:
    """One-hot hits, targets and predictions of each document, ``(N, 3K)``."""
    eye = np.eye(len(labels) + 1, len(labels))
    target_NK = eye[scores.encode([record.target for record in records], labels)]
    predicted_NK = eye[scores.encode([record.prediction for record in records], labels)]
    return np.concatenate([target_NK * predicted_NK, target_NK, predicted_NK], axis=1)


def group_sums(features_NF: Floats, group_N: Ints) -> Floats:
    """Features added up within each group, ``(G, F)``."""
    sums_GF = np.zeros((int(group_N.max()) + 1, features_NF.shape[1]))
    np.add.at(sums_GF, group_N, features_NF)
    return sums_GF


def _tally_at(totals: Floats, start: int, n_labels: int) -> Tally:
    parts = (totals[..., start + i * n_labels : start + (i + 1) * n_labels] for i in range(3))
    return Tally(*parts)


def _label_measures(n_labels: int, start: int = 0) -> dict[str, Measure]:
    def on_tally(score: Callable[[Tally], Floats]) -> Callable[[Floats], Floats]:
        return lambda totals: score(_tally_at(totals, start, n_labels))

    return {
        "accuracy": Measure(on_tally(scores.accuracy)),
        "macro_f1": Measure(on_tally(scores.macro_f1)),
        "weighted_f1": Measure(on_tally(scores.weighted_f1)),
        "mcc": Measure(on_tally(scores.mcc), (-1.0, 1.0)),
    }


def _questions(records: Sequence[DocumentRecord], labels: Sequence[str], names: Sequence[str], group_N: Ints) -> Family:
    """FLARE's Headlines: the plain mean over questions of the weighted F1; beside it the scores over all answers."""
    width = 3 * len(labels)
    asked = [name for name in names if name.startswith("question:")]
    tallies = _tallies(records, labels)
    parts = [tallies]
    measures = _label_measures(len(labels))
    for number, name in enumerate(asked):
        is_asked_N = np.array([record.counts.get(name, 0.0) for record in records])
        parts.append(tallies * is_asked_N[:, None])
        measures[f"weighted_f1_{name.partition(':')[2]}"] = _label_measures(len(labels), (number + 1) * width)[
            "weighted_f1"
        ]

    def average(totals: Floats) -> Floats:
        each = [
            scores.weighted_f1(_tally_at(totals, (number + 1) * width, len(labels))) for number in range(len(asked))
        ]
        return np.asarray(np.mean(each, axis=0))

    return Family(
        "avg_f1", group_sums(np.concatenate(parts, axis=1), group_N), {"avg_f1": Measure(average), **measures}
    )


def _tagging(records: Sequence[DocumentRecord], names: Sequence[str], group_N: Ints) -> Family:
    """Micro F1, precision and recall of entities; F1 of each type and of each subset."""
    counted = [name for name in names if name[:2] in ("tp", "fp", "fn")]
    column = {name: number for number, name in enumerate(counted)}
    features_NF = np.array([[record.counts.get(name, 0.0) for name in counted] for record in records])
    exact_N1 = np.array([[float(record.correct), 1.0] for record in records])
    features_NF = np.concatenate([features_NF.reshape(len(records), -1), exact_N1], axis=1)

    def columns(kind: str, subset: str, entity: str | None) -> list[int]:
        head = kind + subset + ":"
        return [at for name, at in column.items() if name.startswith(head) and entity in (None, name[len(head) :])]

    def score(of: str, subset: str = "", entity: str | None = None) -> Measure:
        hit, extra, lost = (columns(kind, subset, entity) for kind in ("tp", "fp", "fn"))

        def value(totals: Floats) -> Floats:
            tp, fp, fn = (totals[..., part].sum(-1) for part in (hit, extra, lost))
            if of == "f1":
                return _share(2 * tp, 2 * tp + fp + fn)
            return _share(tp, tp + (fp if of == "precision" else fn))

        return Measure(value)

    measures = {"entity_f1": score("f1"), "precision": score("precision"), "recall": score("recall")}
    entities = sorted({name.partition(":")[2] for name in counted if name[2] == ":"})
    measures |= {f"entity_f1_{entity}": score("f1", entity=entity) for entity in entities}
    subsets = sorted({name[2:].partition(":")[0] for name in counted if name[2] == "@"})
    measures |= {f"entity_f1_{subset[1:]}": score("f1", subset) for subset in subsets}
    measures["accuracy"] = Measure(lambda totals: _share(totals[..., -2], totals[..., -1]))
    return Family("entity_f1", group_sums(features_NF, group_N), measures)


def _means(records: Sequence[DocumentRecord], names: Sequence[str], group_N: Ints, primary: str) -> Family:
    """Means over documents of ``correct`` (accuracy) and of every count; by turn and dialogue where there are any."""
    averaged = [name for name in names if name != "turn"]
    correct_N = np.array([float(record.correct) for record in records])
    features = [np.ones(len(records)), correct_N]
    features += [np.array([record.counts.get(name, 0.0) for record in records]) for name in averaged]
    measures = {"accuracy": _mean_of(1, 0)} | {name: _mean_of(2 + i, 0) for i, name in enumerate(averaged)}
    if "turn" not in names:
        return Family(primary, group_sums(np.stack(features, axis=1), group_N), measures)
    turn_N = np.array([min(int(record.counts.get("turn", 1)), MAX_TURN) for record in records])
    for turn in range(1, int(turn_N.max()) + 1):
        measures[f"accuracy_turn_{turn}"] = _mean_of(len(features) + 1, len(features))
        features += [(turn_N == turn).astype(np.float64), correct_N * (turn_N == turn)]
    measures["dialogue_accuracy"] = _mean_of(len(features) + 1, len(features))
    features += _dialogues(records)
    return Family(primary, group_sums(np.stack(features, axis=1), group_N), measures)


def _chat(records: Sequence[DocumentRecord], names: Sequence[str], group_N: Ints) -> Family:
    """Conversations and texts: perplexities, and ratios of whatever else their records count.

    A conversation weighs as much as it has tokens; perplexities are exact over all of them, not means. A ratio to a
    count of which there is none, such as the numbers of answers without numbers, is no score.
    """
    column = {name: number for number, name in enumerate(names)}
    features_NF = np.array([[record.counts.get(name, 0.0) for name in names] for record in records])

    def ratio(top: str, bottom: str) -> Measure:
        return Measure(lambda totals: _share(totals[..., column[top]], totals[..., column[bottom]]))

    def perplexity(unit: str) -> Measure:
        mean_nats = ratio("nats", unit).score
        return Measure(lambda totals: np.asarray(np.exp(mean_nats(totals))), (1.0, math.inf))

    counted = {name for name, number in column.items() if features_NF[:, number].any()}
    measures = {
        name: ratio(top, bottom) for name, (top, bottom) in _CHAT_RATIOS.items() if top in column and bottom in counted
    }
    if "nats" in column:
        measures |= {"perplexity": perplexity("tokens"), "byte_perplexity": perplexity("bytes")}
    primary = next((name for name in _CHAT_PRIMARY if name in measures), None)
    if primary is None:
        raise DataError(
            f"None of the {len(records)} documents of {records[0].task} fits the model.", "Raise training.max_length."
        )
    return Family(primary, group_sums(features_NF, group_N), measures)


def _dialogues(records: Sequence[DocumentRecord]) -> list[Floats]:
    """One at the first turn of each dialogue, and one there if all of its turns are right.

    A group may hold several dialogues, such as those about one page.
    """
    first: dict[str, int] = {}
    is_whole: dict[str, bool] = {}
    for number, record in enumerate(records):
        name = record.dialogue or record.group
        first.setdefault(name, number)
        is_whole[name] = is_whole.get(name, True) and record.correct
    counted_N, whole_N = np.zeros(len(records)), np.zeros(len(records))
    for name, number in first.items():
        counted_N[number], whole_N[number] = 1.0, float(is_whole[name])
    return [counted_N, whole_N]


def _mean_of(feature: int, count: int) -> Measure:
    return Measure(lambda totals: _share(totals[..., feature], totals[..., count]))


def _share(numerator: Floats, denominator: Floats) -> Floats:
    """Division that gives 0 where the denominator is 0."""
    top, bottom = np.broadcast_arrays(np.asarray(numerator, np.float64), np.asarray(denominator, np.float64))
    return np.asarray(np.divide(top, bottom, out=np.zeros(top.shape), where=bottom != 0))
