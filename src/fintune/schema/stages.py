"""Stages of a recipe: written as what differs from the recipe's own sections, each run as a recipe of its own.

Enters: the tree of a recipe, or a ``Recipe``. Leaves: the tree with every stage in full (or only what differs again),
and for each stage in its order a plain ``Recipe`` without stages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fintune.schema.hand_over import continued, hand_over_problem
from fintune.schema.support import Conflict, Problem, first_conflict

if TYPE_CHECKING:
    from fintune.schema.recipe import Recipe, TaskSection

SECTIONS = ("data", "adapter", "training")
_FIRST_ONLY = ("init_adapter", "init_hash")  # what the recipe's own adapter starts from, its first stage does
MIXED = "mixed"


def with_full_stages(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of a recipe whose stages hold whole sections; without ``data.tasks`` of its own it gets all of theirs.

    What is not as it should be stays as it is, for validation to name.
    """
    stages = tree.get("stages")
    if not isinstance(stages, (list, tuple)) or not all(isinstance(stage, Mapping) for stage in stages) or not stages:
        return dict(tree)
    full = []
    for number, stage in enumerate(stages):
        sections = {name: _merged(_own(tree, name, number), stage[name]) for name in SECTIONS if name in stage}
        inherited = {name: own for name in SECTIONS if name not in stage and (own := _own(tree, name, number))}
        full.append({**stage, **sections, **inherited})
    whole = {**tree, "stages": full}
    data = tree.get("data", {})
    if isinstance(data, Mapping) and "tasks" not in data and (tasks := _all_tasks(full)):
        whole["data"] = {**data, "tasks": tasks}
    return whole


