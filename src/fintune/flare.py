"""``FLAREEvaluator``: one model measured on the FLARE benchmark, data set by data set or all at once.

Enters: a model, or a run or adapter with its base. Leaves: plain dictionaries of scores with the full results beside.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fintune.api import evaluate
from fintune.schema.errors import DataError
from fintune.schema.results import EvaluationResults, Protocol, TaskResult

QA = {"finqa": "finqa", "convfinqa": "convfinqa"}
SENTIMENT = {"fpb": "fpb", "financialphrasebank": "fpb", "phrasebank": "fpb", "fiqasa": "fiqa_sa", "fiqa": "fiqa_sa"}
ENTITIES = {"ner": "ner", "flarener": "ner"}
MOVEMENT = {
    **dict.fromkeys(("acl", "acl18", "stocknet"), "acl18"),
    **dict.fromkeys(("bigdata", "bigdata22"), "bigdata22"),
    **dict.fromkeys(("cikm", "cikm18"), "cikm18"),
}
HEADLINES = {"headlines": "headlines", "headline": "headlines"}
_ONE_F1 = ("avg_f1", "entity_f1", "weighted_f1")


class FLAREEvaluator:
    """Measures one model on FLARE's data sets, under FLARE's prompts and in its divisions.

    Labels are ranked for our rules and written for FLARE's (``decoding="both"``), unless ``decoding`` says otherwise.

    Args:
        model_path: alias, hub id, folder or .gguf file of a model; or a run directory or adapter folder.
        adapter: adapter or run directory to measure on ``model_path``.
        output_dir: where each data set's records and report go, a folder for each; nothing is written when None.
        limit: at most this many documents a data set.
        prompt: named prompt; FLARE's own when None, or the one the adapter was trained with.
        protocol: how answers are read in the scores on top: robust, or flare_strict for the reference's own rules.
        options: anything else that ``fintune.evaluate`` takes, such as shots or decoding.
    """

    def __init__(
        self,
        model_path: str | Path,
        adapter: str | Path | None = None,
        output_dir: str | Path | None = None,
        *,
        limit: int | None = None,
        prompt: str | None = None,
        protocol: Protocol = "robust",
        **options: Any,
    ) -> None:
        self.model_path = model_path
        self.adapter = adapter
        self.output_dir = Path(output_dir) if output_dir is not None else None
        self.protocol = protocol
        self._options = {"limit": limit, "prompt": prompt, **options}

    def evaluate_qa(self, test_data: str = "FinQA") -> dict[str, Any]:
        """FinQA or ConvFinQA; ``accuracy`` counts right numbers."""
        return self._measure(test_data, QA)

    def evaluate_sentiment(self, test_data: str = "FPB") -> dict[str, Any]:
        """FPB or FiQA-SA; ``f1`` is weighted by class, as FLARE's is."""
        return self._measure(test_data, SENTIMENT)

    def evaluate_ner(self, test_data: str = "FLARE-NER") -> dict[str, Any]:
        """FLARE-NER; ``f1`` counts whole entities."""
        return self._measure(test_data, ENTITIES)

    def evaluate_stock_movement(self, test_data: str = "ACL") -> dict[str, Any]:
        """ACL, BigData or CIKM; quote ``accuracy`` with ``mcc``, which is 0 for answers that know nothing."""
        return self._measure(test_data, MOVEMENT)

    def evaluate_headlines(self, test_data: str = "Headlines") -> dict[str, Any]:
        """Headlines; ``f1`` is the mean over its questions."""
        return self._measure(test_data, HEADLINES)

    def evaluate_all(self) -> dict[str, Any]:
        """All of FLARE in one go: scores by task, what was left out and why, and the results as a whole."""
        results = self._evaluate(("flare",), self.output_dir)
        tasks = dict.fromkeys(result.task for result in results.results)
        left_out = {
            key.partition(": ")[2]: why for key, why in results.counts.items() if key.startswith("not measured: ")
        }
        return {**{task: self._scores(results, task) for task in tasks}, "not_measured": left_out, "results": results}

    def _measure(self, test_data: str, names: Mapping[str, str]) -> dict[str, Any]:
        task = task_named(test_data, names)
        place = self.output_dir / task if self.output_dir is not None else None
        results = self._evaluate((f"flare/{task}",), place)
        return {**self._scores(results, task), "results": results}

    def _evaluate(self, tasks: Sequence[str], place: Path | None) -> EvaluationResults:
        return evaluate(self.model_path, adapter=self.adapter, tasks=tasks, output_dir=place, **self._options)

    def _scores(self, results: EvaluationResults, task: str) -> dict[str, Any]:
        system = "tuned" if results.find(task, "tuned") is not None else "base"
        result = results.find(task, system, self.protocol) or results.find(task, system)
        assert result is not None, "every measured task has a result of the model"
        return {"task": task, "system": system, "protocol": result.protocol, "n": result.n, **scores_of(result)}


def scores_of(result: TaskResult) -> dict[str, float]:
    """The scores by name; ``f1`` is the one FLARE quotes, where the task has any, and ``missing`` unread answers."""
    scores = {name: estimate.value for name, estimate in result.metrics.items()}
    f1 = next((scores[name] for name in _ONE_F1 if name in scores), None)
    return {**scores, **({} if f1 is None else {"f1": f1}), "missing": result.missing_rate}


def task_named(test_data: str, names: Mapping[str, str]) -> str:
    """The task that a name of FLARE's papers stands for, however it is written.

    Raises:
        DataError: none of ``names`` is meant.
    """
    key = re.sub(r"[^a-z0-9]", "", test_data.lower())
    if key not in names:
        nearest = difflib.get_close_matches(key, names, n=1)
        hint = f"Did you mean {nearest[0]}? " if nearest else ""
        known = ", ".join(dict.fromkeys(names.values()))
        raise DataError(f"There is no test data named {test_data!r} here.", f"{hint}Choose from {known}.")
    return names[key]
