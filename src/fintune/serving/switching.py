"""Several adapters on one base in memory, switched from call to call.

Enters: a base model and adapters of it. Leaves: a ``Predictor`` of the base, with one of each adapter ``beside`` it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any

import torch

from fintune.evaluation.scoring import Scorer, scoring_budget
from fintune.inference.forward import EdgeModel, choose_backend, supported_packing
from fintune.models.adapter_files import load_adapter, load_beside, read_adapter_info
from fintune.models.load import LoadedBase, load_base, load_tokenizer
from fintune.models.templates import apply_chat_template_override
from fintune.models.window import readable_length
from fintune.schema.adapter_records import require_place
from fintune.schema.errors import AdapterError
from fintune.schema.recipe import ModelSection, Packing, Recipe, TaskSection
from fintune.schema.run_directory import RunDirectory
from fintune.serving.predictor import Predictor, recipe_of, template_of
from fintune.trees.chat import ChatFormat

_HELD = ("quantization", "double_quant", "dtype")


@dataclass(frozen=True)
class _Switch:
    """The one model behind several predictors; one of them uses it at a time."""

    model: Any
    lock: Any = field(default_factory=RLock)

    @contextmanager
    def using(self, name: str | None) -> Iterator[None]:
        """Answers with the adapter that peft knows by ``name`` while the block runs; None is the base alone."""
        with self.lock:
            if name is None:
                with self.model.disable_adapter():
                    yield
                return
            self.model.set_adapter(name, inference_mode=True)
            yield


def load_switchable(
    base: str | Path,
    adapters: Mapping[str, str | Path],
    *,
    device: torch.device,
    quantization: str | None = None,
    default_task: str = "tfns",
) -> Predictor:
    """Loads a base once and puts several adapters on it.

    Args:
        base: anything ``model.base`` takes.
        adapters: by the name they are to be called by, what to load: a named adapter, run directory or adapter folder.
        device: where the model goes.
        quantization: none, nf4, int8 or fp8; as the adapters were trained, when None.
        default_task: task whose prompt the bare base is asked with.

    Raises:
        AdapterError: an adapter is unknown, of another base, or they were trained on bases that were held differently.
    """
    folders = {name: _folder(place) for name, place in adapters.items()}
    recipes = {name: recipe_of(folder) for name, folder in folders.items()}
    section = _section(str(base), recipes, quantization)
    loaded = load_base(section, device=device, for_training=False)
    inner = {name: f"beside{index}" for index, name in enumerate(folders)}
    model: Any = loaded.model
    for name, folder in folders.items():
        if model is loaded.model:
            model = load_adapter(loaded, _only_lora(folder), name=inner[name])
        else:
            load_beside(loaded, model, folder, inner[name])
    switch = _Switch(model)
    edge_model = EdgeModel(model, choose_backend(section.attention, device, model.config), loaded.dtype)
    make = partial(_predictor, loaded, section, edge_model, default_task)
    beside = {
        name: replace(make(recipes[name], folder), using=partial(switch.using, inner[name]))
        for name, folder in folders.items()
    }
    return replace(make(None, None), using=partial(switch.using, None), beside=beside)


def _folder(place: str | Path) -> Path:
    found = require_place(place)
    inside = RunDirectory(found).adapter
    return inside if inside.is_dir() else found


def _only_lora(folder: Path) -> Path:
    if read_adapter_info(folder).kind == "full":
        raise AdapterError(f"{folder} holds a wholly trained model, which cannot be switched.", "Load it by itself.")
    return folder


def _section(base: str, recipes: Mapping[str, Recipe | None], quantization: str | None) -> ModelSection:
    """The base as the adapters' recipes hold it."""
    known = {name: recipe.model for name, recipe in recipes.items() if recipe is not None}
    held: dict[str, Any] = {}
    for name, model in known.items():
        own = {key: getattr(model, key) for key in _HELD}
        if quantization is not None:
            own["quantization"] = quantization
        if held and own != held:
            key = next(key for key in _HELD if own[key] != held[key])
            raise AdapterError(
                f"The adapters {next(iter(known))} and {name} were trained with another model.{key}: {held[key]} and "
                f"{own[key]}.",
                "Say with quantization= how the base is to be held, or load them apart.",
            )
        held = own
    given = {"quantization": quantization} if quantization is not None else {}
    return ModelSection.model_validate({"base": base, **held, **given})


def _predictor(
    loaded: LoadedBase,
    section: ModelSection,
    edge_model: EdgeModel,
    default_task: str,
    recipe: Recipe | None,
    adapter: Path | None,
) -> Predictor:
    tasks: tuple[TaskSection, ...] = (TaskSection(name=default_task),)
    max_length, tokenizer, budget, template = 2048, loaded.tokenizer, None, loaded.facts.chat_template
    wanted: Packing = "tree"
    if recipe is not None:
        tasks, max_length, wanted = recipe.data.tasks, recipe.training.max_length, recipe.training.packing
        budget = recipe.evaluation.tokens_per_batch
        tokenizer = load_tokenizer(loaded.files, section)
        template = apply_chat_template_override(tokenizer, recipe.model.chat_template, section.base)
    packing, _ = supported_packing(loaded.model.config, wanted)
    chat = ChatFormat(tokenizer, readable_length(loaded.model.config, max_length))
    scorer = Scorer(edge_model, chat, scoring_budget(budget, loaded.model.device), packing)
    own = read_adapter_info(adapter).content_hash if adapter is not None else "base"
    identity = f"{loaded.files.content_hash}/{own}/{loaded.quantization}"
    return Predictor(scorer, tasks, adapter, identity, template=template_of(recipe, template))