def with_short_stages(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of ``with_full_stages``: each stage with only the keys that differ from the recipe's own."""
    short = []
    for number, stage in enumerate(tree.get("stages") or ()):
        differing = {name: _difference(_own(tree, name, number), stage[name]) for name in SECTIONS}
        rest = {key: value for key, value in stage.items() if key not in SECTIONS}
        short.append(rest | {name: keys for name, keys in differing.items() if keys})
    return {**tree, "stages": short}


def _own(tree: Mapping[str, Any], name: str, number: int) -> dict[str, Any]:
    section = tree.get(name)
    if not isinstance(section, Mapping):
        return {}
    return {key: value for key, value in section.items() if not number or name != "adapter" or key not in _FIRST_ONLY}


def _merged(own: Any, over: Any) -> Any:
    if not isinstance(own, Mapping) or not isinstance(over, Mapping):
        return over
    return {**own, **{key: _merged(own.get(key), value) for key, value in over.items()}}


def _difference(own: Mapping[str, Any], section: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in section.items() if key not in own or own[key] != value}


def _all_tasks(stages: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The tasks of all stages, each once, without what says how often a stage draws them."""
    found: dict[Any, Any] = {}
    for stage in stages:
        data = stage.get("data")
        tasks = data.get("tasks") if isinstance(data, Mapping) else None
        for task in tasks if isinstance(tasks, (list, tuple)) else ():
            name = task.get("name") if isinstance(task, Mapping) else None
            if isinstance(name, str):
                found.setdefault(name, {k: v for k, v in task.items() if k not in ("weight", "epochs")})
    return list(found.values())


# --- stages as recipes ---------------------------------------------------------------------------------------------


def stage_order(recipe: Recipe) -> tuple[int, ...]:
    """The stages' numbers in the order in which their data are trained on, where the recipe alone says it."""
    numbers = range(len(recipe.stages))
    return tuple(reversed(numbers)) if recipe.stage_order == "reversed" else tuple(numbers)


def stage_recipes(recipe: Recipe, order: Sequence[int] | None = None) -> tuple[Recipe, ...]:
    """Each stage as a plain recipe, in the order in which they are trained; one alone if they are mixed.

    Another order moves data and training. Adapters stay where they are, so that what is trained grows along the run
    whatever the order.

    Args:
        recipe: a recipe with stages.
        order: the numbers of the stages; what the recipe says when None.
    """
    if recipe.stage_order == "mixed":
        return (whole_recipe(recipe).model_copy(update={"name": f"{recipe.name}-{MIXED}"}),)
    order = stage_order(recipe) if order is None else order
    return tuple(_stage_recipe(recipe, place, order) for place in range(len(order)))


def stage_folders(recipe: Recipe, order: Sequence[int] | None = None) -> tuple[Path, ...]:
    """The folder of each stage inside the run directory, as ``stage_recipes`` orders them."""
    order = stage_order(recipe) if order is None else order
    names = [MIXED] if recipe.stage_order == "mixed" else [recipe.stages[number].name for number in order]
    return tuple(Path("stages") / f"{place}-{name}" for place, name in enumerate(names, start=1))


def _stage_recipe(recipe: Recipe, place: int, order: Sequence[int]) -> Recipe:
    stage, adapter = recipe.stages[order[place]], recipe.stages[place].adapter
    if adapter.init_adapter is None:
        previous = str(stage_folders(recipe, order)[place - 1]) if place else None
        hand_over = adapter.hand_over if place else None
        adapter = adapter.model_copy(update={"init_adapter": previous, "hand_over": hand_over})
    name = f"{recipe.name}-{stage.name}"
    return _plain(recipe, name, adapter=adapter, data=stage.data, training=stage.training)


def whole_recipe(recipe: Recipe) -> Recipe:
    """All stages as one plain recipe: what ``mixed`` trains, and what the result of any order is measured as.

    Each task is drawn as often as its stages draw it. Training is the recipe's own, with samples as long as those of
    any stage; the adapter is that of the last stage.
    """
    longest = max(stage.training.max_length for stage in recipe.stages)
    training = recipe.training.model_copy(update={"epochs": 1.0, "max_length": longest})
    first, adapter = recipe.stages[0], recipe.stages[-1].adapter
    start = {
        "init_adapter": first.adapter.init_adapter,
        "init_hash": first.adapter.init_hash,
        "hand_over": adapter.hand_over if first.adapter.init_adapter is not None else None,
    }
    data = first.data.model_copy(update={"tasks": _tasks_with_epochs(recipe), "mixture": "proportional"})
    return _plain(recipe, recipe.name, adapter=adapter.model_copy(update=start), data=data, training=training)


def _plain(recipe: Recipe, name: str, **sections: Any) -> Recipe:
    evaluation = recipe.evaluation
    if evaluation.tasks is None:
        tasks = tuple(task.unweighted() for task in _by_name(recipe).values())
        evaluation = evaluation.model_copy(update={"tasks": tasks})
    own = {"name": name, "output_dir": None, "evaluation": evaluation, "stages": (), "stage_order": "as_listed"}
    return recipe.model_copy(update={**own, **sections})


def _by_name(recipe: Recipe) -> dict[str, TaskSection]:
    tasks = [task for stage in recipe.stages for task in stage.data.tasks]
    found: dict[str, TaskSection] = {}
    for task in tasks:
        found.setdefault(task.name, task)
    return found


def _tasks_with_epochs(recipe: Recipe) -> tuple[TaskSection, ...]:
    """Each task once, with its passes over all stages."""
    passes: dict[str, float] = {}
    for stage in recipe.stages:
        for task in stage.data.tasks:
            passes[task.name] = passes.get(task.name, 0.0) + task.epochs * stage.training.epochs
    return tuple(
        task.model_copy(update={"weight": None, "epochs": passes[name]}) for name, task in _by_name(recipe).items()
    )


# --- what cannot run -----------------------------------------------------------------------------------------------


def first_stage_problem(recipe: Recipe) -> Problem | None:
    """What keeps the first faulty stage from running, with its place in the recipe; None when all can."""
    if not recipe.stages:
        return None
    if recipe.stage_order == "mixed":
        conflict = first_conflict(whole_recipe(recipe))
        return None if conflict is None else Problem(f"stage_order=mixed: {conflict.reason}", conflict.remedy)
    plain = [_stage_recipe(recipe, place, range(len(recipe.stages))) for place in range(len(recipe.stages))]
    for number, alone in enumerate(plain):
        if (conflict := first_conflict(alone)) is not None:
            return Problem(_placed(conflict, number), conflict.remedy)
    before = recipe.stages[0].adapter
    for number, stage in enumerate(recipe.stages[1:], start=1):
        if stage.adapter.init_adapter is not None:
            before = stage.adapter
            continue
        if (problem := hand_over_problem(before, stage.adapter)) is not None:
            return Problem(f"stages.{number}.adapter: {problem.reason}", problem.remedy)
        before = continued(before, stage.adapter)
    return None


def _placed(conflict: Conflict, number: int) -> str:
    """The reason of a conflict, with the keys it names as keys of the stage."""
    placed = conflict.reason
    for key in conflict.keys:
        placed = placed.replace(key, f"stages.{number}.{key}")
    return placed if placed != conflict.reason else f"stages.{number}: {conflict.reason}"


def differ_in_more_than_tasks(recipe: Recipe) -> bool:
    """Whether the stages' data differ beyond their tasks, or one task has other settings in another stage."""
    without_tasks = [stage.data.model_copy(update={"tasks": ()}) for stage in recipe.stages]
    tasks = [task.model_copy(update={"epochs": 1.0}) for stage in recipe.stages for task in stage.data.tasks]
    return any(data != without_tasks[0] for data in without_tasks) or len(
        {task.model_dump_json() for task in tasks}
    ) > len({task.name for task in tasks})
