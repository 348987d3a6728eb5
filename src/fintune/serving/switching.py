"""Several adapters on one base in memory, switched from call to call.

Enters: a base model and adapters of it. Leaves: a ``Predictor`` of the base, with one of each adapter ``beside`` it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from threading import RLock
from typing import Any

import torch

from fintune.evaluation.scoring import Scorer, scoring_budget
from fintune.inference.forward import EdgeModel, choose_backend, supported_packing
from fintune.models.adapter_files import load_adapter, load_beside, read_adapter_info
from fintune.models.adapters import peft_quiet
from fintune.models.load import load_base, load_tokenizer
from fintune.models.templates import apply_chat_template_override
from fintune.models.window import readable_length
from fintune.schema.adapter_records import require_place
from fintune.schema.errors import AdapterError, ModelError
from fintune.schema.recipe import ModelSection, Packing, Recipe, TaskSection
from fintune.schema.run_directory import RunDirectory
from fintune.serving.identity import identity_of
from fintune.serving.predictor import Predictor, recipe_of, template_of
from fintune.trees.chat import ChatFormat

_HELD = ("quantization", "double_quant", "dtype")


class AdapterHost:
    """A base model in memory, and the adapters that are on it at the moment; one of them is used at a time.

    Args:
        section: how the base is held.
        device: where it goes.
        default_task: task whose prompt the bare base, and adapters of other tools, are asked with.
        needs_template: whether a tokenizer without a chat template is an error.
        recipe: of a wholly trained model, which is its own base; None for any other base.
    """

    def __init__(
        self,
        section: ModelSection,
        *,
        device: torch.device,
        default_task: str = "tfns",
        needs_template: bool = True,
        recipe: Recipe | None = None,
    ) -> None:
        self.loaded = load_base(section, device=device, for_training=False, needs_template=needs_template)
        self.section, self.default_task = section, default_task
        backend = choose_backend(section.attention, device, self.loaded.model.config)
        self.edge_model = EdgeModel(self.loaded.model, backend, self.loaded.dtype)
        self.base = replace(self._predictor(recipe, None), using=partial(self._using, None))
        self._lock = RLock()
        self._numbers = count()
        self._inner: dict[Any, str] = {}  # by how it is used, which copies of a predictor share

    def add(self, place: str | Path) -> Predictor:
        """Puts an adapter on the base: a named adapter, a run directory or an adapter folder.

        Raises:
            AdapterError: it is unknown, damaged, a whole model, or of another base.
        """
        folder = _folder(place)
        recipe, inner = recipe_of(folder), f"beside{next(self._numbers)}"
        with self._lock:
            if self.edge_model.model is self.loaded.model:
                self.edge_model.model = self._put_first(folder, inner)
            else:
                self._put_beside(folder, inner)
        made = replace(self._predictor(recipe, folder), using=partial(self._using, inner))
        self._inner[made.using] = inner
        return made

    def _put_first(self, folder: Path, inner: str) -> Any:
        try:
            return load_adapter(self.loaded, _only_lora(folder), name=inner)
        except BaseException:
            _uncover(self.loaded.model)
            raise

    def _put_beside(self, folder: Path, inner: str) -> None:
        model: Any = self.edge_model.model
        try:
            load_beside(self.loaded, model, folder, inner)
        except BaseException:
            # It must not stay half there: peft would hold every later adapter against its tensors. Where peft itself
            # failed it has forgotten the configuration already, and without one it deletes nothing.
            model.peft_config.setdefault(inner, next(iter(model.peft_config.values())))
            _delete(model, inner)
            raise

    def remove(self, adapter: Predictor) -> None:
        """Takes an adapter that ``add`` returned off the base again, and frees its memory."""
        with self._lock:
            _delete(self.edge_model.model, self._inner.pop(adapter.using))
            if not self._inner:  # peft cannot be without any
                _uncover(self.loaded.model)
                self.edge_model.model = self.loaded.model

    @contextmanager
    def _using(self, inner: str | None) -> Iterator[None]:
        """Answers with the adapter that peft knows by ``inner`` while the block runs; None is the base alone."""
        with self._lock:
            model: Any = self.edge_model.model
            if inner is not None:
                model.set_adapter(inner, inference_mode=True)
            bare = inner is None and model is not self.loaded.model
            with model.disable_adapter() if bare else nullcontext():
                yield

    def _predictor(self, recipe: Recipe | None, adapter: Path | None) -> Predictor:
        loaded, section = self.loaded, self.section
        tasks: tuple[TaskSection, ...] = (TaskSection(name=self.default_task),)
        max_length, tokenizer, budget, template = 2048, loaded.tokenizer, None, loaded.facts.chat_template
        wanted: Packing = "tree"
        if recipe is not None:
            tasks, max_length, wanted = recipe.data.tasks, recipe.training.max_length, recipe.training.packing
            budget = recipe.evaluation.tokens_per_batch
            tokenizer = load_tokenizer(loaded.files, section)
            template = apply_chat_template_override(tokenizer, recipe.model.chat_template, section.base)
        packing, _ = supported_packing(loaded.model.config, wanted)
        chat = ChatFormat(tokenizer, readable_length(loaded.model.config, max_length))
        scorer = Scorer(self.edge_model, chat, scoring_budget(budget, self.edge_model), packing)
        info = read_adapter_info(adapter) if adapter is not None else None
        identity = identity_of(loaded, info, section, packing, budget)
        return Predictor(scorer, tasks, adapter, identity, template=template_of(recipe, template))


def load_switchable(
    base: str | Path,
    adapters: Mapping[str, str | Path],
    *,
    device: torch.device,
    quantization: str | None = None,
    bf16_products: bool = False,
    default_task: str = "tfns",
) -> Predictor:
    """Loads a base once and puts several adapters on it.

    Args:
        base: anything ``model.base`` takes.
        adapters: by the name they are to be called by, what to load: a named adapter, run directory or adapter folder.
        device: where the model goes.
        quantization: none, nf4, int8 or fp8; as the adapters were trained, when None.
        bf16_products: refused here, as adapters are merged for them.
        default_task: task whose prompt the bare base is asked with.

    Raises:
        AdapterError: an adapter is unknown, of another base, or they were trained on bases that were held differently.
        ModelError: bf16 products were asked for.
    """
    if bf16_products:
        raise ModelError("bf16_products is for one adapter, not for several on one base.", "Leave one of them out.")
    folders = {name: _folder(place) for name, place in adapters.items()}
    host = AdapterHost(base_section(str(base), folders, quantization), device=device, default_task=default_task)
    return replace(host.base, beside={name: host.add(folder) for name, folder in folders.items()})


def _delete(model: Any, inner: str) -> None:
    with peft_quiet():
        # The adapter used last is still the active one; every use names its own, so which takes its place is all one.
        warnings.filterwarnings("ignore", message="Adapter .* was active which is now deleted", category=UserWarning)
        model.delete_adapter(inner)


def _uncover(model: Any) -> None:
    """Takes off a base what peft had put on it before an adapter turned out not to fit."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for name, module in list(model.named_modules()):
        covered = getattr(module, "original_module", None)
        if isinstance(module, BaseTunerLayer):
            covered = module.get_base_layer()
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            parent, _, own_name = name.rpartition(".")
            setattr(model.get_submodule(parent), own_name, covered)
    vars(model).pop("peft_config", None)
    model._hf_peft_config_loaded = False


def _folder(place: str | Path) -> Path:
    found = require_place(place)
    inside = RunDirectory(found).adapter
    return inside if inside.is_dir() else found


def _only_lora(folder: Path) -> Path:
    if read_adapter_info(folder).kind == "full":
        raise AdapterError(f"{folder} holds a wholly trained model, which cannot be switched.", "Load it by itself.")
    return folder


def base_section(base: str, folders: Mapping[str, Path], quantization: str | None) -> ModelSection:
    """The base as the recipes of the adapters in these folders hold it.

    Raises:
        AdapterError: they were trained on bases that were held differently.
    """
    recipes = {name: recipe_of(folder) for name, folder in folders.items()}
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
