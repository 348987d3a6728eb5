"""The models of a server by name: a base and adapters on it, which may come and go while it runs.

Enters: a place to serve, further adapters, and a folder that is watched. Leaves: ``ServedModel`` by name. Everything
that changes the model in memory happens in the engine's thread.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from fintune.inference.forward import supported_packing
from fintune.models.adapter_files import read_adapter_info
from fintune.schema.adapter_records import adapter_place
from fintune.schema.errors import AdapterError, FintuneError, ModelError, RunError
from fintune.schema.recipe import ModelSection
from fintune.schema.run_directory import RunDirectory
from fintune.serving.predictor import Predictor, is_adapter, recipe_of
from fintune.serving.server.constraints import grammar_tokenizer
from fintune.serving.server.lanes import Lane
from fintune.serving.server.problems import HttpProblem
from fintune.serving.switching import AdapterHost, base_section
from fintune.trees.chat import ChatFormat

log = logging.getLogger(__name__)
KEPT_PIECES = 300  # of prompts, which come from anyone and are rarely alike; all choices of one request find room
MakeLane = Callable[[Predictor], Lane]


@dataclass(eq=False)
class ServedModel:
    """A model that requests can name.

    Attributes:
        name: what requests call it.
        predictor: the base, or an adapter on it.
        lane: where it writes.
        decoder: tokenizer that only the engine's thread uses; Rust tokenizers must not be shared with one that encodes.
        created: Unix time it was loaded.
        parent: the base's name; None for the base.
        place: folder of the adapter.
        retired: it takes no more jobs.
        held: requests that may still submit jobs; counted in the event loop.
        let_go: called when the last of them has ended.
    """

    name: str
    predictor: Predictor
    lane: Lane
    decoder: Any
    created: int
    parent: str | None = None
    place: Path | None = None
    retired: bool = False
    held: int = 0
    let_go: Callable[[], None] | None = None

    @cached_property
    def longest_token(self) -> int:
        """Most characters that one token stands for; made by the thread that reads requests."""
        return max(map(len, self.predictor.scorer.chat.tokenizer.get_vocab()))

    @cached_property
    def grammar_tokenizer(self) -> Any:
        """The tokenizer as constraints need it; made by the thread that reads requests."""
        scorer = self.predictor.scorer
        config = scorer.model.model.config.get_text_config()
        return grammar_tokenizer(scorer.chat.tokenizer, int(config.vocab_size), scorer.chat.end_ids)


class ServedModels:
    """All models of a server.

    Args:
        host: the base in memory.
        name: what requests call the base.
        make_lane: makes the lane of a predictor.
        any_holding: adapters may have been trained on a base that was held otherwise, as the user said how to hold it.

    Attributes:
        base: the base alone.
        by_name: all models.
        reserved: names that the command gave, which stay with their models.
    """

    def __init__(self, host: AdapterHost, name: str, make_lane: MakeLane, *, any_holding: bool = False) -> None:
        self.host, self._make_lane, self._any_holding = host, make_lane, any_holding
        self._decoder = copy.deepcopy(host.loaded.tokenizer.backend_tokenizer)
        self._first_chat: ChatFormat | None = None
        self.base = self._served(name, host.base, None, None)
        self.by_name: Mapping[str, ServedModel] = {name: self.base}
        self.reserved: frozenset[str] = frozenset({name})

    def _served(self, name: str, predictor: Predictor, parent: str | None, place: Path | None) -> ServedModel:
        scorer = predictor.scorer
        chat = ChatFormat(scorer.chat.tokenizer, scorer.chat.max_length, kept_pieces=KEPT_PIECES)
        first = self._first_chat = self._first_chat or chat
        # Found before the reader's thread tokenises with this tokenizer, for the engine's thread.
        vars(chat)["end_ids"] = (first if first.tokenizer is chat.tokenizer else chat).end_ids
        packing, _ = supported_packing(scorer.model.model.config, "tree")  # whatever it was trained with
        predictor = replace(predictor, scorer=replace(scorer, chat=chat, packing=packing))
        lane = self._make_lane(predictor)
        return ServedModel(name, predictor, lane, self._decoder, int(time.time()), parent, place)

    def get(self, name: str) -> ServedModel:
        """The model of that name.

        Raises:
            HttpProblem: 404, with the nearest names.
        """
        found = self.by_name.get(name)
        if found is None:
            near = get_close_matches(name, self.by_name, n=3) or list(self.by_name)[:5]
            raise HttpProblem(404, f"There is no such model here. There is {', '.join(near)}.", "model_not_found")
        return found

    @contextmanager
    def holding(self, name: str) -> Iterator[ServedModel]:
        """The model of that name, which is not retired while the block runs; for the event loop.

        Raises:
            HttpProblem: 404, with the nearest names.
        """
        model = self.get(name)
        model.held += 1
        try:
            yield model
        finally:
            model.held -= 1
            if model.held == 0 and model.let_go is not None:
                model.let_go()

    def when_let_go(self, model: ServedModel, then: Callable[[], None]) -> None:
        """Calls ``then`` once no request holds a model that is no longer in the list; for the event loop."""
        if model.held:
            model.let_go = then
        else:
            then()

    def add(self, name: str, place: str | Path) -> ServedModel | None:
        """Puts an adapter on the base under a name; returns the one that had the name, which is to be retired.

        Raises:
            AdapterError: it does not fit, or the name is the base's.
        """
        if name == self.base.name:
            raise AdapterError(f"The base is called {name} already.", "Give the adapter another name.")
        self._require_held_alike(place)
        predictor = self.host.add(place)
        before = self.by_name.get(name)
        try:
            served = self._served(name, predictor, self.base.name, predictor.adapter)
        except BaseException:
            self.host.remove(predictor)
            raise
        self.by_name = {**self.by_name, name: served}
        return before

    def unlist(self, name: str) -> ServedModel:
        """Takes a model from the list; it is still in memory."""
        found = self.by_name[name]
        self.by_name = {other: model for other, model in self.by_name.items() if other != name}
        return found

    def forget(self, model: ServedModel) -> None:
        """Frees the memory of an adapter that is no longer in the list."""
        self.host.remove(model.predictor)
        model.lane.forget(model)

    def _require_held_alike(self, place: str | Path) -> None:
        recipe = recipe_of(adapter_folder_of(place))
        if self._any_holding or recipe is None or self.host.section.quantization == recipe.model.quantization:
            return
        raise AdapterError(
            f"The adapter {place} was trained on a base held as {recipe.model.quantization}, and this one is held as "
            f"{self.host.section.quantization}.",
            f"Serve it apart, or start the server with --quantization {recipe.model.quantization}.",
        )


def adapter_folder_of(place: str | Path) -> Path:
    """The folder with the adapter's files: the place itself, or that inside a run directory; else the place."""
    folder = adapter_place(place)
    inside = RunDirectory(folder).adapter
    return inside if is_adapter(inside) else folder


