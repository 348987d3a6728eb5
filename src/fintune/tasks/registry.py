"""Tasks by name. A family's module builds its tasks and registers them when it is first asked for."""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING

from fintune.schema.errors import RecipeError

if TYPE_CHECKING:
    from fintune.schema.recipe import TaskSection
    from fintune.tasks.base import Task

_FAMILIES = (
    "fintune.tasks.sentiment",
    "fintune.tasks.headlines",
    "fintune.tasks.stock",
    "fintune.tasks.weekly.registered",
    "fintune.tasks.stance",
    "fintune.tasks.entity_typing",
    "fintune.tasks.free_text",
    "fintune.tasks.report_questions",
    "fintune.tasks.entities",
)
_TASKS: dict[str, Task] = {}


def register(task: Task) -> Task:
    """Adds a task; two tasks of one name are a mistake in the code."""
    if _TASKS.setdefault(task.name, task) != task:
        raise ValueError(f"Task {task.name} is registered twice.")
    return task


def list_tasks() -> tuple[str, ...]:
    """Names of all registered tasks, sorted."""
    for module in _FAMILIES:
        importlib.import_module(module)
    return tuple(sorted(_TASKS))


def task_of(section: TaskSection) -> Task:
    """The task a recipe's section names, or makes from a source of its own (whose choices or format are known by then).

    Raises:
        RecipeError: there is no such task, or an own task takes a registered name.
    """
    if section.table is None and section.conversations is None:
        return get_task(section.name)
    if section.name in list_tasks():
        what = "a table" if section.table is not None else "conversations"
        raise RecipeError(f"{section.name} is a registered task, not {what} of your own.", "Choose another name.")
    if section.conversations is not None:
        from fintune.tasks.conversations import conversation_task

        return conversation_task(section.name, section.conversations)
    from fintune.tasks.own import own_task

    assert section.table is not None
    return own_task(section.name, section.table)


def get_task(name: str) -> Task:
    """The task of that name, or a ``RecipeError`` naming the nearest one."""
    names = list_tasks()
    if name not in _TASKS:
        nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
        hint = f"Did you mean {nearest[0]}?" if nearest else ""
        raise RecipeError(f"There is no task named {name!r}.", f"{hint} Known tasks: {', '.join(names)}.".strip())
    return _TASKS[name]
