"""A session: a base model in memory with the rows of a run, and what both of them decide.

Enters: a recipe. Leaves: ``Session``, which training and evaluation share: its recipe is pinned to what was loaded.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fintune.environment import library_version
from fintune.evaluation.baselines import run_baselines
from fintune.evaluation.calibrated import calibrated_records
from fintune.evaluation.comparing import score_systems, with_holm
from fintune.evaluation.records import split_protocols
from fintune.evaluation.resuming import CHUNK, ScoredFile, scored_records
from fintune.evaluation.scoring import Scorer, generation_batch, scoring_budget
from fintune.evaluation.suite import FIVE, RunData, load_run_data
from fintune.evaluation.timing import AnswerTimer
from fintune.inference.forward import EdgeModel, choose_backend, supported_packing
from fintune.inference.progress import tracking
from fintune.inference.vllm_engine import VllmModel, open_vllm, require_vllm
from fintune.models.load import LoadedBase, load_base
from fintune.models.locate import locate_base
from fintune.models.window import readable_length
from fintune.schema.example import Example
from fintune.schema.loading import load_recipe
from fintune.schema.processes import this_process
from fintune.schema.recipe import Packing, Recipe
from fintune.schema.results import Comparison, DocumentRecord, EvaluationResults, TaskResult, TimeCost
from fintune.schema.run_directory import RunDirectory
from fintune.tasks.base import LoadedTask, Task
from fintune.tasks.shots import with_shots
from fintune.training.identity import adapter_hash, hash_of
from fintune.training.ranks import Ranks
from fintune.trees.chat import ChatFormat

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
FIVE_SHOT, CALIBRATED = "base_5shot", "base_calibrated"
VLLM_MEMORY = 0.5  # share of the GPU's memory; the rest holds our own model, which ranks labels
BASE_VARIANTS = {"five_shot": FIVE_SHOT, "calibrated": CALIBRATED}


@dataclass
class Session:
    """A base model in memory, with all that depends on it and on the recipe."""

    recipe: Recipe
    data: RunData
    base: LoadedBase
    progress: bool
    shots_shown: dict[tuple[str, str], int] = field(default_factory=dict)
    vllm: tuple[Path | None, VllmModel] | None = None
    time_costs: list[TimeCost] = field(default_factory=list)

    @classmethod
    def open(
        cls,
        recipe: Recipe,
        *,
        training: bool,
        progress: bool,
        optional: Collection[str] = (),
        adapter: Recipe | None = None,
        ranks: Ranks | None = None,
    ) -> Session:
        """Loads the rows first, then the model: mistakes in the data show before anything slow happens.

        ``adapter`` is the recipe that a measured adapter was trained by. Of several ``ranks`` the first
        fills the caches.
        """
        if recipe.evaluation.engine == "vllm":
            require_vllm()
        names = {section.name for section in (*recipe.data.tasks, *(recipe.evaluation.tasks or ()))}
        ranks = ranks or Ranks()
        with ranks.first_goes_first(), tracking("reading rows", len(names), shown=progress) as tracker:
            data = load_run_data(
                recipe, training=training, optional=optional, on_loaded=tracker.advance, adapter=adapter
            )
        for line in data.summary():
            log.info(line)
        for line in (*data.findings(), *(f"{task} is not measured: {why}" for task, why in data.skipped.items())):
            log.warning(line)
        if any(why.startswith("No data for") for why in data.skipped.values()):
            log.warning("Set FINTUNE_DATA_DIR to the folder above the missing data, or name a task with its source.")
        if ranks.world > 1:
            if ranks.is_first:
                locate_base(data.recipe.model)  # fetches and converts
            ranks.wait()
        base = load_base(data.recipe.model, device=default_device(), for_training=True)
        pinned = data.recipe.model.model_copy(
            update={"revision": base.files.revision, "content_hash": base.files.content_hash}
        )
        return cls(data.recipe.model_copy(update={"model": pinned}), data, base, progress)

    def on_base_of(self, adapter: Path) -> Session:
        """The session on the base that an adapter was trained on, which is another one once adapters were merged."""
        trained = load_recipe(RunDirectory(adapter).recipe).model
        if trained.content_hash == self.base.files.content_hash:
            return self
        return self.on_base(load_base(trained, device=self.base.model.device, for_training=True))

    def on_base(self, base: LoadedBase) -> Session:
        """The same rows with another base of the same tokenizer."""
        update = {"base": str(base.files.path), "revision": None, "content_hash": base.files.content_hash}
        model = self.recipe.model.model_copy(update=update | {"quantization": base.quantization})
        return replace(self, base=base, recipe=self.recipe.model_copy(update={"model": model}))

    @cached_property
    def chat(self) -> ChatFormat:
        """Template and length limit."""
        wanted = self.recipe.training.max_length
        length = readable_length(self.base.model.config, wanted)
        if length < wanted:
            log.warning(
                "The model learned %d positions, so samples end there and not at training.max_length=%d.",
                length,
                wanted,
            )
        return ChatFormat(self.base.tokenizer, length)

    @cached_property
    def packing(self) -> Packing:
        """The recipe's packing, or what the architecture supports."""
        packing, reason = supported_packing(self.base.model.config, self.recipe.training.packing)
        if reason:
            log.warning("%s.", reason)
        return packing

    def edge_model(self, model: Any) -> EdgeModel:
        """The model with tree attention and the precision it computes in."""
        backend = choose_backend(self.recipe.model.attention, self.base.model.device, self.base.model.config)
        return EdgeModel(model, backend, compute_dtype=self.base.dtype)

    def scorer(self, model: EdgeModel) -> Scorer:
        """Scores documents with ``model`` under this recipe."""
        budget = scoring_budget(self.recipe.evaluation.tokens_per_batch, model)
        evaluation = self.recipe.evaluation
        return Scorer(model, self.chat, budget, self.packing, evaluation.decoding, evaluation.batch_size)

    def score(
        self, model: EdgeModel, system: str, *, folder: Path | None = None, adapter: Path | None = None
    ) -> list[DocumentRecord]:
        """Records of one system on all evaluated documents.

        Args:
            model: the model to ask.
            system: base, tuned, base_5shot or base_calibrated: how it is asked.
            folder: where records are kept as they are made; what is there from an earlier start is not asked again.
            adapter: folder of the adapter that ``model`` has, None for the base.
        """
        scorer = self.scorer(model)
        if self.recipe.evaluation.engine == "vllm":
            scorer = replace(scorer, open_vllm=partial(self._vllm, adapter))
        tuned_by = "" if adapter is None else adapter_hash(adapter)
        records: list[DocumentRecord] = []
        asked = [(loaded, documents) for loaded, documents in self.data.tested if self._applies(system, loaded.task)]
        with tracking(f"scoring {system}", sum(len(rows) for _, rows in asked), shown=self.progress) as tracker:
            for loaded, documents in asked:
                task = loaded.task
                timer = AnswerTimer()
                shown = replace(scorer, shots=self._shots(system, task), on_written=timer.wrote)
                ask = partial(calibrated_records if system == CALIBRATED else Scorer.records, shown, task)
                chunk = scorer.chunk(task, CHUNK)
                protocols = split_protocols(task, scorer.decoding)
                file = None
                if folder is not None:
                    known = self._fingerprint(system, tuned_by, loaded, shown.shots, documents, chunk)
                    file = ScoredFile(folder, system, task.name, known)
                records += scored_records(
                    timer.watched(partial(ask, system=system, on_batch=tracker.advance)),
                    task,
                    documents,
                    chunk=chunk,
                    n_records=1 if system == CALIBRATED else sum(map(len, protocols)),
                    file=file,
                    on_restored=tracker.advance,
                )
                is_written = system != CALIBRATED and not protocols[0]
                if timer.n:
                    self.time_costs.append(timer.cost(system, task.name, is_written=is_written))
        shortened, unfit = _lost(records)
        if shortened or unfit:
            log.warning(
                "%s: %d documents were shortened to fit the model, %d do not fit and count as missing.",
                system, shortened, unfit,
            )  # fmt: skip
        return records

    def _vllm(self, adapter: Path | None) -> VllmModel:
        """VLLM with the base and one adapter or none; memory is for one of them at a time."""
        if self.vllm is None or self.vllm[0] != adapter:
            self.vllm = None
            gc.collect()
            device, dtype = self.base.model.device, str(self.base.dtype).removeprefix("torch.")
            opened = open_vllm(
                self.base.files.path,
                adapter=adapter,
                batch_size=generation_batch(self.recipe.evaluation.batch_size, device),
                dtype=dtype,
                max_model_len=self.chat.max_length,
                gpu_memory_utilization=VLLM_MEMORY,
            )
            self.vllm = (adapter, opened)
        return self.vllm[1]

    def score_base(self, *, folder: Path | None = None, always: bool = False) -> list[DocumentRecord]:
        """Records of the untuned base, asked in every way the recipe wants; ``always`` includes the plain one."""
        evaluation = self.recipe.evaluation
        systems = ["base"] if evaluation.base or always else []
        systems += [BASE_VARIANTS[name] for name in evaluation.base_variants]
        if not systems:
            return []
        model = self.edge_model(self.base.model)
        return [record for system in systems for record in self.score(model, system, folder=folder)]

    def score_classical(self, *, folder: Path | None = None) -> list[DocumentRecord]:
        """Records of the classical baselines, which learn from the training rows of each task by itself.

        Args:
            folder: where records are kept. Those of the same rows and documents are not made again: learning from all
                rows of a large task takes minutes.
        """
        names, seed = self.recipe.evaluation.baselines, self.recipe.seed
        records: list[DocumentRecord] = []
        total = len(names) * len(self.data.tested)
        with tracking("scoring baselines", total, shown=self.progress and bool(names)) as tracker:
            for loaded, documents in self.data.tested:
                task = loaded.task
                rows = [example for example in self.data.train if example.task == task.name]
                known = _classical_inputs(loaded, rows, documents, seed) if folder is not None and names else []
                for name in names:
                    file = None if folder is None else ScoredFile(folder, name, task.name, hash_of([name, known]))
                    found = file.kept([example.example_id for example in documents]) if file is not None else []
                    if not found:
                        found = run_baselines((name,), rows, documents, task, seed).get(name, [])
                        if file is not None and found:
                            file.begin()
                            file.append(found)
                    records += found
                    tracker.advance(1)
        return records

    def _applies(self, system: str, task: Task) -> bool:
        if system == CALIBRATED and (self.recipe.evaluation.decoding == "free" or not task.choices):
            log.info("%s: %s is answered by writing, which is not calibrated.", system, task.name)
            return False
        if system == FIVE_SHOT and not self._shots(system, task):
            log.warning("%s: %s has no training rows to show, or none that fits; left out.", system, task.name)
            return False
        return True

    def _shots(self, system: str, task: Task) -> tuple[Example, ...]:
        """The solved examples shown before each document: at most half of the model's length goes to them."""
        wanted = FIVE if system == FIVE_SHOT else self.recipe.evaluation.shots
        drawn = self.data.shots.get(task.name, ())[:wanted]
        room = self.recipe.training.max_length // 2
        while drawn and self._length_of(drawn) > room:
            drawn = drawn[:-1]
        if wanted and (system, task.name) not in self.shots_shown:
            self.shots_shown[system, task.name] = len(drawn)
            if len(drawn) < wanted:
                log.warning(
                    "%s: %d of %d solved examples are shown on %s; more have to be in its training rows, and fit into "
                    "half of training.max_length.",
                    system, len(drawn), wanted, task.name,
                )  # fmt: skip
        return drawn

    def _length_of(self, shots: Sequence[Example]) -> int:
        return len(self.chat.prompt(with_shots(shots[0], shots).messages)) - len(self.chat.prompt(shots[0].messages))

    def _fingerprint(
        self,
        system: str,
        adapter: str,
        loaded: LoadedTask,
        shots: Sequence[Example],
        documents: Sequence[Example],
        chunk: int,
    ) -> str:
        """What the records of one system on one task depend on."""
        task, model, evaluation = loaded.task, self.recipe.model, self.recipe.evaluation
        asked, shown = ([_as_asked(example) for example in rows] for rows in (documents, shots))
        rules = [loaded.content_hash, task.version, task.protocols, task.max_answer_tokens, task.stop_strings]
        sizes = [evaluation.tokens_per_batch, evaluation.batch_size, chunk]
        how = [evaluation.decoding, evaluation.engine, self.packing, sizes]
        weights = [self.base.files.content_hash, self.base.quantization, str(self.base.dtype), adapter]
        place = [_device_name(self.base.model.device), model.attention, model.chat_template, self.chat.max_length]
        releases = [library_version(name) for name in ("fintune", "torch", "transformers", "vllm")]
        return hash_of([releases, system, weights, place, how, task.name, task.history, rules, asked, shown])

    def results(
        self, records: Sequence[DocumentRecord], adapter: str | None, counts: dict[str, Any], elapsed_s: float
    ) -> EvaluationResults:
        """Aggregates of all systems, with the classical baselines' records already among ``records``."""
        results: list[TaskResult] = []
        comparisons: list[Comparison] = []
        for loaded, _ in self.data.tested:
            rows = [record for record in records if record.task == loaded.task.name]
            scored, compared = score_systems(loaded, rows, self.recipe.evaluation, self.recipe.seed)
            results += scored
            comparisons += compared
        comparisons = with_holm(comparisons)
        for (system, task), number in self.shots_shown.items():
            counts = {**counts, f"solved examples shown to {system} on {task}": number}
        for task, why in self.data.skipped.items():
            counts = {**counts, f"not measured: {task}": why}
        main = "tuned" if any(record.system == "tuned" for record in records) else "base"
        shortened, unfit = _lost([record for record in records if record.system == main])
        counts = {**counts, "shortened_documents": shortened, "documents_that_do_not_fit": unfit}
        return EvaluationResults(
            model=self.recipe.model.base,
            adapter=adapter,
            results=tuple(results),
            comparisons=tuple(comparisons),
            overlap=self.data.overlap,
            data=self.data.licences,
            counts=counts,
            elapsed_s=elapsed_s,
            time_costs=tuple(self.time_costs),
        )


