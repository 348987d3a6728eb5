"""``CurriculumTrainer``: the two stages of the FLARE curriculum, called one by one.

Enters: a base model, a folder and names of data sets. Leaves: two runs, ``stage1`` and ``stage2``, the second of which
goes on from the first. In one command, with any number of stages: ``fintune train flare-curriculum``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fintune.api import train
from fintune.flare import ENTITIES, MOVEMENT, QA, SENTIMENT, task_named
from fintune.schema.errors import RunError
from fintune.schema.loading import load_recipe
from fintune.schema.outcomes import TrainingOutcome
from fintune.schema.run_directory import RunDirectory


class CurriculumTrainer:
    """Trains complex tasks first and simple ones after them, with the numbers of the two-stage paper.

    All that is not named here is as in the recipes ``flare-stage1`` and ``flare-stage2``.

    Args:
        model_name: alias, hub id, folder or .gguf file of the base; the recipes' Llama-3.1-8B-Instruct when None.
        output_dir: gets the run directories ``stage1`` and ``stage2``.
        overrides: ``key.sub=value`` strings for both stages, such as ``model.quantization=none``.
        progress: show progress on standard error.
    """

    def __init__(
        self,
        model_name: str | Path | None = None,
        output_dir: str | Path = "runs/flare-curriculum",
        *,
        overrides: Sequence[str] = (),
        progress: bool = True,
    ) -> None:
        self.model_name = model_name
        self.output_dir = Path(output_dir)
        self.overrides = tuple(overrides)
        self.progress = progress

    def train_stage1(
        self,
        qa_datasets: Sequence[str] = ("FinQA", "ConvFinQA"),
        smp_datasets: Sequence[str] = ("CIKM", "ACL", "BigData"),
        epochs: float = 2,
        learning_rate: float = 2e-4,
    ) -> TrainingOutcome:
        """Questions over report pages and stock movement; goes on where an earlier start was stopped."""
        tasks = [task_named(name, QA) for name in qa_datasets] + [task_named(name, MOVEMENT) for name in smp_datasets]
        return self._train("stage1", tasks, epochs, learning_rate, {})

    def train_stage2(
        self,
        sentiment_datasets: Sequence[str] = ("FPB", "FiQA-SA"),
        ner_datasets: Sequence[str] = ("FLARE-NER",),
        epochs: float = 3,
        learning_rate: float = 2e-4,
    ) -> TrainingOutcome:
        """Sentiment and entities, from the adapter of stage 1, padded to the larger rank and all layers.

        Raises:
            RunError: stage 1 is not trained.
        """
        first = RunDirectory(self.output_dir / "stage1")
        if not first.adapter.is_dir():
            raise RunError(f"{first.path} holds no trained adapter.", "Call train_stage1 first.")
        tasks = [task_named(name, SENTIMENT) for name in sentiment_datasets]
        tasks += [task_named(name, ENTITIES) for name in ner_datasets]
        return self._train("stage2", tasks, epochs, learning_rate, {"init_adapter": str(first.path)})

    def _train(
        self, stage: str, tasks: Sequence[str], epochs: float, learning_rate: float, start: Mapping[str, Any]
    ) -> TrainingOutcome:
        tree = load_recipe(f"flare-{stage}").model_dump()
        known = {section["name"]: section for section in tree["data"]["tasks"]}
        tree["data"]["tasks"] = [known.get(name, {"name": name, "prompt": "flare"}) for name in tasks]
        tree["training"] |= {"epochs": epochs, "learning_rate": learning_rate}
        tree["adapter"] |= start
        if self.model_name is not None:
            tree["model"]["base"] = str(self.model_name)
        place = self.output_dir / stage
        return train(tree, overrides=self.overrides, output_dir=place, progress=self.progress)
