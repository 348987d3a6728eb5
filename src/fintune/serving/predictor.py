"""``Predictor``: a trained run that labels bare texts, frames and files under its own prompt, and answers in words."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fintune.evaluation.confidence import abstention_threshold
from fintune.evaluation.scoring import Scorer, scoring_budget
from fintune.inference.forward import EdgeModel, choose_backend, supported_packing
from fintune.inference.likelihood import softmax
from fintune.metrics.abstention import Abstention
from fintune.models.adapter_files import load_adapter, read_adapter_info
from fintune.models.bf16_linear import multiply_in_bf16, require_bf16_products
from fintune.models.load import load_base
from fintune.models.named import held_as
from fintune.models.window import readable_length
from fintune.schema.adapter_records import adapter_place
from fintune.schema.errors import AdapterError, DataError, ModelError, RunError
from fintune.schema.example import Example, Message
from fintune.schema.loading import load_recipe
from fintune.schema.recipe import ModelSection, Recipe, TaskSection
from fintune.schema.run_directory import RunDirectory
from fintune.serving.answers import Prediction, Question
from fintune.serving.files import FileOutcome, label_file, label_frame
from fintune.serving.identity import identity_of
from fintune.serving.writing import WritingOptions, write_together
from fintune.sources.text import without_lone_surrogates
from fintune.tasks.classification import ClassificationTask
from fintune.tasks.registry import get_task, task_of
from fintune.trees.chat import ChatFormat, EncodedSet

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["OnBatch", "Prediction", "Predictor", "load_predictor"]

log = logging.getLogger(__name__)
OnBatch = Callable[[int], None]
# Weights times rows of a part, then its least and most rows: about 20 s on two cores.
_CPU_PART = (2 * 10**10, 16, 1024)
_GPU_PART_ROWS = 1024  # a second at most, so that the next part is read meanwhile, and processes share out short files
DROPPED = "The prompt is too long: its oldest %d tokens were left out, and the newest are read, %d with the template."


@dataclass(frozen=True)
class ReadQuestions:
    """Texts under a task's prompt, tokenised.

    Attributes:
        texts: as they came.
        examples: with prompt and choices, one for each text.
        encoded: as tokens, those that fit the model.
    """

    texts: Sequence[str]
    examples: list[Example]
    encoded: EncodedSet


@dataclass(frozen=True)
class Predictor:
    """A model ready to label texts.

    Attributes:
        scorer: model, template and limits.
        tasks: the tasks it was trained on, with their prompts; the first is the default.
        adapter: folder of the adapter; None for a bare base model.
        identity: what decides its answers (``identity_of``), the same wherever the files lie.
        using: makes the model answer with this adapter while it is entered.
        beside: further adapters on the same base, by the name ``adapter`` takes.
        template: where the chat template comes from (``LoadFacts``): ``none`` where there is none, so that nothing can
            be labelled; ``text`` where there is only ``plain`` and the model was trained on documents alone.
    """

    scorer: Scorer
    tasks: tuple[TaskSection, ...]
    adapter: Path | None = None
    identity: str = ""
    using: Callable[[], AbstractContextManager[Any]] = nullcontext
    beside: Mapping[str, Predictor] = field(default_factory=dict)
    template: str = "own"

    def on(self, adapter: str | None) -> Predictor:
        """The predictor of another adapter on the same base; this one when None.

        Raises:
            AdapterError: no adapter was loaded under that name.
        """
        if adapter is None:
            return self
        if adapter not in self.beside:
            near = get_close_matches(adapter, self.beside, n=3) or list(self.beside)
            hint = f"Choose {' or '.join(near)}." if near else "Name adapters in load(base, adapters=[...])."
            raise AdapterError(f"No adapter was loaded under the name {adapter}.", hint)
        return self.beside[adapter]

    def predict(
        self,
        texts: Sequence[str],
        *,
        task: str | None = None,
        abstain: float | None = None,
        on_batch: OnBatch | None = None,
        adapter: str | None = None,
    ) -> list[Prediction]:
        """Labels texts in order.

        Args:
            texts: the documents.
            task: task whose prompt and labels to use; the first trained one when None.
            abstain: accuracy that the answers should have; the others are marked ``abstained``.
            on_batch: called with the number of scored choices after each batch.
            adapter: one of several that were loaded together; the base alone when None, where there are several.

        Raises:
            DataError: a text is not a string, is empty, or does not fit the model with its instruction; or no
                threshold reaches the accuracy on the validation rows.
        """
        if adapter is not None:
            return self.on(adapter).predict(texts, task=task, abstain=abstain, on_batch=on_batch)
        if isinstance(texts, str):
            raise DataError("predict takes a list of texts, not one text.", "Write predict([text]).")
        for number, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise DataError(f"Text {number} is empty or not a string.", "Remove it or fill it in.")
        found = self.answer(texts, task=task, threshold=self._threshold(task, abstain), on_batch=on_batch)
        if None in found:
            raise DataError(
                f"Text {found.index(None)} does not fit the model with its prompt.", "Raise training.max_length."
            )
        return [prediction for prediction in found if prediction is not None]

    def write(self, prompt: str, options: WritingOptions | None = None, *, adapter: str | None = None) -> str:
        """Answers a prompt in free words; ``fintune.answer`` is this with its options by name.

        Args:
            prompt: the user's words; for a model without a chat template, the text to go on with.
            options: lengths and sampling.
            adapter: as in ``predict``.

        Raises:
            DataError: the prompt is empty, or an option is out of range.
            ModelError: the answer does not fit the model beside a prompt.
        """
        if adapter is not None:
            return self.on(adapter).write(prompt, options)
        options = options or WritingOptions()
        asked = options.ask(self, [Message("user", prompt)])
        if asked.dropped:
            log.warning(DROPPED, asked.dropped, len(asked.tokens))
        return write_together(self, [asked], options)[0].text

    def predict_frame(
        self,
        frame: pd.DataFrame,
        text: str,
        *,
        task: str | None = None,
        abstain: float | None = None,
        adapter: str | None = None,
    ) -> pd.DataFrame:
        """A copy of ``frame`` with the columns prediction, confidence, a probability for each label, and a note.

        Rows without text, or whose text does not fit, keep empty cells and a note that says so.

        Args:
            frame: rows to label.
            text: column with the text.
            task: as in ``predict``.
            abstain: as in ``predict``; adds the column abstained.
            adapter: as in ``predict``.

        Raises:
            DataError: this is no frame, it has no rows, its column names are not distinct texts, or ``text`` is not
                among them.
        """
        asked = self.on(adapter)
        return label_frame(Question(asked, task, asked._threshold(task, abstain)), frame, text)

    def predict_file(
        self,
        source: str | Path,
        text: str,
        output: str | Path,
        *,
        task: str | None = None,
        abstain: float | None = None,
        adapter: str | None = None,
        progress: bool = False,
        **reading: str | None,
    ) -> FileOutcome:
        """Labels the rows of a file of any size into another file; a run that was stopped goes on where it was.

        Args:
            source: CSV, JSONL, Parquet or Excel file.
            text: column with the text.
            output: .csv, .jsonl or .parquet file that is written.
            task: as in ``predict``.
            abstain: as in ``predict``; adds the column abstained.
            adapter: as in ``predict``.
            progress: show progress on standard error.
            reading: delimiter, encoding or sheet, where detection fails.

        Raises:
            DataError: the file cannot be read, lacks the column, or ``output`` exists already.
        """
        asked = self.on(adapter)
        question = Question(asked, task, asked._threshold(task, abstain))
        return label_file(question, Path(source), text, Path(output), progress=progress, reading=reading)

    def abstention(self, target_accuracy: float, *, task: str | None = None) -> Abstention:
        """The threshold that reaches an accuracy on the validation rows of the run, with what it does there."""
        if self.adapter is None:
            raise DataError("A base model has no validation answers.", "Give a trained run to abstain with.")
        return abstention_threshold(self.adapter, self.section(task).name, target_accuracy)

    def answer(
        self,
        texts: Sequence[str],
        *,
        task: str | None = None,
        threshold: float | None = None,
        on_batch: OnBatch | None = None,
    ) -> list[Prediction | None]:
        """Labels texts that are not empty; None for those that do not fit the model."""
        return self.label_read(self.read(texts, task), threshold, on_batch)

    def read(self, texts: Sequence[str], task: str | None = None) -> ReadQuestions:
        """The first step of ``answer``, which needs no device: prompts and their tokens."""
        if self.template == "none":
            raise ModelError(
                "This model's tokenizer has no chat template to ask for labels with.",
                "Train it on the task with model.chat_template=plain, or let it write with `fintune generate`.",
            )
        examples = self.questions(texts, task)
        return ReadQuestions(texts, examples, self.scorer.encoded(examples))

    def label_read(
        self, read: ReadQuestions, threshold: float | None = None, on_batch: OnBatch | None = None
    ) -> list[Prediction | None]:
        """The second step: labels, by likelihood."""
        with self.using():
            scores = self.scorer.scores(read.encoded, on_batch)
        found: list[Prediction | None] = [None] * len(read.texts)
        for position, sample, score in zip(read.encoded.kept, read.encoded.encoded, scores, strict=True):
            by_label = dict(zip(read.examples[position].choices, map(float, softmax(score)), strict=True))
            label = max(by_label, key=lambda name: by_label[name])
            abstained = threshold is not None and by_label[label] < threshold
            found[position] = Prediction(read.texts[position], label, by_label, abstained, sample.truncated)
        return found

    def questions(self, texts: Sequence[str], task: str | None = None) -> list[Example]:
        """The texts under a task's prompt, with its labels as choices."""
        section = self.section(task)
        asked = self._task(section)
        return [
            asked.prompt_for(without_lone_surrogates(text), section.prompt, example_id=f"text-{i}")
            for i, text in enumerate(texts)
        ]

    def choices(self, task: str | None = None) -> tuple[str, ...]:
        """The labels of a task as its prompt names them."""
        section = self.section(task)
        return self._task(section).prompt_for("x", section.prompt).choices

    def section(self, task: str | None) -> TaskSection:
        """The trained task of that name, or a registered one under its default prompt."""
        if task is None:
            return self.tasks[0]
        known = next((section for section in self.tasks if section.name == task), None)
        return known or TaskSection(name=get_task(task).name)

    def fingerprint(self, task: str | None) -> dict[str, str]:
        """What the answers depend on: the weights, and the prompt with its limit."""
        asked = f"{self.section(task).model_dump_json()}{self.scorer.chat.max_length}"
        return {"model": self.identity, "task": hashlib.sha256(asked.encode()).hexdigest()}

    @property
    def rows_a_part(self) -> int:
        """A power of two that takes some seconds, so that little is lost by a stop, and keeps the device busy."""
        if self.scorer.model.device.type != "cpu":
            return _GPU_PART_ROWS
        weights: int = sum(weight.numel() for weight in self.scorer.model.model.parameters())
        work, least, most = _CPU_PART
        fitting: int = 1 << (work // max(weights, 1)).bit_length()
        return min(most, max(least, fitting))

    def _task(self, section: TaskSection) -> ClassificationTask:
        if section.name not in self._tasks_by_name:
            task = task_of(section)
            if not isinstance(task, ClassificationTask):
                raise DataError(
                    f"The task {section.name} has no labels to predict: its answers are free text.",
                    "Name a task with labels, or measure this one with `fintune evaluate`.",
                )
            self._tasks_by_name[section.name] = task
        return self._tasks_by_name[section.name]

    @cached_property
    def _tasks_by_name(self) -> dict[str, ClassificationTask]:
        return {}

    def _threshold(self, task: str | None, abstain: float | None) -> float | None:
        return None if abstain is None else self.abstention(abstain, task=task).threshold


def load_predictor(
    path: str | Path,
    *,
    device: torch.device,
    quantization: str | None = None,
    bf16_products: bool = False,
    merge: bool = False,
    default_task: str = "tfns",
    needs_template: bool = True,
) -> Predictor:
    """Loads a run directory, an adapter folder (alone or inside its run), a named adapter, or a base model.

    Args:
        path: what to load.
        device: where the model goes.
        quantization: none, nf4, int8 or fp8; the recipe's own when None.
        bf16_products: multiply in bf16 under fp32 activations, on a CPU that has the instructions: faster, and answers
            between nearly equal labels may change.
        merge: on a CPU in fp32, add a LoRA adapter to the weights, with which it answers the same up to rounding
            and faster; the base is then no longer to be had without it. Always with ``bf16_products``.
        default_task: task whose prompt a bare base model or a foreign adapter is asked with.
        needs_template: whether a tokenizer without a chat template is an error; without one, texts can be written but
            not labelled.
    """
    folder = adapter_place(path)
    run = RunDirectory(folder)
    adapter = next((place for place in (run.adapter, folder) if is_adapter(place)), None)
    recipe = (recipe_of(adapter) if adapter else None) or recipe_of(folder)  # the adapter's names its own base
    if adapter is None and (run.checkpoints.is_dir() or run.stages.is_file()):
        raise RunError(f"The run {folder} is not trained to its end.", "Finish it with `fintune train` first.")
    info = read_adapter_info(adapter) if adapter else None
    if recipe is not None:
        section, tasks, training = recipe.model, recipe.data.tasks, recipe.training
        max_length, packing = training.max_length, training.packing
    else:
        section, tasks = ModelSection(base=info.base if info else str(path)), (TaskSection(name=default_task),)
        max_length, packing = 2048, "tree"
    section = held_as(section, quantization)
    loaded = load_base(section, device=device, for_training=False, needs_template=needs_template)
    if bf16_products:
        require_bf16_products(device, loaded.dtype, loaded.quantization)
    model: Any = load_adapter(loaded, adapter) if adapter else loaded.model
    merge = (merge or bf16_products) and is_mergeable(model, device, loaded.dtype, loaded.quantization)
    if merge:
        model = model.merge_and_unload()
    if bf16_products:
        multiply_in_bf16(model)
    edge_model = EdgeModel(model, choose_backend(section.attention, device, model.config), loaded.dtype)
    packing, _ = supported_packing(loaded.model.config, packing)
    budget = recipe.evaluation.tokens_per_batch if recipe else None
    chat = ChatFormat(loaded.tokenizer, readable_length(loaded.model.config, max_length))
    scorer = Scorer(edge_model, chat, scoring_budget(budget, edge_model), packing)
    identity = identity_of(loaded, info, section, packing, budget, merged=merge, bf16_products=bf16_products)
    return Predictor(scorer, tasks, adapter, identity, template=template_of(recipe, loaded.facts.chat_template))


def is_mergeable(model: Any, device: torch.device, dtype: torch.dtype, quantization: str) -> bool:
    """Whether an adapter may be added to the weights with no more than a rounding of fp32."""
    configs = getattr(model, "peft_config", {}).values()
    exact = device.type == "cpu" and dtype == torch.float32 and quantization == "none"
    return exact and bool(configs) and all(config.peft_type == "LORA" for config in configs)


def template_of(recipe: Recipe | None, found: str) -> str:
    """``Predictor.template`` of a model trained by ``recipe``, with the template found where it was loaded."""
    sources = [section.conversations for section in recipe.data.tasks] if recipe is not None else []
    of_text = bool(sources) and all(source is not None and source.format == "text" for source in sources)
    return "text" if of_text and found == "plain" else found


def recipe_of(folder: Path) -> Recipe | None:
    """The recipe of a run or of an adapter folder."""
    recipe = RunDirectory(folder).recipe  # a run and its adapter folder both hold one
    if not recipe.is_file():
        return None
    # An adapter may come from anyone: whether code that ships with a base runs is not for its recipe to say.
    return load_recipe(recipe, ["model.trust_remote_code=false"])


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, or a wholly trained model."""
    return (folder / "adapter_config.json").is_file() or (folder / "fintune_base.json").is_file()