def _lost(records: Sequence[DocumentRecord]) -> tuple[int, int]:
    """How many documents a language model saw shortened, and how many did not fit at all."""
    shortened = {(record.task, record.example_id) for record in records if record.truncated}
    unfit = {(record.task, record.example_id) for record in records if record.output is None}
    return len(shortened), len(unfit)


def _device_name(device: torch.device) -> str:
    """The kind of device; rounding differs from one kind of GPU to another."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _classical_inputs(
    loaded: LoadedTask, train: Sequence[Example], documents: Sequence[Example], seed: int
) -> list[Any]:
    """What the records of a classical system depend on."""
    versions = [library_version(name) for name in ("fintune", "scikit-learn", "vaderSentiment")]
    rows = [[_as_learnt(example) for example in part] for part in (train, documents)]
    return [versions, loaded.task.version, loaded.content_hash, seed, *map(hash_of, rows)]


def _as_learnt(example: Example) -> list[Any]:
    seen = [str(example.metadata.get(key)) for key in ("question", "last_move")]
    return [example.example_id, example.group, example.target, example.choices, example.document, *seen]


def _as_asked(example: Example) -> list[Any]:
    turns = [[message.role, message.content, message.document_span] for message in example.messages]
    asked = [example.example_id, example.group, example.target, example.choices, turns]
    return asked if example.learnt == "answer" else [*asked, example.learnt, example.metadata.get("candidates")]


def find_device(name: str | None) -> torch.device:
    """The device of that name; without one, the default one.

    Raises:
        ModelError: there is no such device here.
    """
    from fintune.models.named import named_device

    return default_device() if name is None else named_device(name)


def default_device() -> torch.device:
    """The first GPU of this process, or the CPU."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", this_process().local_rank)
