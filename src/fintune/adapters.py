"""Named adapters: ``fintune.adapters`` adds, lists, compares, combines, merges, removes and checks them.

Enters: names, ``NAME@VERSION``, run directories or adapter folders. Leaves: records with lineage, or a merged model.
Wherever fintune takes the path of an adapter it also takes such a name, unless something lies at that path.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fintune.schema.adapter_records import (
    AdapterRecord,
    Parent,
    get_stored,
    registry_root,
    require_place,
    stored_adapters,
)
from fintune.schema.errors import AdapterError
from fintune.schema.run_directory import RunDirectory, adapter_folder

if TYPE_CHECKING:
    from fintune.models.adapter_registry import Damage
    from fintune.models.adapter_weights import AdapterContents, AdapterDifference
    from fintune.models.merging import MergeReport
    from fintune.schema.recipe import Recipe, TaskSection


@dataclass(frozen=True)
class AdapterDetails:
    """A named adapter looked into.

    Attributes:
        record: where it came from.
        contents: rank, parameters, and norms by layer type.
        lineage: its ancestors, nearest first; those that are no longer here are named all the same.
        path: folder of the adapter.
    """

    record: AdapterRecord
    contents: AdapterContents
    lineage: tuple[Parent, ...]
    path: Path


def add(source: str | Path, name: str, *, parent: str | None = None) -> AdapterRecord:
    """Copies the adapter of a run, or an adapter folder, into the registry as the next version of ``name``.

    Args:
        source: run directory or adapter folder; it stays as it is.
        name: letters, digits, dot, dash and underscore.
        parent: the named adapter that its training began from; what the recipe beside it says when None.

    Raises:
        AdapterError: the name cannot be used, ``parent`` is unknown or of another base, or there is no adapter.
        RunError: the run is not trained to its end, or the disk refuses.
    """
    from fintune.models.adapter_registry import Origin, add_adapter
    from fintune.models.adapter_weights import require_one_base

    place = Path(source).expanduser()
    if parent is None:
        parents = _started_from(_folder(place))
    else:
        stored = get_stored(registry_root(), parent)
        require_one_base([stored.path, _folder(place)])
        parents = (stored.record.as_parent(),)
    return add_adapter(place, name, origin=Origin(parents=parents)).record


def records(name: str | None = None) -> list[AdapterRecord]:
    """All versions of all named adapters, or of one name; oldest first within a name."""
    found = [stored.record for stored in stored_adapters(registry_root())]
    if name is None:
        return found
    get_stored(registry_root(), name)
    return [record for record in found if record.name == name]


def show(reference: str) -> AdapterDetails:
    """Looks into ``NAME`` or ``NAME@VERSION``: base, rank, targets, norms by layer type, and where it came from."""
    from fintune.models.adapter_weights import inspect_adapter

    stored = get_stored(registry_root(), reference)
    return AdapterDetails(stored.record, inspect_adapter(stored.path), _lineage(stored.record), stored.path)


def diff(first: str | Path, second: str | Path) -> AdapterDifference:
    """Compares two adapters of one base: settings, and module by module how far their updates are apart.

    Args:
        first: a name, run directory or adapter folder; distances are relative to its updates.
        second: likewise.

    Raises:
        AdapterError: they are of different bases, or one is no LoRA adapter.
    """
    from fintune.models.adapter_weights import compare_adapters

    return compare_adapters(_folder(first), _folder(second))


def combine(
    references: Sequence[str],
    name: str,
    *,
    method: str = "linear",
    weights: Sequence[float] = (),
    rank: int | None = None,
    density: float = 0.5,
    seed: int = 17,
) -> AdapterRecord:
    """Makes one adapter of several named ones, and adds it as the next version of ``name``.

    The record's ``gap`` says how far the result is from the weighted sum of the updates. Its recipe asks as the first
    one's does and knows the tasks of all, so that an evaluation finds leaks from any of their training rows.

    Args:
        references: two or more named adapters of one base.
        name: of the combination.
        method: linear, svd, cat, ties, dare_linear or dare_ties.
        weights: one for each; equal shares that sum to 1 when empty.
        rank: of the result of svd; the largest of the parents' when None.
        density: share that ties and dare keep.
        seed: decides what dare drops.
    """
    from fintune.models.adapter_registry import Origin, add_adapter
    from fintune.models.adapter_weights import distance_from_sum
    from fintune.models.combining import combine_adapters
    from fintune.schema.loading import save_recipe

    stored = [get_stored(registry_root(), reference) for reference in references]
    shares = list(weights) or [1 / max(1, len(stored))] * len(stored)
    folders = [one.path for one in stored]
    with tempfile.TemporaryDirectory(prefix="fintune-") as aside:
        chosen: Any = method
        made = combine_adapters(folders, shares, chosen, Path(aside) / "adapter", rank=rank, density=density, seed=seed)
        if (recipe := _combined_recipe(folders, name)) is not None:
            save_recipe(recipe, RunDirectory(made).recipe)
        parents = tuple(one.record.as_parent(share) for one, share in zip(stored, shares, strict=True))
        origin = Origin(method, parents, distance_from_sum(made, folders, shares))
        return add_adapter(made, name, origin=origin).record


def merge(
    adapter: str | Path,
    output_dir: str | Path,
    *,
    dtype: str = "bfloat16",
    quantization: str | None = None,
    device: str | None = None,
    texts: Sequence[str] = (),
) -> MergeReport:
    """Merges an adapter into its base as a whole model in 16 bits, and measures the difference of the logits.

    Args:
        adapter: a name, run directory or adapter folder.
        output_dir: folder to make.
        dtype: bfloat16 or float16.
        quantization: how the base is held before: none, nf4, int8 or fp8; as the adapter was trained when None.
        device: torch device; a GPU if there is one, when None. The merge needs four bytes a weight there.
        texts: what the logits are compared on; four sentences on finance when empty.
    """
    from fintune.models.adapter_files import read_adapter_info
    from fintune.models.merging import TEXTS, merge_adapter
    from fintune.models.named import held_as, named_dtype
    from fintune.schema.recipe import ModelSection
    from fintune.serving.predictor import recipe_of
    from fintune.session import find_device

    folder = _folder(adapter)
    recipe = recipe_of(folder)
    section = recipe.model if recipe is not None else ModelSection(base=read_adapter_info(folder).base)
    section = held_as(section, quantization)
    kind, where = named_dtype(dtype), find_device(device)
    return merge_adapter(section, folder, Path(output_dir), device=where, dtype=kind, texts=tuple(texts) or TEXTS)


def remove(reference: str, *, force: bool = False) -> tuple[str, ...]:
    """Removes ``NAME@VERSION``, or all versions of ``NAME``, and returns what was removed.

    Args:
        reference: what to remove.
        force: even if the lineage of another adapter names it.
    """
    from fintune.models.adapter_registry import remove_adapter

    return remove_adapter(reference, force=force)


def verify(reference: str | None = None) -> tuple[tuple[str, ...], list[Damage]]:
    """Reads every byte again; returns what was checked, and what is not as it was added."""
    from fintune.models.adapter_registry import verify_adapters

    return verify_adapters(reference)


def _folder(adapter: str | Path) -> Path:
    """The adapter folder of a name, a run or a path."""
    place = require_place(adapter)
    inside = RunDirectory(place).adapter
    return inside if inside.is_dir() else place


def _lineage(record: AdapterRecord) -> tuple[Parent, ...]:
    known = {stored.record.reference: stored.record for stored in stored_adapters(registry_root())}
    found: dict[str, Parent] = {}
    waiting = list(record.parents)
    while waiting:
        parent = waiting.pop(0)
        if parent.reference not in found:
            found[parent.reference] = parent
            waiting += known[parent.reference].parents if parent.reference in known else ()
    return tuple(found.values())


def _started_from(folder: Path) -> tuple[Parent, ...]:
    """The adapter that the recipe beside ``folder`` starts from: by its name where it was added, else by its path."""
    from fintune.models.adapter_files import read_adapter_info
    from fintune.serving.predictor import recipe_of

    recipe = recipe_of(folder) if folder.is_dir() else None
    if recipe is None or recipe.adapter.init_adapter is None:
        return ()
    given, wanted = recipe.adapter.init_adapter, recipe.adapter.init_hash
    found = [one.record for one in stored_adapters(registry_root()) if _hash_of(one.path) == wanted]
    named = [record for record in found if given in (record.name, record.reference)]
    if found:
        return ((named or found)[-1].as_parent(),)
    earlier = adapter_folder(Path(given))
    known = read_adapter_info(earlier).content_hash if _hash_of(earlier) == wanted else None
    return (Parent(name=given, version=None, content_hash=known),)


def _hash_of(folder: Path) -> str | None:
    """What ``adapter.init_hash`` would be; None where there is no intact adapter."""
    from fintune.training.identity import adapter_hash

    try:
        return adapter_hash(folder)
    except AdapterError:
        return None


def _combined_recipe(folders: Sequence[Path], name: str) -> Recipe | None:
    from fintune.schema.loading import load_recipe
    from fintune.serving.predictor import recipe_of

    recipes = [recipe for folder in folders if (recipe := recipe_of(folder)) is not None]
    if not recipes:
        return None
    tasks: dict[str, TaskSection] = {}
    for task in (task for recipe in recipes for task in recipe.data.tasks):
        tasks.setdefault(task.name, task)
    first = recipes[0].model_dump(mode="json")
    first["data"] |= {
        "tasks": [{**task.model_dump(mode="json"), "weight": None} for task in tasks.values()],
        "mixture": "proportional",
    }
    first["adapter"] |= {"init_adapter": None, "init_hash": None, "hand_over": None}
    return load_recipe({**first, "name": name})