def open_models(
    place: str,
    adapters: Mapping[str, str | Path],
    *,
    device: torch.device,
    make_lane: MakeLane,
    name: str | None = None,
    quantization: str | None = None,
    batches: bool = True,
    watched: Sequence[Path] = (),
) -> ServedModels:
    """Loads what a server begins with.

    Args:
        place: run directory, adapter folder or name, or base model.
        adapters: further adapters on the same base, by name.
        device: where the model goes.
        make_lane: makes the lane of a predictor.
        name: what requests call ``place``; its last part when None.
        quantization: as ``load_predictor``.
        batches: our own generator writes, which batches attention only.
        watched: adapters that are to follow; the first that can be read says how the base is held where no other does.

    Raises:
        FintuneError: something cannot be loaded, or two models would have one name.
    """
    folder = adapter_folder_of(place)
    own_name = name or (place if not Path(place).exists() else Path(place).resolve().name)
    recipe = recipe_of(folder)
    if not is_adapter(folder):
        if RunDirectory(folder).checkpoints.is_dir() or RunDirectory(folder).stages.is_file():
            raise RunError(f"The run {folder} is not trained to its end.", "Finish it with `fintune train` first.")
        host = _host(place, adapters, watched, device, quantization)
        models = ServedModels(host, own_name, make_lane, any_holding=quantization is not None)
        return _begun(models, adapters, batches)
    info = read_adapter_info(folder)
    if info.kind == "full":  # in the layout of a base model
        section = ModelSection.model_validate({"base": str(folder)})
        host = AdapterHost(section, device=device, needs_template=False, recipe=recipe)
        return _begun(ServedModels(host, own_name, make_lane), adapters, batches)
    base = recipe.model.base if recipe is not None else info.base
    base_name = Path(base).name if Path(base).exists() else base
    if own_name in adapters:
        raise AdapterError(f"Two models are called {own_name}.", "Give one of them another name: --name, or --adapter.")
    adapters = {own_name: folder, **adapters}
    host = _host(base, adapters, watched, device, quantization)
    models = ServedModels(host, base_name, make_lane, any_holding=quantization is not None)
    return _begun(models, adapters, batches)


def _host(
    base: str,
    adapters: Mapping[str, str | Path],
    watched: Sequence[Path],
    device: torch.device,
    quantization: str | None,
) -> AdapterHost:
    folders = {name: adapter_folder_of(place) for name, place in adapters.items()}
    if not any(recipe_of(folder) for folder in folders.values()):
        folders |= _first_with_recipe(watched)
    return AdapterHost(base_section(base, folders, quantization), device=device, needs_template=False)


def _first_with_recipe(places: Sequence[Path]) -> dict[str, Path]:
    for place in places:
        try:
            folder = adapter_folder_of(place)
            if recipe_of(folder) is not None:
                return {place.name: folder}
        except (FintuneError, OSError):  # said when it is loaded
            log.debug("%s says nothing of its base.", place)
    return {}


def _begun(models: ServedModels, adapters: Mapping[str, str | Path], batches: bool) -> ServedModels:
    if batches and supported_packing(models.host.loaded.model.config, "tree")[0] == "none":
        raise ModelError(
            f"{models.base.name} cannot be batched continuously: not all its layers are attention, or its positions "
            "depend on the batch.",
            "Write with `fintune generate`, or serve it with --engine vllm.",
        )
    for name, place in adapters.items():
        models.add(name, place)
    models.reserved = frozenset(models.by_name)
    return models
