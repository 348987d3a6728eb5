"""``Predictor``: a trained run that labels bare texts under the prompt it was trained with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fintune.evaluation.scoring import Scorer
from fintune.inference.forward import EdgeModel, choose_backend, supported_packing
from fintune.inference.likelihood import softmax
from fintune.models.adapter_files import load_adapter, read_adapter_info
from fintune.models.load import load_base
from fintune.schema.errors import DataError, RunError
from fintune.schema.loading import load_recipe
from fintune.schema.recipe import ModelSection, Recipe, TaskSection
from fintune.schema.run_directory import RunDirectory
from fintune.tasks.registry import get_task
from fintune.trees.chat import ChatFormat


@dataclass(frozen=True)
class Prediction:
    """The label of one text, with the probability of every label."""

    text: str
    label: str
    probabilities: dict[str, float]


@dataclass(frozen=True)
class Predictor:
    """A model ready to label texts.

    Attributes:
        scorer: model, template and limits.
        tasks: the tasks it was trained on, with their prompts; the first is the default.
    """

    scorer: Scorer
    tasks: tuple[TaskSection, ...]

    def predict(
        self, texts: Sequence[str], *, task: str | None = None, on_batch: Callable[[int], None] | None = None
    ) -> list[Prediction]:
        """Labels texts in order.

        Args:
            texts: the documents.
            task: registered task whose prompt and labels to use; the first trained one when None.
            on_batch: called with the number of scored choices after each batch.

        Raises:
            DataError: a text is not a string, is empty, or does not fit the model with its instruction.
        """
        if isinstance(texts, str):
            raise DataError("predict takes a list of texts, not one text.", "Write predict([text]).")
        for number, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise DataError(f"Text {number} is empty or not a string.", "Remove it or fill it in.")
        section = self._section(task)
        examples = [
            get_task(section.name).prompt_for(text, section.prompt, example_id=f"text-{number}")
            for number, text in enumerate(texts)
        ]
        encoded, scores = self.scorer.log_likelihoods(examples, on_batch)
        if encoded.dropped:
            missing = next(i for i in range(len(texts)) if i not in set(encoded.kept))
            raise DataError(f"Text {missing} does not fit the model with its prompt.", "Raise training.max_length.")
        return [
            Prediction(text, example.choices[int(score.argmax())], _by_label(example.choices, softmax(score).tolist()))
            for text, example, score in zip(texts, examples, scores, strict=True)
        ]

    def _section(self, task: str | None) -> TaskSection:
        if task is None:
            return self.tasks[0]
        known = next((section for section in self.tasks if section.name == task), None)
        return known or TaskSection(name=get_task(task).name)


def _by_label(choices: Sequence[str], probabilities: Sequence[float]) -> dict[str, float]:
    return {choice: float(p) for choice, p in zip(choices, probabilities, strict=True)}


def load_predictor(
    path: str | Path, *, device: torch.device, quantization: str | None = None, default_task: str = "tfns"
) -> Predictor:
    """Loads a run directory, an adapter folder (alone or inside its run), or a base model.

    Args:
        path: what to load.
        device: where the model goes.
        quantization: none, nf4 or int8; the recipe's own when None.
        default_task: task whose prompt a bare base model or a foreign adapter is asked with.
    """
    folder = Path(path)
    recipe = _recipe_of(folder)
    adapter = next((place for place in (RunDirectory(folder).adapter, folder) if _is_adapter(place)), None)
    if adapter is None and RunDirectory(folder).checkpoints.is_dir():
        raise RunError(f"The run {folder} is not trained to its end.", "Finish it with `fintune train` first.")
    if recipe is not None:
        section, tasks, training = recipe.model, recipe.data.tasks, recipe.training
        max_length, packing = training.max_length, training.packing
    else:
        base = read_adapter_info(adapter).base if adapter else str(path)
        section, tasks = ModelSection(base=base), (TaskSection(name=default_task),)
        max_length, packing = 2048, "tree"
    if quantization is not None:
        section = ModelSection.model_validate({**section.model_dump(), "quantization": quantization})
    loaded = load_base(section, device=device, for_training=False)
    model = load_adapter(loaded, adapter) if adapter else loaded.model
    edge_model = EdgeModel(model, choose_backend(section.attention, device), loaded.dtype)
    packing, _ = supported_packing(loaded.model.config, packing)
    tokens_per_batch = recipe.evaluation.tokens_per_batch if recipe else 4096
    return Predictor(Scorer(edge_model, ChatFormat(loaded.tokenizer, max_length), tokens_per_batch, packing), tasks)


def _recipe_of(folder: Path) -> Recipe | None:
    recipe = RunDirectory(folder).recipe  # a run and its adapter folder both hold one
    return load_recipe(recipe) if recipe.is_file() else None


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file() or (folder / "fintune_base.json").is_file()
